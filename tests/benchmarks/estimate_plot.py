"""A scatter plot of estimated against true drops, with intervals, as an SVG file of its own.

What belongs here: geometry and colours of that one picture, for a page that shows it in light or in dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SIDE, LEFT, BOTTOM, TOP, RIGHT = 460, 52, 44, 34, 16
TICKS = (-0.25, 0.0, 0.25, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0)
STYLE = """
svg { background: #fff; font: 12px system-ui, "Segoe UI", Arial, sans-serif }
text { fill: #333 } .quiet { fill: #767676 } .grid { stroke: #e4e4e4 } .even { stroke: #999; stroke-dasharray: 5 4 }
.a { --c: #0d6b53 } .b { --c: #b0561c } .c { --c: #46509e }
.bar { stroke: var(--c); stroke-opacity: .45; stroke-width: 1.4 }
.cell { fill: var(--c) } .fault { fill: #fff; stroke: var(--c); stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  svg { background: #16181c } text { fill: #ddd } .quiet { fill: #9a9a9a } .grid { stroke: #2c3036 }
  .even { stroke: #777 } .a { --c: #5fc4a3 } .b { --c: #e39a5f } .c { --c: #9aa5f0 } .fault { fill: #16181c }
}
"""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One file: where it lies, and how it is drawn."""

    name: str
    group: str
    fault: bool
    truth: float
    value: float
    low: float
    high: float


def scatter(points: Sequence[Point], *, title: str) -> str:
    """Draw estimates with their intervals over the truth, both on a square-root scale, in points.

    Args:
        points: Truths and values below the last tick.
        title: Stands above, and is what a screen reader says.
    """
    groups = list(dict.fromkeys(point.group for point in points))
    parts = [*_axes(), *_legend(groups)]
    low, high = _x(TICKS[0]), _x(TICKS[-1])
    parts.append(f'<line class="even" x1="{low}" y1="{_y(TICKS[0])}" x2="{high}" y2="{_y(TICKS[-1])}"/>')
    for point in points:
        x, colour = _x(max(point.truth, TICKS[0])), "abc"[groups.index(point.group) % 3]
        ends = (_y(max(point.low, TICKS[0])), _y(min(point.high, TICKS[-1])))
        kind = "fault" if point.fault else "cell"
        words = f"{point.group}, {point.name}: true {point.truth:.2f}, estimated {point.value:.2f} points"
        parts.append(
            f'<g class="{colour}"><title>{escape(words)}</title>'
            f'<line class="bar" x1="{x}" x2="{x}" y1="{ends[0]}" y2="{ends[1]}"/>'
            f'<circle class="{kind}" cx="{x}" cy="{_y(min(point.value, TICKS[-1]))}" r="3.4"/></g>'
        )
    label = escape(title, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE} {SIDE}" width="{SIDE}" role="img" '
        f'aria-label="{label}"><style>{STYLE}</style><text x="{LEFT}" y="20">{escape(title)}</text>'
        f"{''.join(parts)}</svg>\n"
    )


def _axes() -> list[str]:
    parts = []
    for tick in TICKS:
        x, y, text = _x(tick), _y(tick), f"{tick:g}"
        parts += [
            f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{SIDE - BOTTOM}"/>',
            f'<line class="grid" x1="{LEFT}" x2="{SIDE - RIGHT}" y1="{y}" y2="{y}"/>',
            f'<text class="quiet" x="{x}" y="{SIDE - BOTTOM + 16}" text-anchor="middle">{text}</text>',
            f'<text class="quiet" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{text}</text>',
        ]
    middle = (SIDE + LEFT - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{SIDE - 8}" text-anchor="middle">true drop of top-1, points</text>')
    turned = f'transform="translate(14 {(SIDE - BOTTOM + TOP) / 2}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">estimated without a label, points</text>')
    return parts


def _legend(groups: Sequence[str]) -> list[str]:
    parts = []
    for index, group in enumerate(groups):
        y = TOP + 16 + 18 * index
        parts.append(
            f'<g class="{"abc"[index % 3]}"><circle class="cell" cx="{LEFT + 14}" cy="{y}" r="3.4"/>'
            f'<circle class="fault" cx="{LEFT + 26}" cy="{y}" r="3.4"/></g>'
            f'<text x="{LEFT + 38}" y="{y + 4}">{escape(group)}: as made, broken on purpose</text>'
        )
    return parts


def _place(value: float) -> float:
    root = [math.copysign(math.sqrt(abs(v)), v) for v in (TICKS[0], value, TICKS[-1])]
    return (root[1] - root[0]) / (root[2] - root[0])


def _x(value: float) -> float:
    return round(LEFT + (SIDE - LEFT - RIGHT) * _place(value), 1)


def _y(value: float) -> float:
    return round(SIDE - BOTTOM - (SIDE - BOTTOM - TOP) * _place(value), 1)
