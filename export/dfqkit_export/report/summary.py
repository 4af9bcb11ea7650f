"""A report in five lines: verdict, what was lost, speed, size, and where the files are.

What belongs here: what is worth a line. Warnings and what does not hold stand with them, since nobody may miss those.
"""

from __future__ import annotations

from dfqkit_export.measure.kinds import LATENCY, SIZE, SPEEDUP, TOP1_DROP, known_kinds
from dfqkit_export.report.document import Report
from dfqkit_export.report.rows import TEACHER, MetricGroup, head_note, integers, main_subject, metric_groups, title_of
from dfqkit_export.report.verdict import FAILED, NOT_JUDGED


def summary(report: Report, place: str = "", model: str = "model.onnx") -> list[str]:
    """Return the five lines, after the warnings of a report and, where it is not ok, followed by its reasons.

    Args:
        report: What was measured.
        place: The folder of its files; the last line is left out without one.
        model: The file that it is about.

    Example:
        >>> summary(Report(title="net", reasons=["nothing was lost"]))[0]
        'OK      net: nothing was lost'
    """
    groups = {group.name: group for group in reversed(metric_groups(report)) if main_subject(report) in group.cells}
    page = model.replace("model", "report").replace(".onnx", ".html")
    return [
        *(f"WARNING {warning}" for warning in report.warnings),
        f"{report.verdict.upper():<7} {report.title}: {_why(report)}",
        *(f"  - {finding.message}" for finding in report.findings),
        *filter(None, [head_note(report), _kept(report, groups), _speed(report, groups), _size(report, groups)]),
        *([f"files   {place}: {model}, {page}, recipe.yaml"] if place else []),
    ]


def _why(report: Report) -> str:
    if report.verdict == FAILED:
        return f"{len(report.findings)} of its checks {'does' if len(report.findings) == 1 else 'do'} not hold"
    if report.reasons:
        return report.reasons[0]
    return "nothing could judge it" if report.verdict == NOT_JUDGED else "all checks hold"


def _kept(report: Report, groups: dict[str, MetricGroup]) -> str:
    """Return the first of the figures at a report's head that it has."""
    name = next((kind.name for kind in known_kinds() if kind.headline and kind.name in groups), None)
    if name is None:
        return ""
    group = groups[name]
    head = "drop" if name == TOP1_DROP.name else "kept"
    what = "" if name == TOP1_DROP.name else f"{title_of(name)}: "
    unit = "layers" if group.data == "" else f"images of {group.data}"
    return f"{head:<7} {what}{group.cells[main_subject(report)]}, on {group.n:,} {unit}"


def _speed(report: Report, groups: dict[str, MetricGroup]) -> str:
    told = _told(report, groups, SPEEDUP.name)
    call = _told(report, groups, LATENCY.name)
    parts = [told and f"{told} of the float file", call and f"{call} a call"]
    return f"{'speed':<7} {', '.join(filter(None, parts))}" if told or call else ""


def _size(report: Report, groups: dict[str, MetricGroup]) -> str:
    group = groups.get(SIZE.name)
    cell = group.cells.get(main_subject(report)) if group else None
    size = [str(cell), cell.gap] if cell else []
    parts = ", ".join(filter(None, size))
    return "; ".join(filter(None, [f"{SIZE.name:<7} {parts}" if parts else "", integers(report)]))


def _told(report: Report, groups: dict[str, MetricGroup], name: str) -> str:
    group = groups.get(name)
    subject = main_subject(report)
    return str(group.cells[subject]) if group and subject in group.cells and subject != TEACHER else ""
