"""Plots of a comparison as inline SVG: drops with their spread, and accuracy against cost.

What belongs here: geometry. Colours come from the page's stylesheet; every mark carries its name as text, none is told
by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH = 640
_ROW = 22
_LEFT, _RIGHT = 150, 70
_SCATTER_HEIGHT = 300
_TICKS = (1, 2, 5)


def drop_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a source: the mean drop, its standard deviation over seeds, and every seed.

    The axis ends at the largest drop of the better half times three, so that one failure does not flatten the rest;
    what lies beyond is drawn at the edge with its number.
    """
    means = sorted(row["top1_drop"]["mean"] for row in rows)
    low = min(0.0, means[0])
    high = max(3 * means[len(means) // 2], 0.5)
    if means[-1] <= 1.5 * high:
        high = max(high, means[-1])
    step = nice_step(high - low)
    top, height = 8, 8 + _ROW * len(rows) + 26

    def x(value: float) -> float:
        inside = min(max(value, low), high)
        return float(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (inside - low) / (high - low))

    parts = []
    tick = math.ceil(low / step) * step
    while tick <= high + 1e-9:
        parts.append(
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height - 24}"/>'
            f'<text class="tick" x="{x(tick):.1f}" y="{height - 10}" text-anchor="middle">{tick:g}</text>'
        )
        tick += step
    for index, row in enumerate(rows):
        drop, y = row["top1_drop"], top + _ROW * (index + 0.5)
        spread = drop["stdev"] or 0.0
        label = f"{_name(row)} {index + 1}"  # the number stands in the other plot
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
        if spread:
            parts.append(
                f'<line class="curve" x1="{x(drop["mean"] - spread):.1f}" x2="{x(drop["mean"] + spread):.1f}" '
                f'y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        parts += [f'<circle class="seed" cx="{x(value):.1f}" cy="{y:.1f}" r="2.2"/>' for value in drop["values"]]
        shape = (
            f'<circle class="dot" cx="{x(drop["mean"]):.1f}" cy="{y:.1f}" r="4"/>'
            if drop["mean"] <= high
            else f'<path class="dot" d="M{x(high) - 5:.1f},{y - 5:.1f} l9,5 l-9,5 z"/>'
        )
        parts.append(
            f'{shape}<text class="tick" x="{_WIDTH - _RIGHT + 10}" y="{y + 3.5:.1f}">{drop["mean"]:.2f}</text>'
        )
    label = "; ".join(f"{row['contestant']} {row['top1_drop']['mean']:.2f}" for row in rows)
    return _svg(height, f"Drop in points: {label}", "".join(parts))


def cost_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy in the runtime against wall time of synthesis and game, a mark a source, time on a log scale.

    Marks carry the number of their line in `drop_plot`. Sources that fall out of the picture at the bottom are drawn at
    its edge.
    """
    points = [
        (max(row["synthesis_seconds"]["mean"] + row["game_seconds"]["mean"], 0.1), row["top1"]["mean"], index, row)
        for index, row in enumerate(rows, 1)
    ]
    times, values = [point[0] for point in points], sorted(point[1] for point in points)
    low_x, high_x = min(times) / 1.5, max(times) * 1.5
    top = max(value + (row["top1"]["stdev"] or 0.0) for _, value, _, row in points)
    floor = min(values[len(values) // 2] - 2 * max(top - values[len(values) // 2], 0.1), top - 0.5)
    low_y = min(max(values[0], floor), top - 0.5)
    margin = 0.08 * (top - low_y)
    low_y, high_y = low_y - margin, top + margin
    left, right, bottom, above = 56, 90, 34, 10

    def place(seconds: float, value: float) -> tuple[float, float]:
        share = math.log(seconds / low_x) / math.log(high_x / low_x)
        y = above + (_SCATTER_HEIGHT - above - bottom) * (high_y - max(value, low_y)) / (high_y - low_y)
        return left + (_WIDTH - left - right) * share, y

    parts = []
    step = nice_step(high_y - low_y)
    tick = math.ceil(low_y / step) * step
    while tick <= high_y:
        y = place(low_x, tick)[1]
        parts.append(
            f'<line class="grid" x1="{left}" x2="{_WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:.6g}</text>'
        )
        tick += step
    for power in range(math.floor(math.log10(low_x)), math.ceil(math.log10(high_x)) + 1):
        for first in _TICKS:
            seconds = first * 10.0**power
            if low_x <= seconds <= high_x:
                x = place(seconds, low_y)[0]
                where = f'x="{x:.1f}" y="{_SCATTER_HEIGHT - 12}" text-anchor="middle"'
                parts.append(f'<text class="tick" {where}>{seconds:g} s</text>')
    taken: list[tuple[float, float]] = []
    for seconds, value, index, row in sorted(points, key=lambda point: -point[1]):
        x, y = place(seconds, value)
        spread = row["top1"]["stdev"] or 0.0
        if spread:
            ends = [place(seconds, value + sign * spread)[1] for sign in (1, -1)]
            parts.append(f'<line class="curve" x1="{x:.1f}" x2="{x:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>')
        text_y = y
        while any(abs(text_y - other_y) < 10 and abs(x - other_x) < 16 for other_x, other_y in taken):
            text_y += 10  # names must not lie on each other
        taken.append((x, text_y))
        parts.append(
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
            f'<text class="tick" x="{x + 6:.1f}" y="{text_y + 3.5:.1f}">{index}<title>{_name(row)}</title></text>'
        )
    label = "; ".join(f"{row['contestant']} {value:.2f} % in {seconds:.0f} s" for seconds, value, _, row in points)
    height = max(_SCATTER_HEIGHT, int(max(y for _, y in taken)) + 12)
    return _svg(height, f"Top-1 against wall time: {label}", "".join(parts))


def nice_step(span: float) -> float:
    """A tick distance of 1, 2 or 5 times a power of ten that gives four to ten ticks."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 10)


def _name(row: Mapping[str, Any]) -> str:
    return escape(str(row["contestant"]))


def _svg(height: float, label: str, body: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(label, quote=True)}">{body}</svg>'
