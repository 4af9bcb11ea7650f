"""Axes and marks of plots as inline SVG, which reports and comparisons of synthesizers draw with.

What belongs here: geometry and markup of one plot. What is plotted belongs to `charts` and to whoever else plots;
colours come from the page's stylesheet. Text is escaped by who gives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

_LARGEST = 1.4  # so much larger than drawn, beside whose letters the page's look small
_TICKS = (1, 2, 5)
#: Width of a letter and height of a line, in pixels, about.
LETTER, _LINE = 6.0, 11


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Where numbers from `low` to `high` lie along one side of a plot, whose coordinates run from `start` to `end`.

    Places follow the logarithm where `log` is set.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return a number's coordinate; those beyond the ends lie at the ends."""
        inside = min(max(value, self.low), self.high)
        share = (
            math.log(inside / self.low) / math.log(self.high / self.low)
            if self.log
            else (inside - self.low) / (self.high - self.low)
        )
        return self.start + (self.end - self.start) * share

    def ticks(self) -> list[float]:
        """Return round numbers between the ends: 1, 2 and 5 times powers of ten on a logarithmic axis."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [first * 10.0**power for power in powers for first in _TICKS]
            return [value for value in found if self.low <= value <= self.high]
        step = nice_step(self.high - self.low)
        first, last = math.ceil(self.low / step), math.floor(self.high / step + 1e-9)
        return [count * step for count in range(first, last + 1)]


def nice_step(span: float) -> float:
    """Return a tick distance of 1, 2 or 5 times a power of ten that gives four to ten ticks."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 10)


def columns(
    axis: Axis, values: Iterable[float], *, top: float, bottom: float, y: float, text: Callable[[float], str]
) -> str:
    """Draw vertical grid lines with their numbers below, on the base line `y`; no lines where `top` equals `bottom`."""
    parts = []
    for value in values:
        x = axis(value)
        parts += [line("grid", x, top, x, bottom)] if top != bottom else []
        parts.append(tick(x, y, text(value), anchor="middle"))
    return "".join(parts)


def rows(axis: Axis, values: Iterable[float], *, left: float, right: float, text: Callable[[float], str]) -> str:
    """Draw horizontal grid lines with their numbers to the left."""
    parts = []
    for value in values:
        y = axis(value)
        parts += [line("grid", left, y, right, y), tick(left - 6, y + 3.5, text(value), anchor="end")]
    return "".join(parts)


def line(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """Draw a straight line."""
    return f'<line class="{css}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def tick(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    """Write a small text; `anchor` says which end of it lies at `x`."""
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}"{where}>{text}</text>'


def named_points(points: Iterable[tuple[float, float, str]], width: float) -> tuple[str, float]:
    """Mark points with their names beside them, no name on another; return the lowest place, too.

    Args:
        points: Coordinates, and a name; those that come first keep their places.
        width: Of the picture: names stand on the side with more room, and are cut where that is too little.
    """
    taken: list[tuple[float, float, float]] = []
    parts = []
    for x, y, name in points:
        before, most = x > width / 2, int((max(x, width - x) - 6) / LETTER)
        shown = name if len(name) <= most else f"{name[: most - 1]}…"
        span, place = LETTER * len(shown), y
        start = x - 6 - span if before else x + 6
        while any(abs(place - other) < _LINE and start < end and begin < start + span for begin, end, other in taken):
            place += _LINE
        taken.append((start, start + span, place))
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(name)}</title></circle>')
        where = (x - 6, "end") if before else (x + 6, "start")
        parts.append(tick(where[0], place + 3.5, escape(shown), anchor=where[1]))
    return "".join(parts), max((place for *_, place in taken), default=0.0)


def picture(width: float, height: float, label: str, body: str) -> str:
    """Frame a plot, with a text for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{_LARGEST * width:.0f}px" role="img" '
        f'aria-label="{escape(label, quote=True)}">{body}</svg>'
    )
