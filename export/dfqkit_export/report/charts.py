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
from dfqkit_export.report.rows import figure
from dfqkit_export.report.svg import Axis, columns, line, picture, rows, tick

Points = list[tuple[float, float]]

_WIDTH, _HEIGHT = 320, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 22
#: Of a number beside an axis.
_LETTERS = 7
_MAX_POINTS = 240
_WIDE = 640
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


def interval_chart(estimate: Mapping[str, Any], measured: Metric | None) -> str:
    """Draw an estimated drop with its interval, and the measured one where there is one, on a common axis in points.

    Nothing is drawn where `value`, `low` or `high` of the estimate is missing.
    """
    numbers = [_number(estimate.get(key)) for key in ("low", "value", "high")]
    low, value, high = numbers
    if low is None or value is None or high is None:
        return ""
    truth = None if measured is None else _number(measured.value)
    first, last = _span([0.0, low, high, *([truth] if truth is not None else [])])
    margin = 0.05 * (last - first)
    axis = Axis(low=first - margin, high=last + margin, start=_RIGHT, end=_WIDE - _RIGHT)
    ends = dict.fromkeys((first, last))
    drawn = (
        line("grid", _RIGHT, 46, _WIDE - _RIGHT, 46)
        + line("grid", axis(0.0), 12, axis(0.0), 46)
        + line("curve", axis(low), 24, axis(high), 24)
        + f'<circle class="dot" cx="{axis(value):.1f}" cy="24" r="4.5"><title>estimated {value:.2f}</title></circle>'
    )
    key = "dot: estimated, with its interval"
    if truth is not None:
        x = axis(truth)
        drawn += (
            f'<path class="curve c1" d="M{x - 5:.1f} 33l10 10m0 -10l-10 10"><title>measured {truth:.2f}</title></path>'
        )
        key += "; cross: measured on labelled images"
    label = f"Estimated drop {value:.2f} points, interval {low:.2f} to {high:.2f}"
    label += "" if truth is None else f", measured {truth:.2f}"
    marks = columns(axis, ends, top=0, bottom=0, y=62, text="{:.2f}".format)
    return (
        f'<figure class="chart"><figcaption>Drop in points <span class="quiet">{key}</span></figcaption>'
        f"{picture(_WIDE, 66, label, drawn + marks)}</figure>"
    )


def points_chart(parts: Breakdown) -> str:
    """Draw a point for each part of a metric, by the two columns that it names; nothing where few have both."""
    places = [parts.header.index(name) for name in parts.plot]
    found = {str(row[0]): [_number(_read(row[place])) for place in places] for row in parts.rows}
    points = {name: (x, y) for name, (x, y) in found.items() if x is not None and y is not None}
    if len(points) < 2:
        return ""
    (low_x, high_x), (low_y, high_y) = map(_span, map(list, zip(*points.values(), strict=True)))
    across = Axis(low=low_x, high=high_x, start=_LEFT, end=_WIDE - _RIGHT)
    up = Axis(low=low_y, high=high_y, start=_HEIGHT - _BOTTOM, end=_TOP)
    dots = "".join(
        f'<circle class="dot" cx="{across(x):.1f}" cy="{up(y):.1f}" r="4"><title>{escape(name)}</title></circle>'
        for name, (x, y) in points.items()
    )
    grid = rows(up, (high_y, (low_y + high_y) / 2, low_y), left=_LEFT, right=_WIDE - _RIGHT, text=_text)
    grid += columns(across, (low_x, high_x), top=0, bottom=0, y=_HEIGHT - 5, text=_text)
    label = f"{parts.plot[1]} by {parts.plot[0]}"
    drawn = picture(_WIDE, _HEIGHT, f"{parts.title}: {label}", grid + dots)
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
