"""What the renderings of a report share: grouping of metrics, gaps to the teacher, number formats, the verdict.

What belongs here: turning a `Report` into short texts. No markup, no layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfqkit_export.backends import DEFAULT
from dfqkit_export.measure import kinds
from dfqkit_export.report.document import Report
from dfqkit_export.report.floors import Floor, floor_of
from dfqkit_export.report.verdict import FAILED, NOT_JUDGED

TEACHER = "teacher"
MISSING = "-"
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One subject's value within a group, as text.

    Attributes:
        number: The value without its unit.
        stderr: The standard error to as many decimals, "" where there is none, or an interval.
        interval: The interval of 95 % in brackets, "" where there is none.
        unit: The unit, "" where there is none.
        gap: Distance to the teacher's value, "" where there is nothing to compare.
        floor: The worst value that was promised and whether it holds, "" where nothing was.
    """

    number: str
    stderr: str
    unit: str
    gap: str
    floor: str = ""
    interval: str = ""

    @property
    def error(self) -> str:
        """The interval, or the standard error behind its sign; "" where there is neither."""
        return self.interval or (self.stderr and f"± {self.stderr}")

    def __str__(self) -> str:
        """Return value, interval or standard error, and unit in one line."""
        return " ".join(text for text in (self.number, self.error, self.unit) if text)


@dataclass(frozen=True, kw_only=True)
class MetricGroup:
    """The same metric on the same n images (or repetitions, or layers), with one figure a subject.

    `direction` is "higher is better", "lower is better" or "".
    """

    name: str
    title: str
    data: str
    n: int
    direction: str
    cells: Mapping[str, Figure]


def subjects(report: Report) -> list[str]:
    """Return the subjects in order of appearance, the teacher first."""
    seen = list(dict.fromkeys(metric.subject for metric in report.metrics))
    return sorted(seen, key=lambda subject: subject != TEACHER)


def main_subject(report: Report) -> str:
    """Return whom a report is about: the default runtime, else the last subject; the teacher where it is alone."""
    present = subjects(report)
    return DEFAULT.name if DEFAULT.name in present else (present[-1] if present else TEACHER)


def metric_groups(report: Report) -> list[MetricGroup]:
    """Group metrics by name, data and n, in order of appearance."""
    groups: dict[tuple[str, str, int], dict[str, kinds.Metric]] = {}
    for metric in report.metrics:
        groups.setdefault((metric.name, metric.data, metric.n), {})[metric.subject] = metric
    return [_group(name, data, n, members, report.floors) for (name, data, n), members in groups.items()]


def made_from(report: Report) -> str:
    """Say what the images of a run without real data were made from."""
    return str(report.synthesis.get("made_from") or "the teacher alone")


def head_note(report: Report) -> str:
    """Say what the images are where they are not what one expects here, made from the teacher alone; else ""."""
    usual = report.synthesis.get("data_free") is True and not report.synthesis.get("made_from")
    return "" if usual else data_note(report)


def data_note(report: Report) -> str:
    """Say whether real data took part in making the images; "" where the report does not know of the question."""
    synthesis = report.synthesis
    if "data_free" not in synthesis:
        return ""
    if synthesis["data_free"] is True:
        return f"The images were made from {made_from(report)}; no real image was involved."
    if synthesis["data_free"] is None:
        return "Whether real data took part in making the images is not known: what they are from does not say."
    real = synthesis.get("real_data")
    return f"Not data-free: {real if isinstance(real, str) and real else 'real images'} took part in making the images."


def figure(value: Any, unit: str = "", kind: kinds.MetricKind | None = None) -> str:
    """Format a number with its unit; a dash for anything that is not a number.

    Decimals are those of the kind of metric, without one those of other numbers in the unit.

    Example:
        >>> figure(91.734, "%"), figure(1_094_400, "bytes"), figure(None)
        ('91.73 %', '1.09 MB', '-')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    if unit == kinds.SIZE.unit:
        for size, name in _SIZES:
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.0f} bytes"
    kind = kind or kinds.kind_of_unit(unit)
    if kind is not None and kind.decimals is not None:
        number = f"{value:.{kind.decimals}f}"
    elif isinstance(value, int):
        number = f"{value:d}"
    else:
        number = f"{value:.{(kind and kind.significant) or 4}g}"
    return f"{number}x" if unit == kinds.SPEEDUP.unit else f"{number} {unit}".rstrip()


def gap(metric: kinds.Metric, teacher: kinds.Metric | None) -> str:
    """Say how far a metric lies from the same one of the teacher; "" where there is nothing to compare.

    A signed difference ("-0.08 points"), or a ratio for sizes ("3.10x smaller"). Times have none: how much faster one
    is than another says the speed-up, which compares calls that were made in turns.
    """
    if teacher is None or metric is teacher or metric.value is None or teacher.value is None or metric.kind.timed:
        return ""
    if metric.kind.ratio_words is not None:
        if metric.value <= 0 or teacher.value <= 0:
            return ""
        ratio, (better, worse) = teacher.value / metric.value, metric.kind.ratio_words
        return f"{max(ratio, 1 / ratio):.2f}x {better if ratio >= 1 else worse}"
    text = difference_figure(metric.value - teacher.value, metric)
    return text if text.startswith("-") else f"+{text}"


def difference_figure(difference: float, metric: kinds.Metric) -> str:
    """Format a difference of two values of a metric; that of two shares is in points."""
    return figure(difference, kinds.TOP1_DROP.unit if metric.unit == kinds.TOP1.unit else metric.unit, metric.kind)


def timing_rows(report: Report) -> list[tuple[str, list[str]]]:
    """Return (name, [median, min, p10, p90, max in ms]) for each timed session."""
    timings = report.latency.get("timings")
    if not isinstance(timings, Mapping):
        return []
    unit = kinds.LATENCY.unit
    rows = []
    for name, timing in timings.items():
        if isinstance(timing, Mapping):
            durations = [timing.get(key) for key in ("median", "min", "p10", "p90", "max")]
            cells = [figure(duration, unit).removesuffix(f" {unit}") for duration in durations]
            rows.append((str(name), cells))
    return rows


def timing_caption(report: Report) -> str:
    """Say how latency was measured."""
    latency = report.latency
    return (
        f"Milliseconds a call of {figure(latency.get('batch'))} image(s), {figure(latency.get('repeats'))} interleaved "
        f"calls after {figure(latency.get('warmup'))} of warm-up. Information only, never a gate."
    )


def verdict_sentence(report: Report) -> str:
    """Say in one sentence or two what the report found."""
    if report.verdict == FAILED:
        count = len(report.findings)
        noun = "check does" if count == 1 else "checks do"
        return f"{count} {noun} not hold. {report.findings[0].message}"
    subject = main_subject(report)
    if report.verdict == NOT_JUDGED:
        return f"Not judged. {report.reasons[0]}"
    parts = [text for text in (_accuracy(report, subject), integers(report)) if text]
    return "All checks hold" + (f": {'; '.join(parts)}." if parts else ".")


def _accuracy(report: Report, subject: str) -> str:
    drop, top1 = report.metric(kinds.TOP1_DROP.name, subject), report.metric(kinds.TOP1.name, subject)
    if drop is not None and top1 is not None and drop.value is not None:
        change = "loses" if drop.value >= 0 else "gains"
        return (
            f"{subject} reaches {figure(top1.value, top1.unit)} top-1 and {change} {abs(drop.value):.2f} points "
            f"{_spread(drop)}against the teacher, on {top1.n} images of {top1.data}"
        )
    agreement = report.metric(kinds.AGREEMENT.name, subject)
    if agreement is not None and agreement.value is not None:
        return (
            f"{subject} agrees with the teacher on {figure(agreement.value, agreement.unit)} of {agreement.n} images "
            f"of {agreement.data}"
        )
    return ""


def _spread(drop: kinds.Metric) -> str:
    """Say between what the drop on other such images lies; of a report without an interval, its standard error."""
    if drop.low is not None and drop.high is not None:
        low, high = drop.low, drop.high
        if low >= 0:
            return f"(with 95 % between {low:.2f} and {high:.2f}) "
        if high <= 0:
            return f"(with 95 % between {-high:.2f} and {-low:.2f}) "
        return f"(with 95 % between losing {high:.2f} and gaining {-low:.2f}) "
    return f"(standard error {_seen(drop.stderr, 2)}) " if drop.stderr else ""


def _seen(stderr: float, decimals: int | None) -> str:
    """Return a standard error to so many decimals, or to one digit where these are all 0."""
    text = f"{stderr:.{decimals}f}"
    return text if float(text) else f"{stderr:.1g}"


def integers(report: Report) -> str:
    """Say how many layers ran in integer kernels; "" where nobody asked."""
    integer, floats = report.precision.get("integer"), report.precision.get("float")
    if not isinstance(integer, int) or not isinstance(floats, int):
        return ""
    return f"{integer} of {integer + floats} layers run in integer kernels"


def _group(name: str, data: str, n: int, members: Mapping[str, kinds.Metric], floors: Sequence[Floor]) -> MetricGroup:
    teacher = members.get(TEACHER)
    better = next((m.higher_is_better for m in members.values() if m.higher_is_better is not None), None)
    return MetricGroup(
        name=name,
        title=title_of(name),
        data=data,
        n=n,
        direction="" if better is None else ("higher is better" if better else "lower is better"),
        cells={subject: _cell(metric, teacher, floors) for subject, metric in members.items()},
    )


def _cell(metric: kinds.Metric, teacher: kinds.Metric | None, floors: Sequence[Floor]) -> Figure:
    number, _, unit = figure(metric.value, metric.unit, metric.kind).partition(" ")
    stderr = ""
    if metric.stderr and metric.value is not None:  # none at all, of so many images, tells nothing
        decimals = len(number.partition(".")[2]) if "e" not in number else None
        short = decimals is None or metric.kind.significant is not None
        stderr = f"{metric.stderr:.2g}" if short else _seen(metric.stderr, decimals)
    return Figure(
        number=number,
        stderr=stderr,
        unit=unit,
        gap=gap(metric, teacher),
        floor=_floor(metric, floors),
        interval=interval_text(metric),
    )


def interval_text(metric: kinds.Metric) -> str:
    """Return the interval of 95 % in brackets, with as many decimals as the kind has; "" where there is none."""
    if metric.low is None or metric.high is None:
        return ""
    ends = (figure(end, metric.unit, metric.kind).removesuffix(f" {metric.unit}") for end in (metric.low, metric.high))
    return f"[{', '.join(ends)}]"


def _floor(metric: kinds.Metric, floors: Sequence[Floor]) -> str:
    floor = floor_of(metric, floors)
    if floor is None or metric.value is None:
        return ""
    holds = metric.value >= floor.value if metric.higher_is_better else metric.value <= floor.value
    side = "at least" if metric.higher_is_better else "at most"
    return f"{side} {floor.value:g} promised: {'holds' if holds else 'does not hold'}"


def title_of(name: str) -> str:
    """Return a metric's name for readers."""
    kind = kinds.find_kind(name)
    return kind.title if kind is not None else name


def estimate_sentence(estimate: Mapping[str, Any]) -> str:
    """Say what the drop on real images is estimated to be, or why it is not; "" where nothing was estimated."""
    if not estimate:
        return ""
    value, low, high = (estimate.get(key) for key in ("value", "low", "high"))
    if not all(isinstance(number, int | float) for number in (value, low, high)):
        return f"No estimate of the drop on real images: {estimate.get('reason') or 'the report gives no reason'}"
    share = estimate.get("confidence")
    confidence = f", an interval that holds in {100 * share:.0f} % of cases" if isinstance(share, float) else ""
    return (
        f"Without labels, from {estimate.get('n', '?')} synthetic images: top-1 on real images falls by {value:.2f} "
        f"points [{low:.2f}, {high:.2f}]{confidence}."
    )
