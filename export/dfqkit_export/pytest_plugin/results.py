"""What comes of all accuracy checks of a pytest run together: the new baseline, the report, the section at the end.

What belongs here: how a check's outcome travels in a test's report, and what the process that runs pytest (under xdist
the one that runs the workers) makes of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import methodcaller
from typing import TYPE_CHECKING, Any

import pytest

from dfqkit_export.pytest_plugin.options import Settings
from dfqkit_export.words import page, plain, table

if TYPE_CHECKING:
    from dfqkit_export.gate import CaseOutcome, Outcome

FIXTURE = "accuracy_check"
_SHOWN = 40
_KEY = "dfqkit_deselected"


def packed(node: str, outcome: CaseOutcome) -> dict[str, Any]:
    """Return a check's outcome as what JSON can hold."""
    entry = None if outcome.entry is None else outcome.entry.to_dict()
    return {"node": node, "case": {**vars(outcome), "rows": [vars(row) for row in outcome.rows], "entry": entry}}


def _unpacked(values: dict[str, Any]) -> CaseOutcome:
    from dfqkit_export.gate import Case, CaseOutcome, Row

    rows = tuple(Row(**row) for row in values["rows"])
    entry = None if values["entry"] is None else Case.from_dict(values["entry"])
    return CaseOutcome(**{**values, "rows": rows, "entry": entry, **{k: tuple(values[k]) for k in ("causes", "notes")}})


def attach(report: pytest.TestReport, results: Sequence[dict[str, Any]], *, unchecked: bool) -> None:
    """Let the report of one of a test's phases take what `packed` returned along, and whether nothing was checked."""
    # xdist carries texts, and JSON numbers; those of numpy have a method that makes them such.
    vars(report)["dfqkit"] = json.dumps({"results": results, "unchecked": unchecked}, default=methodcaller("item"))


def _deselected(items: Sequence[pytest.Item]) -> bool:
    return any(FIXTURE in getattr(item, "fixturenames", ()) for item in items)


class WorkerResults:
    """A worker of xdist: its checks travel in the tests' reports; that some were deselected, with its farewell."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Remember whether a check was deselected."""
        if _deselected(items):
            self._config.workeroutput[_KEY] = True  # type: ignore[attr-defined]


class Results:
    """Gathers what was checked; writes the baseline and the report; shows the section."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._received: list[dict[str, Any]] = []
        self._partial = any("::" in argument for argument in config.args) or bool(config.getoption("lf", False))
        self._outcome: Outcome | None = None
        self._messages: list[str] = []

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Remember whether a check was deselected."""
        self._partial |= _deselected(items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take over what a worker of xdist says at its end."""
        self._partial |= error is not None or bool(getattr(node, "workeroutput", {}).get(_KEY))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gather what a test checked."""
        text = vars(report).get("dfqkit")
        if text is not None:
            values = json.loads(text)
            self._received += values["results"]
            self._partial |= values["unchecked"]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the files, and let the run fail for what is no test's fault."""
        if self._config.getoption("collectonly") or not (self._received or self._settings.report):
            return
        from dfqkit_export.errors import DfqkitError

        stopped = exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        self._partial |= stopped or bool(session.shouldfail or session.shouldstop)
        try:
            failed = self._conclude(write=not stopped)
        except DfqkitError as error:
            self._messages.append(str(error))
            failed = True
        if failed and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _conclude(self, *, write: bool) -> bool:
        from dfqkit_export.gate import Options, conclude

        settings = self._settings
        cases = [_unpacked(values["case"]) for values in self._received]
        clashing = self._clashing() if settings.update else []
        cases = [replace(case, entry=None) if case.name in clashing else case for case in cases]
        outcome = conclude(cases, settings.baseline(), Options(strict=settings.strict, update=settings.update))
        if self._partial or not cases:
            outcome = replace(outcome, unused=())
        self._outcome = outcome
        self._messages += [
            f"{name}: not recorded, because several tests measured it differently; rename one" for name in clashing
        ]
        if write:
            self._write(outcome)
        elif settings.update:
            self._messages.append("Nothing was recorded, because the run was interrupted.")
        return bool(clashing) or (settings.strict and bool(outcome.unused))

    def _clashing(self) -> list[str]:
        """Return cases that two tests would record differently."""
        entries: dict[str, dict[str, str]] = {}
        for values in self._received:
            case = values["case"]
            if case["entry"] is not None:
                entries.setdefault(case["name"], {})[values["node"]] = json.dumps(case["entry"], sort_keys=True)
        return sorted(name for name, by_node in entries.items() if len(set(by_node.values())) > 1)

    def _write(self, outcome: Outcome) -> None:
        from dfqkit_export.files import write_bytes
        from dfqkit_export.gate import render_json, render_markdown, save_cases

        settings = self._settings
        if outcome.baseline is not None and any(case.entry is not None for case in outcome.cases):
            cases = {case.name: case.entry for case in outcome.cases if case.entry is not None}
            save_cases(settings.path, cases, outcome.baseline.environment)
            self._messages.append(f"Wrote {settings.path}")
        if settings.report is not None:
            render = render_json if settings.report.suffix == ".json" else render_markdown
            write_bytes(settings.report, render(outcome).encode())
            self._messages.append(f"Wrote {settings.report}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show all values, the worst first."""
        lines = [*(_table(self._outcome, self._config) if self._outcome is not None else ()), *self._messages]
        if lines:
            terminalreporter.section("dfqkit accuracy")
            terminalreporter.write_line(page(lines))


def _table(outcome: Outcome, config: pytest.Config) -> Iterator[str]:
    from dfqkit_export.gate.renderings import numbers_of
    from dfqkit_export.gate.verdicts import order

    yield from (plain(f"{case.name}: error: {case.error}") for case in outcome.cases if case.error)
    owner = {id(row): case.name for case in outcome.cases for row in case.rows}
    rows = order([row for case in outcome.cases for row in case.rows])
    shown = rows if config.get_verbosity() > 0 else rows[:_SHOWN]
    lines = [("case", "metric", "baseline", "now", "tolerance", "verdict")]
    lines += [(owner[id(row)], row.metric, *numbers_of(row), row.verdict) for row in shown]
    if shown:
        yield from table([[*map(plain, line)] for line in lines])
    if len(shown) < len(rows):
        yield f"and {len(rows) - len(shown)} more, none worse (-v shows them)"
    yield from (plain(f"{name}: in the baseline, but no test checked it") for name in outcome.unused)
    yield from (plain(f"environment: {text}") for text in outcome.environment)
    yield from (plain(f"recorded: {line}") for line in outcome.changes)
