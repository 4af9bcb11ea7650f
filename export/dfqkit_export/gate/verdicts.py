"""Verdicts: how to check, one row for each metric of a case by comparison with what was recorded, and all of them.

What belongs here: what callers give and get, and how each row comes to its verdict. Reasons beyond the numbers are
`diagnosis`'; how verdicts are shown is `renderings`'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from dfqkit_export.gate.baseline import Baseline, Case, Expected, Recorded
from dfqkit_export.gate.significance import ImageValues, difference_stderr
from dfqkit_export.measure.kinds import Metric
from dfqkit_export.report.verdict import FAILED, NOT_JUDGED

#: The worst first.
Verdict = Literal[
    "regressed", "refused", "failed", "missing", "not judged", "new", "expected", "improved", "unmeasured", "ok"
]

#: Verdicts that fail a check; under `strict` those of `STRICT` do, too.
FAILING: frozenset[str] = frozenset({"regressed", "refused", FAILED, "missing", NOT_JUDGED})
STRICT: frozenset[str] = frozenset({"improved", "new", "unmeasured"})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of one case.

    Attributes:
        metric: Name of the metric.
        verdict: What came of it.
        unit: Unit of all its numbers.
        now: Today's value; None where there is none.
        stderr: Its standard error.
        n: How many images it rests on.
        baseline: The recorded value; None where there is none.
        tolerance: The tolerance in force; None where nothing was compared.
        tolerance_from: "stated", or "two standard errors" where those are larger.
        floor: The worst value allowed, or None.
        higher_is_better: Direction.
        reason: Why the verdict is what it is, a sentence; "" for a plain "ok".
        accepted: Why it does not fail the check although it else would: for a file that is not judged, or recorded with
            a reason. "" otherwise.
        worse_by: By how many tolerances the value is worse than the recorded one, for the order; negative where better.
    """

    metric: str
    verdict: Verdict
    unit: str = ""
    now: float | None = None
    stderr: float | None = None
    n: int = 0
    baseline: float | None = None
    tolerance: float | None = None
    tolerance_from: str = ""
    floor: float | None = None
    higher_is_better: bool = True
    reason: str = ""
    accepted: str = ""
    worse_by: float = 0.0

    def fails(self, *, strict: bool) -> bool:
        """Return whether the row fails the check."""
        return (self.verdict in FAILING and not self.accepted) or (strict and self.verdict in STRICT)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return {name: value for name, value in vars(self).items() if name != "worse_by"}


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
        reason: Why an update records a file whose verdict is not ok; "" refuses it.
        allow_not_judged: Whether a file passes that nothing here can judge.
        prove: Families of kernels (`comparison.portability`) in which the file must compute the same bits.
        min_speedup: Times that the file must be as fast as in float; None asks for nothing.
        teacher: The float file that it is timed beside; "" takes the bundle's `teacher.onnx`.
    """

    strict: bool = False
    tolerances: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    threads: int | None = None
    optimized: bool = True
    allow: str = ""
    update: bool = False
    reason: str = ""
    allow_not_judged: bool = False
    prove: tuple[str, ...] = ()
    min_speedup: float | None = None
    teacher: str = ""


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
        cases: One for each file, failed ones first, then by name.
        unused: Cases of the baseline that no file was given for; none where a file could not be read, which may be
            one of them.
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
    def not_judged(self) -> int:
        """How many cases nothing here could judge, accepted or not."""
        return sum(any(row.verdict == NOT_JUDGED for row in case.rows) for case in self.cases)

    @property
    def failed(self) -> bool:
        """Whether anything fails."""
        return any(case.failed(strict=self.strict) for case in self.cases) or (self.strict and bool(self.unused))

    @property
    def exit_code(self) -> int:
        """0 where all is well, 1 where a check failed; that of the first error where a file could not be checked."""
        errors = [case.exit_code for case in self.cases if case.error]
        return errors[0] if errors else int(self.failed)


def judge(
    metrics: Mapping[str, Metric],
    case: Case | None,
    *,
    images: ImageValues | None = None,
    tolerances: Mapping[str, float] | None = None,
    unmeasured: Mapping[str, str] | None = None,
) -> list[Row]:
    """Compare what was measured with what was recorded: one row for each metric that either side has, not ordered.

    Values per image give the standard error of the difference; stated tolerances take the place of the recorded ones;
    `unmeasured` says why metrics could not be measured.
    """
    case, tolerances = case or Case(metrics={}), tolerances or {}
    before = ImageValues.from_dict(case.images) if case.images else None
    rows = []
    for name in dict.fromkeys([*metrics, *case.metrics, *case.floors]):
        metric, old = metrics.get(name), case.metrics.get(name)
        if metric is None or metric.value is None:
            row = _without_value(name, metric, old, (unmeasured or {}).get(name))
        else:
            paired = None
            if before is not None and images is not None and len(images) == len(before):
                paired = difference_stderr(name, before, images)
            # A tolerance may be stated for all rows of a metric, of which a report has several.
            stated = tolerances.get(name, tolerances.get(metric.name))
            row = _row(name, metric, metric.value, old, paired, stated)
        rows.append(_floored(row, case.floors.get(name)))
    return [_expected(row, case.expected_failure) for row in rows]


def order(rows: list[Row]) -> list[Row]:
    """Return rows worst first; those that are "ok" stay in the order in which they were measured.

    Among these, what is worse by a thousandth of its tolerance changes from run to run and says nothing.
    """
    ranks = get_args(Verdict)
    return sorted(rows, key=lambda row: (ranks.index(row.verdict), 0.0 if row.verdict == "ok" else -row.worse_by))


def _row(
    name: str, metric: Metric, now: float, old: Recorded | None, paired: float | None, stated: float | None
) -> Row:
    row = Row(
        metric=name,
        verdict="new",
        unit=metric.unit,
        now=now,
        stderr=metric.stderr,
        n=metric.n,
        higher_is_better=bool(metric.higher_is_better),
        reason="The baseline does not have it; record it with --update.",
    )
    if old is None:
        return row
    if old.value is None:
        return replace(row, reason="It had no finite value when it was recorded; record it again with --update.")
    tolerance, source = _tolerance(metric, old, paired, stated)
    worse = (old.value - now) * (1 if old.higher_is_better else -1)
    # Recorded values are rounded to six digits.
    slack = 1e-5 * abs(old.value)
    row = replace(
        row,
        verdict="ok",
        baseline=old.value,
        tolerance=tolerance,
        tolerance_from=source,
        higher_is_better=old.higher_is_better,
        reason="",
        worse_by=worse / max(tolerance, 1e-9),
    )
    if worse > tolerance + slack:
        return replace(row, verdict="regressed", reason=_beyond(worse, row, "worse"))
    if -worse > tolerance + slack:
        reason = f"{_beyond(-worse, row, 'better')} Record it with --update, so that it cannot be lost unnoticed."
        return replace(row, verdict="improved", reason=reason)
    return row


def _without_value(name: str, metric: Metric | None, old: Recorded | None, unmeasured: str | None) -> Row:
    baseline = old.value if old is not None else None
    if unmeasured is not None:
        return Row(metric=name, verdict="unmeasured", baseline=baseline, reason=unmeasured)
    if metric is not None and (old is None or old.value is None):
        reason = "It has no finite value, as when there is no difference at all."
        return Row(metric=name, verdict="ok" if old is not None else "new", reason=reason)
    if metric is not None and metric.kind.without_value:
        return Row(metric=name, verdict="improved", baseline=baseline, reason=metric.kind.without_value)
    return Row(
        metric=name, verdict="missing", baseline=baseline, reason="The baseline has it, but it was not measured."
    )


def _tolerance(metric: Metric, old: Recorded, paired: float | None, stated: float | None) -> tuple[float, str]:
    limit = old.tolerance if stated is None else stated
    error = paired
    if error is None and metric.stderr is not None and old.stderr is not None:
        error = math.hypot(metric.stderr, old.stderr)
    if error is not None and 2 * error > limit:
        return 2 * error, "two standard errors" + ("" if paired is None else " of the paired difference")
    return limit, "stated"


def _beyond(by: float, row: Row, side: str) -> str:
    unit = f" {row.unit}" if row.unit else ""
    return f"{by:.4g}{unit} {side} than the baseline; the tolerance is {row.tolerance:.4g} ({row.tolerance_from})."


def _floored(row: Row, floor: float | None) -> Row:
    if floor is None:
        return row
    row = replace(row, floor=floor)
    if row.now is None:
        if row.verdict == "unmeasured":
            return row
        return replace(row, verdict="missing", reason=f"It has a floor of {floor:g}, but was not measured.")
    if row.now >= floor if row.higher_is_better else row.now <= floor:
        return row
    side = "below" if row.higher_is_better else "above"
    reason = f"{row.now:.6g} is {side} its floor of {floor:g}, which an update does not change."
    return replace(row, verdict="regressed", reason=reason, worse_by=math.inf)


def _expected(row: Row, expected: Expected | None) -> Row:
    if expected is None or row.metric != expected.metric or row.verdict not in ("regressed", "improved", "ok"):
        return row  # what was not measured, neither failed nor passed
    if row.verdict == "regressed":
        return replace(row, verdict="expected", reason=f"Expected: {expected.reason} ({row.reason})")
    reason = f"It was expected to fail ({expected.reason}) and does not: take expected_failure out of the baseline."
    return replace(row, verdict="improved", reason=reason)
