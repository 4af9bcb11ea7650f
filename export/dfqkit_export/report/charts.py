"""Loss curves and an estimate's interval as inline SVG.

What belongs here: small multiples, one chart a loss term, because the terms have scales of their own, and a line with
an interval on it. Colours come from the page's stylesheet; members are told apart by dash pattern and a written label,
never by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dfqkit_export.measure.breakdown import Breakdown
from dfqkit_export.measure.kinds import Metric
from dfqkit_export.report.floors import Floor
from dfqkit_export.report.rows import figure
from dfqkit_export.report.svg import Axis, columns, line, named_points, picture, rows, tick

Points = list[tuple[float, float]]

_WIDTH, _HEIGHT = 320, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 22
#: Of a number beside an axis.
_LETTERS = 7
_MAX_POINTS = 240
#: Of what stands alone, with the room for the names of its rows and their height.
_WIDE, _NAMED, _ROW = 400, 70, 22
#: So many points have their names beside them.
_NAMES = 8
_DASHES = ("", "6 3", "2 3", "9 3 2 3")


def loss_charts(losses: Any, *, step: str = "round") -> list[str]:
    """Draw one chart for each loss term, in order of appearance, over what a step is called.

    Losses are a list of {"round": int, "terms": {name: value}}, each optionally with "member"; what does not have this
    form is left out.
    """
    if not isinstance(losses, Sequence):
        return []
    curves: dict[str, dict[str, Points]] = {}
    for entry in losses:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("terms"), Mapping):
            continue
        place, member = _number(entry.get("round")), str(entry.get("member", ""))
        for name, value in entry["terms"].items():
            number = _number(value)
            if place is not None and number is not None:
                curves.setdefault(str(name), {}).setdefault(member, []).append((place, number))
    return [_figure(name, members, step) for name, members in curves.items()]


def interval_chart(estimate: Mapping[str, Any], measured: Metric | None, floor: Floor | None = None) -> str:
    """Draw an estimated and a measured drop with their intervals on a common axis, and the most that was promised.

    What is missing is left out: an estimate without `value`, `low` or `high`, a metric without a value.
    """
    drops: dict[str, tuple[float, float, float]] = {}
    low, value, high = (_number(estimate.get(key)) for key in ("low", "value", "high"))
    if low is not None and value is not None and high is not None:
        drops["estimated"] = (low, value, high)
    if measured is not None and measured.value is not None:
        ends = [measured.value if end is None else end for end in (measured.low, measured.high)]
        drops["measured"] = (ends[0], measured.value, ends[1])
    if not drops:
        return ""
    first, last = _span(
        [0.0, *(number for drop in drops.values() for number in drop), *([floor.value] if floor else [])]
    )
    margin = 0.05 * (last - first)
    axis = Axis(low=first - margin, high=last + margin, start=_NAMED, end=_WIDE - _RIGHT)
    base = _ROW * len(drops) + 8
    drawn = line("grid", _NAMED, base, _WIDE - _RIGHT, base) + line("grid", axis(0.0), 4, axis(0.0), base)
    told = []
    for place, (name, (low, value, high)) in enumerate(drops.items()):
        y = _ROW * (place + 0.5)
        drawn += tick(_NAMED - 8, y + 3.5, name, anchor="end") + line("curve", axis(low), y, axis(high), y)
        drawn += f'<circle class="dot" cx="{axis(value):.1f}" cy="{y:.0f}" r="4.5"/>'
        told.append(f"{name} {value:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low < high else ""))
    if floor is not None:
        drawn += line("curve c1", axis(floor.value), 4, axis(floor.value), base)
        told.append(f"at most {floor.value:g} promised")
    marks = columns(axis, dict.fromkeys((first, last)), top=0, bottom=0, y=base + 14, text="{:.2f}".format)
    label = "; ".join(told)
    return (
        f'<figure class="chart"><figcaption>Drop in points <span class="quiet">{label}</span></figcaption>'
        f"{picture(_WIDE, base + 18, f'Drop in points: {label}', drawn + marks)}</figure>"
    )


def points_charts(parts: Breakdown) -> str:
    """Draw a point for each part of a metric, by the columns that it names; nothing where few have both."""
    *acrosses, up = (parts.header.index(name) for name in parts.plot)
    found = "".join(_points(parts, column, up) for column in acrosses)
    return f'<div class="charts">{found}</div>' if found else ""


def _points(parts: Breakdown, column: int, row: int) -> str:
    found = {str(cells[0]): (_number(_read(cells[column])), _number(_read(cells[row]))) for cells in parts.rows}
    points = {name: (x, y) for name, (x, y) in found.items() if x is not None and y is not None}
    if len(points) < 2:
        return ""
    (low_x, high_x), (low_y, high_y) = map(_span, map(list, zip(*points.values(), strict=True)))
    across = Axis(low=low_x, high=high_x, start=_LEFT, end=_WIDE - _RIGHT)
    up = Axis(low=low_y, high=high_y, start=_HEIGHT - _BOTTOM, end=_TOP)
    names = len(points) <= _NAMES
    dots, lowest = named_points(
        ((across(x), up(y), name if names else "") for name, (x, y) in sorted(points.items(), key=lambda p: p[1][1])),
        _WIDE,
    )
    grid = rows(up, (high_y, (low_y + high_y) / 2, low_y), left=_LEFT, right=_WIDE - _RIGHT, text=_text)
    grid += columns(across, (low_x, high_x), top=0, bottom=0, y=_HEIGHT - 5, text=_text)
    label = f"{parts.header[row]} by {parts.header[column]}"
    drawn = picture(_WIDE, max(_HEIGHT, lowest + 12), f"{parts.title}: {label}", grid + dots)
    return f'<figure class="chart"><figcaption>{escape(label)}</figcaption>{drawn}</figure>'


def _read(cell: str | int | float | None) -> Any:
    """Return a cell's number, which may be a text of fewer digits."""
    try:
        return float(cell) if isinstance(cell, str) else cell
    except ValueError:
        return None


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _figure(name: str, members: Mapping[str, Points], step: str) -> str:
    series = {member: _thin(sorted(points)) for member, points in members.items()}
    everything = [point for points in series.values() for point in points]
    first, last = min(x for x, _ in everything), max(x for x, _ in everything)
    low_x, high_x = _span([first, last])
    low_y, high_y = _span([y for _, y in everything])
    bottom = _HEIGHT - _BOTTOM
    across = Axis(low=low_x, high=high_x, start=_LEFT, end=_WIDTH - _RIGHT)
    up = Axis(low=low_y, high=high_y, start=bottom, end=_TOP)
    paths = [" ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points) for points in series.values()]
    lines = "".join(
        f'<polyline class="curve c{index % 4}" stroke-dasharray="{_DASHES[index % 4]}" '
        f'points="{path}"><title>{escape(member or name)}</title></polyline>'
        for index, (member, path) in enumerate(zip(series, paths, strict=True))
    )
    alone = everything if first == last else []  # a line of one point is nothing to see
    lines += "".join(f'<circle class="dot" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3"/>' for x, y in alone)
    heights = (high_y, (low_y + high_y) / 2, low_y)
    grid = rows(up, heights, left=_LEFT, right=_WIDTH - _RIGHT, text=_text)
    ends = tick(_LEFT, _HEIGHT - 5, _text(first)) if first != last else ""
    ends += tick(_WIDTH - _RIGHT, _HEIGHT - 5, f"{step} {_text(last)}", anchor="end")
    return (
        f'<figure class="chart"><figcaption>{escape(name)} <span class="quiet">{_ends(series)}</span></figcaption>'
        f"{picture(_WIDTH, _HEIGHT, f'{name}: {_summary(series)}', grid + ends + lines)}{_legend(series)}</figure>"
    )


def _thin(points: Points) -> Points:
    if len(points) <= _MAX_POINTS:
        return points
    step = (len(points) - 1) / (_MAX_POINTS - 1)
    return [points[round(index * step)] for index in range(_MAX_POINTS)]


def _span(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        return low - margin, high + margin
    return low, high


def _text(value: float) -> str:
    text = figure(int(value) if value == int(value) and abs(value) < 1e6 else float(f"{value:.3g}"))
    return text if len(text) <= _LETTERS else f"{value:.1e}"


def _summary(series: Mapping[str, Points]) -> str:
    texts = (f"{member or 'value'} from {p[0][1]:.4g} to {p[-1][1]:.4g}" for member, p in series.items())
    return "; ".join(texts)


def _ends(series: Mapping[str, Points]) -> str:
    if len(series) != 1:
        return f"{len(series)} members"
    points = next(iter(series.values()))
    return f"{_text(points[0][1])} → {_text(points[-1][1])}"


def _legend(series: Mapping[str, Points]) -> str:
    if len(series) < 2:
        return ""
    keys = "".join(
        f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><line class="curve c{index % 4}" '
        f'stroke-dasharray="{_DASHES[index % 4]}" x1="0" x2="24" y1="4" y2="4"/></svg>{escape(member)}</li>'
        for index, member in enumerate(series)
    )
    return f'<ul class="legend">{keys}</ul>'
