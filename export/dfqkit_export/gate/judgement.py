"""The gate itself: files in, verdicts out, and the baseline that an update makes.

What belongs here: `check` and `update`, which the command line and the pytest plugin call, and what they return.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..env import environment
from ..errors import ArtefactError, DfqkitError, RuntimeUnavailableError
from ..metrics import Metric
from .baseline import Baseline, Case
from .causes import explain
from .environments import environment_changes, recorded_environment
from .filerows import file_metrics, file_rows, with_reasons
from .measurement import Measurement, measure, measure_report, open_subject
from .recording import changes_of, record
from .structure import Change, compare_marks
from .verdicts import FAILING, Row, judge, order

__all__ = ["CaseOutcome", "Options", "Outcome", "check", "check_case", "check_metrics", "check_path", "conclude"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to check.

    Attributes:
        strict: Let improved, new and unmeasured metrics, unused cases and expected failures that pass fail, too.
        tolerances: Tolerances by metric that take the place of the recorded ones.
        floors: Floors by metric that an update adds.
        threads: Threads inside one operator; None leaves the choice to the runtime.
        optimized: False switches the runtime's graph optimizations off.
        allow: Why files that are refused by default are taken; "" refuses them.
        update: Whether to make a new baseline of what is measured.
    """

    strict: bool = False
    tolerances: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    threads: int | None = None
    optimized: bool = True
    allow: str = ""
    update: bool = False


@dataclass(frozen=True, kw_only=True)
class CaseOutcome:
    """What came of one case.

    Attributes:
        name: Name of the case; the path where it could not be read.
        rows: Its metrics, worst first.
        causes: Why it failed, the surest first.
        notes: What else changed.
        error: Why it could not be checked; "" otherwise.
        exit_code: That of the error; 0 without one.
        entry: What an update records; None where nothing is to be recorded.
    """

    name: str
    rows: tuple[Row, ...] = ()
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""
    exit_code: int = 0
    entry: Case | None = None

    def failed(self, *, strict: bool = False) -> bool:
        """Return whether the case fails the check."""
        return bool(self.error) or any(row.fails(strict=strict) for row in self.rows)

    def verdict(self) -> str:
        """Return the verdict of the worst row; "error" where nothing was measured."""
        return "error" if self.error else (self.rows[0].verdict if self.rows else "ok")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a check.

    Attributes:
        cases: One for each file, failed ones first.
        unused: Cases of the baseline that no file was given for.
        environment: What differs from where the baseline was recorded, a sentence each.
        strict: Whether the check was strict.
        baseline: The baseline that an update made; None without one.
        changes: What the update changed, a line each.
    """

    cases: tuple[CaseOutcome, ...]
    unused: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    strict: bool = False
    baseline: Baseline | None = None
    changes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether anything fails."""
        return any(case.failed(strict=self.strict) for case in self.cases) or (self.strict and bool(self.unused))

    @property
    def exit_code(self) -> int:
        """0 where all is well, 1 where a check failed; that of the first error where a file could not be checked."""
        errors = [case.exit_code for case in self.cases if case.error]
        return errors[0] if errors else int(self.failed)


def check(paths: Sequence[str | Path], baseline: Baseline, options: Options | None = None) -> Outcome:
    """Check files against a baseline.

    Args:
        paths: Bundles (folder or .zip), folders of runs, and reports (.json).
        baseline: What was recorded; an empty one before the first update.
        options: How to check.

    Returns:
        The verdicts. With `options.update`, a case that is no worse than its floors and not refused is recorded in
        `Outcome.baseline`, and its verdicts are those after that.

    Raises:
        ArtefactError: Two files are of the same case.
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    options = options or Options()
    outcomes = [check_path(path, baseline, options) for path in paths]
    names = [outcome.name for outcome in outcomes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"More than one file is of the case {twice[0]!r}. Check them with a baseline each, or rename one."
        raise ArtefactError(msg)
    return conclude(outcomes, baseline, options)


def conclude(outcomes: Sequence[CaseOutcome], baseline: Baseline, options: Options | None = None) -> Outcome:
    """Put what came of single cases together, and make the new baseline where one is wanted.

    Args:
        outcomes: What came of each case.
        baseline: What was recorded.
        options: How they were checked.
    """
    options = options or Options()
    # Whatever it was recorded with, the same machine measures alike; elsewhere the last digits may differ.
    here = environment()
    result = Outcome(
        cases=tuple(sorted(outcomes, key=lambda outcome: not outcome.failed(strict=options.strict))),
        unused=tuple(sorted(set(baseline.cases) - {outcome.name for outcome in outcomes})),
        environment=tuple(environment_changes(baseline.environment, here)),
        strict=options.strict,
    )
    return _updated(result, baseline, here) if options.update else result


def check_case(measured: Measurement, case: Case | None, options: Options | None = None) -> CaseOutcome:
    """Judge what was measured of one file.

    Args:
        measured: The measurement.
        case: What was recorded; None where nothing was.
        options: How to check.

    Raises:
        ArtefactError: It was recorded with another sentinel set or teacher, so that nothing can be compared.
    """
    options = options or Options()
    if case is not None and not options.update:
        _require_same_images(measured, case)
    base = case.marks() if case is not None else None
    changes = compare_marks(base, measured.marks) if base is not None and measured.marks is not None else ()
    found = dict(measured.metrics) | file_metrics(measured, case, changes)
    rows = judge(found, case, images=measured.images, tolerances=options.tolerances, unmeasured=measured.unmeasured)
    rows = [
        *file_rows(measured, case, recording=options.update, allow=options.allow),
        *with_reasons(rows, changes, measured, case),
    ]
    causes = [f"refused: {row.reason}" for row in rows if row.verdict == "refused"]
    if case is not None and any(row.verdict in ("regressed", "expected") for row in rows):
        worse = {row.metric for row in rows if row.verdict in ("regressed", "expected")}
        answers = bool((worse & set(found)) - {"structure"})
        causes += explain(measured, case, changes, regressed=answers)
    outcome = CaseOutcome(
        name=measured.name,
        rows=tuple(order(rows)),
        causes=tuple(causes),
        notes=tuple(_notes(measured, case, changes)),
    )
    return _recorded(outcome, measured, case, options) if options.update else outcome


def check_metrics(
    name: str, metrics: Mapping[str, Metric], baseline: Baseline, options: Options | None = None
) -> CaseOutcome:
    """Judge metrics that were measured elsewhere, as a test does.

    Args:
        name: Name of the case.
        metrics: By name.
        baseline: What was recorded.
        options: How to check.
    """
    return check_case(Measurement(name=name, metrics=metrics), baseline.cases.get(name), options)


def check_path(path: str | Path, baseline: Baseline, options: Options | None = None, *, name: str = "") -> CaseOutcome:
    """Check one file against a baseline.

    Args:
        path: Bundle (folder or .zip), folder of a run, or report (.json).
        baseline: What was recorded.
        options: How to check.
        name: Name of the case; "" takes the file's own.

    Raises:
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    options = options or Options()
    try:
        if Path(path).suffix == ".json":
            measured = measure_report(path)
            measured = replace(measured, name=name or measured.name)
            return check_case(measured, baseline.cases.get(measured.name), options)
        with open_subject(path) as subject:
            measured = measure(subject, threads=options.threads, optimized=options.optimized)
            measured = replace(measured, name=name or measured.name)
            return check_case(measured, baseline.cases.get(measured.name), options)
    except RuntimeUnavailableError:
        raise
    except DfqkitError as error:
        return CaseOutcome(name=name or str(path), error=str(error), exit_code=error.exit_code)


def _require_same_images(measured: Measurement, case: Case) -> None:
    for name, what in (("teacher", "teacher's answers"), ("sentinel", "sentinel set")):
        old, new = case.files.get(name), measured.files.get(name)
        if old and new and old != new:
            msg = (
                f"The {what} of case {measured.name!r} changed since the baseline was recorded ({old[:12]} then, "
                f"{new[:12]} now), so nothing can be compared. Use the sentinel set of the baseline; or, if the change "
                "is meant, look at the new numbers and record them with --update."
            )
            raise ArtefactError(msg)


def _notes(measured: Measurement, case: Case | None, changes: Sequence[Change]) -> Iterator[str]:
    if case is None:
        return
    if case.allowed:
        yield f"Taken although it is refused by default: {case.allowed}"
    if measured.files and case.files.get("model") != measured.files.get("model"):
        told = {change.layer for change in changes if change.layer}
        what = f"{len(told)} layers differ" if told else "no layer does"
        yield f"The model file is another one than the recorded ({what})."
    yield from (f"Note: {change.text}." for change in changes if not change.layer and not change.wrong)


def _recorded(outcome: CaseOutcome, measured: Measurement, case: Case | None, options: Options) -> CaseOutcome:
    """Take what was measured as the new truth, where neither a floor nor a refusal stands against it."""
    entry = record(measured, case, tolerances=options.tolerances, floors=options.floors, allow=options.allow)
    kept = {"origin", "files", "preprocessing", "floor of the report"}
    stands = [row for row in outcome.rows if row.metric in kept and row.verdict in FAILING]
    values = dict(measured.metrics) | file_metrics(measured, None, ())
    rows = [*judge(values, entry, images=measured.images, unmeasured=measured.unmeasured)]
    rows = [row for row in rows if row.metric not in {s.metric for s in stands}]
    beyond = any(row.verdict == "regressed" for row in rows)
    return replace(
        outcome,
        rows=tuple(order([*stands, *rows])),
        causes=(),
        notes=(),
        entry=None if stands or beyond else entry,
    )


def _updated(outcome: Outcome, baseline: Baseline, here: Mapping[str, Any]) -> Outcome:
    entries = {case.name: case.entry for case in outcome.cases if case.entry is not None}
    made = Baseline(
        cases={**baseline.cases, **entries},
        environment=recorded_environment(here),
    )
    lines = [line for name, entry in entries.items() for line in changes_of(name, baseline.cases.get(name), entry)]
    return replace(outcome, baseline=made, changes=tuple(lines), environment=())
