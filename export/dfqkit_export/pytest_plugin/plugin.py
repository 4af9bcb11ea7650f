"""The pytest plugin: a fixture that holds a quantized file against its baseline, in the test that asks for it.

What belongs here: the marker, the fixture and how a verdict becomes a test's outcome. What is decided is the gate's
(`gate.check_apart`, `gate.check_case`); the options are `options`'; what becomes of all tests together is
`results`'. These load in every pytest run of their environment, so nothing but pytest is imported before
a test makes a check.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from dfqkit_export.pytest_plugin.options import Settings, read_settings
from dfqkit_export.pytest_plugin.results import FIXTURE, Results, WorkerResults, attach, packed

if TYPE_CHECKING:
    from dfqkit_export.errors import DfqkitError
    from dfqkit_export.gate import CaseOutcome
    from dfqkit_export.measure.kinds import Metric
    from dfqkit_export.report import Report

_SETTINGS = pytest.StashKey[Settings]()
_RESULTS = pytest.StashKey[list[dict[str, Any]]]()
_CHECKED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, read the options, and gather results unless this is a worker of xdist."""
    config.addinivalue_line(
        "markers", "dfqkit(case): the name under which the baseline holds what accuracy_check checks"
    )
    config.stash[_SETTINGS] = settings = read_settings(config)
    on_worker = hasattr(config, "workerinput")
    config.pluginmanager.register(WorkerResults(config) if on_worker else Results(config, settings), "dfqkit-results")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Send what was checked along with the test's report, which xdist carries to the process that writes files."""
    report = yield
    if FIXTURE in getattr(item, "fixturenames", ()):
        results = item.stash.setdefault(_RESULTS, [])
        item.stash[_CHECKED] = item.stash.get(_CHECKED, False) or bool(results)
        attach(report, results, unchecked=report.when == "teardown" and not item.stash[_CHECKED])
        results.clear()
    return report


@pytest.fixture
def accuracy_check(request: pytest.FixtureRequest) -> AccuracyCheck:
    """Hold a quantized file, or metrics measured elsewhere, against the baseline (see `AccuracyCheck`)."""
    settings = request.config.stash[_SETTINGS]
    if settings.skip:
        pytest.skip("--dfqkit-skip: no accuracy is checked")
    return AccuracyCheck(request.node, settings)


class AccuracyCheck:
    """What the fixture `accuracy_check` hands to a test.

    Call it with a bundle, a run's folder or a report.json; with a case's name before it, or the name in the marker
    `dfqkit`, to have it under another name than its own; or with a case's name and a `Report` or metrics by name.
    """

    def __init__(self, item: pytest.Item, settings: Settings) -> None:
        self._item = item
        self._settings = settings

    def __call__(
        self,
        case_or_path: str | os.PathLike[str] | Report | Mapping[str, float | Metric],
        subject: str | os.PathLike[str] | Report | Mapping[str, float | Metric] | None = None,
        **options: Any,
    ) -> CaseOutcome:
        """Check, and let the test fail, skip or xfail by the verdict.

        Args:
            case_or_path: Name of the case, where `subject` is given; else what to check.
            subject: Path, `Report`, or metrics by name; a plain number is taken for a metric whose direction is known.
            options: Those of `gate.Options`, such as `tolerances={"top1": 0.5}`.

        Returns:
            The verdicts, where none of them fails the test.
        """
        __tracebackhide__ = True
        from dfqkit_export.errors import DfqkitError

        name, what = (self._marked(), case_or_path) if subject is None else (str(case_or_path), subject)
        try:
            outcome: CaseOutcome | DfqkitError = self._outcome(name, what, options)
        except DfqkitError as error:
            outcome = error
        if isinstance(outcome, DfqkitError):  # not in the clause above: the test would show both errors
            self._give_up(outcome)
        self._keep(outcome)
        self._judge(outcome)
        return outcome

    def _give_up(self, error: DfqkitError) -> NoReturn:
        __tracebackhide__ = True
        from dfqkit_export.errors import RuntimeUnavailableError
        from dfqkit_export.words import clean

        if not isinstance(error, RuntimeUnavailableError):
            pytest.fail(clean(str(error)))
        if self._settings.strict:
            pytest.fail(f"Not measured, which --dfqkit-strict does not allow: {error}")
        pytest.skip(str(error))

    def _marked(self) -> str:
        marker = self._item.get_closest_marker("dfqkit")
        return _case_of(*marker.args, **marker.kwargs) if marker is not None else ""

    def _outcome(self, name: str, what: Any, options: Mapping[str, Any]) -> CaseOutcome:
        from dataclasses import replace

        from dfqkit_export.errors import ArtefactError
        from dfqkit_export.gate import Options, check_apart, check_case, check_metrics, measure_report

        baseline = self._settings.baseline()
        settings = self._settings
        stated = {"strict": settings.strict, "update": settings.update, "reason": settings.reason}
        how = Options(**{**stated, "allow_not_judged": settings.allow_not_judged, **options})
        if isinstance(what, str | os.PathLike):
            return check_apart(Path(what), baseline, how, name=name)
        if not name:
            message = (
                "Metrics have no name of their own: call accuracy_check(CASE, METRICS), or mark the test with dfqkit."
            )
            raise ArtefactError(message)
        if isinstance(what, Mapping):
            return check_metrics(name, _metrics(what), baseline, how)
        return check_case(replace(measure_report(what), name=name), baseline.cases.get(name), how)

    def _keep(self, outcome: CaseOutcome) -> None:
        """Put the values where JUnit and the process that writes files find them."""
        self._item.stash.setdefault(_RESULTS, []).append(packed(self._item.nodeid, outcome))
        # The fixture record_property does no more, but warns where JUnit's family is pytest's own default.
        properties = self._item.user_properties
        properties.append((f"dfqkit.{outcome.name}", outcome.verdict()))
        for row in outcome.rows:
            if row.now is not None:
                properties.append((f"dfqkit.{outcome.name}.{row.metric}", float(row.now)))

    def _judge(self, outcome: CaseOutcome) -> None:
        __tracebackhide__ = True
        from dfqkit_export.report.verdict import NOT_JUDGED

        settings = self._settings
        case = settings.baseline().cases.get(outcome.name)
        expected = case.expected_failure if case is not None else None
        if outcome.failed(strict=settings.strict):
            self._fail(outcome, "" if case is not None or outcome.error else self._advice())
        for row in outcome.rows:
            if expected is None or row.metric != expected.metric or settings.update:
                continue
            if row.verdict == "expected":
                pytest.xfail(f"{outcome.name}: {row.metric}: {row.reason}")
            if row.verdict == "improved":
                self._fail(outcome, f"[XPASS(strict)] {row.metric} was expected to fail.")
        for row in outcome.rows:
            if row.verdict == NOT_JUDGED and not settings.update:  # allowed, which makes it no test that passes
                pytest.skip(f"{outcome.name}: {row.verdict}: {row.reason}")

    def _fail(self, outcome: CaseOutcome, advice: str) -> NoReturn:
        __tracebackhide__ = True
        from dfqkit_export.gate import Outcome, render_text

        text = render_text(Outcome(cases=(outcome,), strict=self._settings.strict)).rpartition("\n\n")[0]
        pytest.fail("\n\n".join(filter(None, (text, advice))))

    def _advice(self) -> str:
        file = os.path.relpath(self._item.path, self._item.config.invocation_params.dir)
        node = "::".join([file, *self._item.nodeid.split("::")[1:]])
        given = ["--dfqkit-baseline", self._settings.explicit] if self._settings.explicit else []
        command = shlex.join(["pytest", node, *given, "--dfqkit-update"])
        return f"'{self._settings.path}' has no such case. Look at the numbers, then record them with:\n\n  {command}"


def _case_of(case: str) -> str:
    """Return the marker's argument."""
    return case


def _metrics(values: Mapping[str, Any]) -> dict[str, Metric]:
    from dataclasses import replace

    from dfqkit_export.errors import ArtefactError
    from dfqkit_export.measure.kinds import Metric, find_kind, known_kinds

    found = {}
    for name, value in values.items():
        if isinstance(value, Metric):
            if value.higher_is_better is not None:
                found[name] = value
            continue
        kind = find_kind(name)
        if kind is None or kind.higher_is_better is None or not kind.gated:
            judged = sorted(kind.name for kind in known_kinds() if kind.gated and kind.higher_is_better is not None)
            message = (
                f"It is not known whether more or less of {name!r} is better; known are {', '.join(judged)}. Give it "
                "as a dfqkit_export.Metric with higher_is_better."
            )
            raise ArtefactError(message)
        metric = kind.metric(subject="test", data="", value=float(value), n=0)
        found[name] = replace(metric, unit="")  # as it was given: a share may be one of 1 or of 100
    return found
