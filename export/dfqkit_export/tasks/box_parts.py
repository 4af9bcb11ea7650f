"""A detector's boxes beside the teacher's, taken apart by class and by size, and those at the threshold counted.

What belongs here: which boxes are of a part, and what is counted of it. Which boxes match is `boxes`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.measure.breakdown import Breakdown
from dfqkit_export.tasks.base import Outputs
from dfqkit_export.tasks.boxes import Boxes, Places, areas, matched, of_some
from dfqkit_export.tasks.decoding import decoded
from dfqkit_export.tasks.parameters import DetectionParameters

Mask = NDArray[np.bool_]
Row = tuple[str | int | float | None, ...]

#: Sides of squares between which boxes are small, medium and large, in pixels, as in COCO.
SIZES: Mapping[str, tuple[float, float]] = {
    "small, below 32 x 32": (0, 32**2),
    "medium, up to 96 x 96": (32**2, 96**2),
    "large": (96**2, np.inf),
}
_HEADER = ("boxes", "teacher's", "AP50, %", "gone", "of these near", "new", "of these near")
_NOTE = (
    "AP50 of the file's boxes with the teacher's as truth, of each class that has boxes, the worst first, and by size. "
    "Those that are gone or new near the threshold have a partner on the other side, scored between {floor:g} and "
    "{threshold:g}; the others have none."
)


def pixels_of(task: DetectionParameters) -> int:
    """Return by what areas in a network's unit become pixels."""
    return task.size[0] * task.size[1] if task.unit == "image" else 1


def sized(task: DetectionParameters, boxes: Boxes, bounds: tuple[float, float]) -> Mask:
    """Return which boxes have an area within bounds in pixels, the upper one exclusive, (K,)."""
    area = areas(boxes.box) * pixels_of(task)
    return np.asarray((bounds[0] <= area) & (area < bounds[1]))


@dataclass(frozen=True, kw_only=True)
class _Sides:
    """Boxes of both sides: the teacher's and the file's of the threshold, and those from the floor on of the file."""

    truth: Boxes
    found: Boxes
    above: Boxes
    pairs: tuple[Places, Places]
    gone: Mask
    gone_below: Mask
    new: Mask
    new_below: Mask

    def counted(self, truth: Mask, found: Mask, above: Mask) -> tuple[int, float | None, int, int, int, int]:
        value = of_some(self.truth, self.found, self.pairs, truth, found).precision()
        gone, new = self.gone & truth, self.new & above
        return (
            int(truth.sum()),
            None if value is None else 100 * value,
            int(gone.sum()),
            int((gone & self.gone_below).sum()),
            int(new.sum()),
            int((new & self.new_below).sum()),
        )


def parts_of_boxes(
    task: DetectionParameters, reference: Outputs, outputs: Outputs, *, subject: str, data: str
) -> Breakdown | None:
    """Return AP50 beside the teacher by class and size, and how many boxes came, went, and crossed the threshold.

    None where neither side has a box. Classes are counted without the background.
    """
    sides = _sides(task, reference, outputs)
    rows = [row for row in _rows(task, sides) if any(row[1:])]
    if not rows:
        return None
    note = _NOTE.format(floor=task.floor, threshold=task.threshold)
    return Breakdown(
        title="Boxes by class and size", note=note, subject=subject, data=data, header=_HEADER, rows=tuple(rows)
    )


def _rows(task: DetectionParameters, sides: _Sides) -> Iterator[Row]:
    truth, found, above = sides.truth, sides.found, sides.above
    for name, bounds in SIZES.items():
        yield (name, *sides.counted(*(sized(task, boxes, bounds) for boxes in (truth, found, above))))
    kinds = np.unique(np.concatenate([truth.kind, above.kind])).tolist()
    each = {kind: sides.counted(*(boxes.kind == kind for boxes in (truth, found, above))) for kind in kinds}
    # A class of which the teacher has no box has no precision, and is as wrong as can be.
    for kind in sorted(each, key=lambda kind: (each[kind][1] or 0.0, -each[kind][0])):
        yield (f"class {kind}", *each[kind])


def _sides(task: DetectionParameters, reference: Outputs, outputs: Outputs) -> _Sides:
    truth, found = decoded(task, reference, task.threshold), decoded(task, outputs, task.floor)
    above = found.above(task.threshold)
    pairs, lower = matched(truth, found), matched(decoded(task, reference, task.floor), above)
    order, partner = matched(truth, above)
    return _Sides(
        truth=truth,
        found=found,
        above=above,
        pairs=pairs,
        gone=~_partnered(len(truth), partner),
        gone_below=_partnered(len(truth), pairs[1]),
        new=~_partnered(len(above), order[partner >= 0]),
        new_below=_partnered(len(above), lower[0][lower[1] >= 0]),
    )


def _partnered(count: int, places: Places) -> Mask:
    found = np.zeros(count, bool)
    found[places[places >= 0]] = True
    return found
