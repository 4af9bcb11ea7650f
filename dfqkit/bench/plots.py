"""Plots of a comparison as inline SVG: drops with their spread, and accuracy against cost.

What belongs here: what is drawn where; axes are `dfqkit_export.report.svg`'s. Every mark carries its name as text, none
is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dfqkit_export.measure.kinds import TOP1, TOP1_DROP
from dfqkit_export.report import svg
from dfqkit_export.report.svg import Axis, line, picture, tick

_WIDTH = 400
_ROW = 22
_RIGHT = 48
_SCATTER_HEIGHT = 240


def drop_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw one line a source: the mean drop, its standard deviation over seeds, and every seed.

    The axis ends at the largest drop of the better half times three, so that one failure does not flatten the rest;
    what lies beyond is drawn at the edge with its number.
    """
    drops = [row[TOP1_DROP.name] for row in rows]
    means = sorted(drop["mean"] for drop in drops)
    low = min(0.0, means[0])
    high = max(3 * means[len(means) // 2], 0.5)
    if means[-1] <= 1.5 * high:
        high = max(high, means[-1])
    top, height = 8, 8 + _ROW * len(rows) + 26
    left = 12 + svg.LETTER * max(len(str(row["contestant"])) for row in rows)
    x = Axis(low=low, high=high, start=min(left, _WIDTH / 2), end=_WIDTH - _RIGHT)
    ticks = x.ticks()
    parts = [
        svg.columns(x, ticks[:: 1 + len(ticks) // 6], top=top, bottom=height - 24, y=height - 10, text="{:g}".format)
    ]
    for index, (row, drop) in enumerate(zip(rows, drops, strict=True)):
        mean, spread, y = drop["mean"], drop["stdev"] or 0.0, top + _ROW * (index + 0.5)
        parts.append(tick(x.start - 8, y + 3.5, _name(row), anchor="end"))
        parts += [line("curve", x(mean - spread), y, x(mean + spread), y)] if spread else []
        parts += [f'<circle class="seed" cx="{x(value):.1f}" cy="{y:.1f}" r="2.2"/>' for value in drop["values"]]
        parts.append(
            f'<circle class="dot" cx="{x(mean):.1f}" cy="{y:.1f}" r="4"/>'
            if mean <= high
            else f'<path class="dot" d="M{x(high) - 5:.1f},{y - 5:.1f} l9,5 l-9,5 z"/>'
        )
        parts.append(tick(_WIDTH - _RIGHT + 10, y + 3.5, f"{mean:.2f}"))
    label = "; ".join(f"{row['contestant']} {drop['mean']:.2f}" for row, drop in zip(rows, drops, strict=True))
    return picture(_WIDTH, height, f"Drop in points: {label}", "".join(parts))


def cost_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw accuracy in the runtime against wall time of synthesis and game, a mark a source, time on a log scale.

    Each mark has its name beside it. Sources that fall out of the picture at the bottom are drawn at its edge.
    """
    points = [
        (max(row["synthesis_seconds"]["mean"] + row["game_seconds"]["mean"], 0.1), row[TOP1.name], row) for row in rows
    ]
    times, values = [point[0] for point in points], sorted(point[1]["mean"] for point in points)
    top = max(found["mean"] + (found["stdev"] or 0.0) for _, found, _ in points)
    floor = min(values[len(values) // 2] - 2 * max(top - values[len(values) // 2], 0.1), top - 0.5)
    low = min(max(values[0], floor), top - 0.5)
    margin = 0.08 * (top - low)
    left, right, bottom, above = 40, 24, 34, 10
    x = Axis(low=min(times) / 1.5, high=max(times) * 1.5, start=left, end=_WIDTH - right, log=True)
    y = Axis(low=low - margin, high=top + margin, start=_SCATTER_HEIGHT - bottom, end=above)
    parts = [
        svg.rows(y, y.ticks(), left=left, right=_WIDTH - right, text="{:.6g}".format),
        svg.columns(x, x.ticks(), top=0, bottom=0, y=_SCATTER_HEIGHT - 12, text="{:g} s".format),
    ]
    best = sorted(points, key=lambda point: -point[1]["mean"])
    for seconds, found, _ in best:
        ends = [y(found["mean"] + sign * (found["stdev"] or 0.0)) for sign in (1, -1)]
        parts.append(line("curve", x(seconds), ends[0], x(seconds), ends[1]))
    marks = [(x(seconds), y(found["mean"]), str(row["contestant"])) for seconds, found, row in best]
    drawn, lowest = svg.named_points(marks, _WIDTH)
    label = "; ".join(f"{row['contestant']} {found['mean']:.2f} % in {time:.0f} s" for time, found, row in points)
    height = max(_SCATTER_HEIGHT, int(lowest) + 12)
    return picture(_WIDTH, height, f"Top-1 against wall time: {label}", "".join([*parts, drawn]))


def _name(row: Mapping[str, Any]) -> str:
    return escape(str(row["contestant"]))
