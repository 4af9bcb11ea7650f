"""What a network's answer looks like on its image: boxes, a mask, points, text, or a map.

What belongs here: the values that tasks give and reports draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The answer to one image, in shares of its width and height.

    Attributes:
        boxes: Corners x1, y1, x2, y2, a number for the colour, and what is written beside it.
        points: x, y.
        mask: The class of each position, int (h, w), 0 for nothing.
        field: A number for each position, (h, w).
        text: A line.
    """

    boxes: tuple[tuple[tuple[float, float, float, float], int, str], ...] = ()
    points: tuple[tuple[float, float], ...] = ()
    mask: NDArray[Any] | None = None
    field: NDArray[Any] | None = None
    text: str | None = None
