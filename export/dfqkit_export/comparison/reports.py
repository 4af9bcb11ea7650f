"""Two reports, metric by metric.

What belongs here: pairing metrics, and saying of each difference whether it is more than noise. Whether a change may be
merged is the gate's question.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from dfqkit_export.measure.kinds import Metric
from dfqkit_export.report import Report

Trend = Literal["worse", "better", "only in A", "only in B", "changed", "noise", "negligible", "same"]

# Standard errors of a difference within which it is taken for noise.
SIGMAS = 2.0
# The share of a tolerance that nobody needs to look at.
_NEGLIGIBLE = 0.1


@dataclass(frozen=True, kw_only=True)
class MetricDifference:
    """One metric in both reports.

    Attributes:
        a: Value in A; None where A has none.
        b: Value in B.
        noise: Two standard errors of the difference, taken as independent, which is too many where both were measured
            on the same images; None where one has no standard error.
        change: What became of it from A to B: "changed" where the metric is neither good nor bad, or is a time;
            "negligible" where no errors are known and it is less than a tenth of the metric's tolerance.
    """

    name: str
    subject: str
    data: str
    unit: str
    a: float | None
    b: float | None
    noise: float | None
    change: Trend


@dataclass(frozen=True, kw_only=True)
class ReportDifference:
    """Two reports side by side, with all metrics of either, in the order of `Trend`, the largest change first."""

    title_a: str
    title_b: str
    verdict_a: str
    verdict_b: str
    metrics: tuple[MetricDifference, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return asdict(self)


def compare_reports(a: Report, b: Report) -> ReportDifference:
    """Pair the metrics of two reports by name, subject and data; A is the reference."""
    first, second = ({(m.name, m.subject, m.data): m for m in report.metrics} for report in (a, b))
    either = {**second, **first}
    found = {key: _difference(known, first.get(key), second.get(key)) for key, known in either.items()}
    return ReportDifference(
        title_a=a.title,
        title_b=b.title,
        verdict_a=a.verdict,
        verdict_b=b.verdict,
        metrics=tuple(found[key] for key in sorted(found, key=lambda key: _importance(found[key], either[key]))),
    )


def _importance(found: MetricDifference, known: Metric) -> tuple[int, float]:
    size = 0.0 if found.a is None or found.b is None else abs(found.b - found.a)
    return get_args(Trend).index(found.change), -size / _tolerance(known)


def _tolerance(known: Metric) -> float:
    allowed = known.kind.tolerance
    return max(allowed.absolute + allowed.relative * abs(known.value or 0.0), 1e-9)


def _difference(known: Metric, a: Metric | None, b: Metric | None) -> MetricDifference:
    errors = [m.stderr for m in (a, b) if m is not None and m.stderr is not None]
    noise = SIGMAS * math.hypot(*errors) if len(errors) == 2 else None
    return MetricDifference(
        name=known.name,
        subject=known.subject,
        data=known.data,
        unit=known.unit,
        a=a.value if a is not None else None,
        b=b.value if b is not None else None,
        noise=noise,
        change=_change(a, b, noise),
    )


def _change(a: Metric | None, b: Metric | None, noise: float | None) -> Trend:
    if a is None or b is None:
        return "only in B" if a is None else "only in A"
    if a.value == b.value:
        return "same"
    if a.value is None or b.value is None or a.higher_is_better is None or a.kind.timed:
        return "changed"
    size = abs(b.value - a.value)
    if noise is not None and size <= noise:
        return "noise"
    if noise is None and size < _NEGLIGIBLE * _tolerance(a):
        return "negligible"
    return "better" if (b.value > a.value) == a.higher_is_better else "worse"
