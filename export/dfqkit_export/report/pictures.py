"""Answers of teacher and file side by side, drawn on the images that they are of.

What belongs here: the drawing. What an answer consists of says its task (`Task.marks`). Pillow is imported inside.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.images.preprocess import pillow
from dfqkit_export.tasks import Marks

#: Least and largest side of one picture, in pixels, and the space between two.
_LEAST, _MOST, _GAP = 144, 320, 6
_COLOURS = ((230, 60, 50), (50, 120, 230), (40, 170, 90), (240, 160, 20), (160, 70, 200), (20, 170, 190))
_HEAD = 14


def side_by_side(images: NDArray[np.uint8], left: Sequence[Marks], right: Sequence[Marks]) -> bytes:
    """Return a PNG with a row for each image: its answer of the left side, and of the right.

    Args:
        images: uint8 (N, C, H, W), at least one.
        left: A set of marks an image.
        right: The same of the other side. Maps are drawn in the range of the left one.
    """
    library = pillow()
    rows = []
    for pixels, *both in zip(images, left, right, strict=True):
        field = both[0].field
        span = None if field is None else (float(field.min()), float(field.max()))
        rows.append([_drawn(library, pixels, marks, span) for marks in both])
    width, height = rows[0][0].size
    sheet = library.new("RGB", (2 * width + _GAP, len(rows) * (height + _GAP) - _GAP), (255, 255, 255))
    for place, pair in enumerate(rows):
        for side, picture in enumerate(pair):
            sheet.paste(picture, (side * (width + _GAP), place * (height + _GAP)))
    out = io.BytesIO()
    sheet.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _drawn(library: Any, pixels: NDArray[np.uint8], marks: Marks, span: tuple[float, float] | None) -> Any:
    from PIL import ImageDraw

    height, width = pixels.shape[1:]
    scale = min(max(1.0, _LEAST / max(height, width)), max(1.0, _MOST / max(height, width)))
    scale = min(scale, _MOST / max(height, width)) if max(height, width) > _MOST else scale
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    colour = pixels if len(pixels) == 3 else np.repeat(pixels[:1], 3, 0)
    picture = library.fromarray(np.ascontiguousarray(colour.transpose(1, 2, 0))).resize(size, 0)
    if marks.field is not None and span is not None:
        low, high = span
        grey = np.clip((marks.field - low) / ((high - low) or 1.0), 0, 1)
        picture = library.fromarray((255 * grey).astype(np.uint8)).resize(size, 0).convert("RGB")
    if marks.mask is not None:
        table = np.array([(0, 0, 0), *_COLOURS], np.uint8)
        kinds = np.where(marks.mask > 0, (marks.mask - 1) % len(_COLOURS) + 1, 0)
        over = library.fromarray(table[kinds]).resize(size, 0)
        there = library.fromarray(np.where(kinds > 0, 140, 0).astype(np.uint8)).resize(size, 0)
        picture.paste(over, (0, 0), there)
    draw = ImageDraw.Draw(picture)
    for (x1, y1, x2, y2), kind, said in marks.boxes:
        corners = [x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1]]
        if not (np.isfinite(corners).all() and x2 >= x1 and y2 >= y1):
            continue
        ink = _COLOURS[kind % len(_COLOURS)]
        draw.rectangle(corners, outline=ink, width=2)
        draw.text((max(0, corners[0]) + 3, max(0, corners[1]) + 2), said, fill=ink)
    for place, (x, y) in enumerate(marks.points):
        at, ink = (x * size[0], y * size[1]), _COLOURS[place % len(_COLOURS)]
        draw.ellipse([at[0] - 3, at[1] - 3, at[0] + 3, at[1] + 3], fill=ink)
    if marks.text is None:
        return picture
    whole = library.new("RGB", (size[0], size[1] + _HEAD), (255, 255, 255))
    whole.paste(picture, (0, _HEAD))
    # The built-in letters are Latin; what they lack is written by number.
    said = "".join(letter if ord(letter) < 256 else f"<{ord(letter):x}>" for letter in marks.text)
    ImageDraw.Draw(whole).text((2, 1), said, fill=(0, 0, 0))
    return whole
