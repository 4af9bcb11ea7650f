"""Contact sheets: what a set looks like, one row a group, with how sure the teacher is of each image.

What belongs here: which images are shown and how the sheet is drawn. Works without torch.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.images.readers import spread
from dfqkit_export.images.stored import Codes, StoredBank
from dfqkit_export.tasks.answering import grouped

#: Ink, faint ink and paper: of a picture by itself, and of one that lies on a page, which may be light or dark.
_OPAQUE = ((30, 30, 30), (150, 150, 150), (255, 255, 255))
_CLEAR = ((125, 125, 125, 255), (125, 125, 125, 150), (0, 0, 0, 0))
LINE, MARGIN, GAP = 12, 84, 2  # pixels: a line of text, the column of names, between images


@dataclass(frozen=True, kw_only=True)
class SheetForm:
    """How large a sheet is."""

    columns: int = 16  # images of a row, at the most, evenly spread over those there are
    rows: int = 50  # groups (classes); of more, those with the most images and those with the fewest are shown
    least: int = 48  # side in pixels that small images are enlarged to, in whole steps
    most: int = 112  # side in pixels that large images are reduced to
    clear: bool = False  # no paper, and letters that can be read on white and on black


def contact_sheet(images: StoredBank, form: SheetForm | None = None) -> bytes:
    """Draw a sheet as PNG: a row for each group, with the confidence below each image.

    Where there are more groups than rows, those without images have none.

    Of images that are neither grey nor RGB, `shown` says which channels are drawn, on the sheet's last line.
    """
    from PIL import Image, ImageDraw, ImageFont

    form = form or SheetForm()
    told = shown(images.spec.shape[0])
    groups = grouped(images)
    counts, confidence = groups.counts, groups.confidence
    height, width, scale = _cell(images.spec.shape, form)
    rows = _rows(counts, form.rows)
    tall, wide = height + LINE + GAP, width + GAP
    ink, faint, paper = _CLEAR if form.clear else _OPAQUE
    size = (MARGIN + form.columns * wide, len(rows) * tall + (LINE if told else 0))
    sheet = Image.new("RGBA" if form.clear else "RGB", size, paper)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for row, label in enumerate(rows):
        top = row * tall
        if label is None:
            draw.text((4, top + height // 2), f"{len(counts) - len(rows) + 1} more {groups.many}", faint, font)
            continue
        places = np.flatnonzero(groups.of == label)
        lines = [f"{groups.one} {label}"] if groups.one else []
        lines.append(f"{len(places)} image{'' if len(places) == 1 else 's'}")
        if confidence is not None:
            lines.append(f"mean p {confidence[places].mean():.2f}" if len(places) else "none")
        text = "\n".join(lines)
        draw.multiline_text((4, top + 2), text, ink if len(places) else faint, font, spacing=2)
        chosen = places[spread(len(places), form.columns)] if len(places) else places
        for column, code in enumerate(images.take(chosen.tolist())[0]):
            left = MARGIN + column * wide
            sheet.paste(_picture(code, scale, (width, height)), (left, top))
            if confidence is not None:
                draw.text((left, top + height), f"{confidence[chosen[column]]:.2f}", ink, font)
    if told:
        draw.text((4, len(rows) * tall), told, ink, font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def shown(channels: int) -> str:
    """Return what a picture of images with so many channels shows of them; empty where it shows all as they are.

    Example:
        >>> shown(3), shown(13)
        ('', 'false colour: channels 1, 2, 3 of 13 as red, green, blue')
    """
    if channels in (1, 3):
        return ""
    if channels == 2:
        return "grey: channel 1 of 2"
    return f"false colour: channels 1, 2, 3 of {channels} as red, green, blue"


def _cell(shape: tuple[int, int, int], form: SheetForm) -> tuple[int, int, int]:
    """Height and width of an image on the sheet, and the whole steps by which it is enlarged (0: it is reduced)."""
    _, height, width = shape
    if max(height, width) > form.most:
        share = form.most / max(height, width)
        return max(1, round(height * share)), max(1, round(width * share)), 0
    scale = max(1, min(math.ceil(form.least / width), form.most // max(height, width)))
    return height * scale, width * scale, scale


def _rows(counts: NDArray[Any], most: int) -> list[int | None]:
    """Return groups from top to bottom; None where some are left out."""
    if len(counts) <= most:
        return list(range(len(counts)))
    order = [group for group in np.argsort(-counts, kind="stable").tolist() if counts[group]]
    if len(order) < most:
        return [*order, None]
    ends = max(most - 1, 2)
    return [*order[: (ends + 1) // 2], None, *order[len(order) - ends // 2 :]]


def _picture(code: Codes, scale: int, size: tuple[int, int]) -> Any:
    from PIL import Image

    pixels = code[0] if len(code) < 3 else code[:3].transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    return picture.resize(size, Image.Resampling.NEAREST if scale else Image.Resampling.BOX)
