"""From a detector's outputs to boxes: every form that `DetectionParameters` names.

What belongs here: which numbers are a score and which a place. What is done with boxes is `boxes`.

The forms: distances from a position to four sides (FCOS, Tian et al. 2019), each as a distribution over bins (GFL, Li
et al. 2020, NanoDet), offsets and logarithmic sizes beside anchors divided by variances (SSD, Liu et al. 2016), and
corners or centres as they are.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.tasks.base import Outputs
from dfqkit_export.tasks.boxes import Boxes, Floats, Places, groups_of, suppressed
from dfqkit_export.tasks.measured import logit
from dfqkit_export.tasks.parameters import DetectionParameters

#: Candidates of an image before suppression, those of the highest scores: what no trained network reaches.
MOST = 2000


#: The last boxes that were asked for: what is measured of outputs asks for the same ones many times.
_LAST: deque[_Kept] = deque(maxlen=8)


@dataclass(frozen=True, eq=False)
class _Kept:
    """Boxes, and of what: the arrays while they are there, unchanged as far as a sum tells."""

    task: DetectionParameters
    floor: float
    arrays: tuple[weakref.ref[NDArray[Any]], ...]
    total: float
    boxes: Boxes

    def answers(self, task: DetectionParameters, floor: float, arrays: Sequence[NDArray[Any]], total: float) -> bool:
        same = len(arrays) == len(self.arrays) and all(
            ref() is array for ref, array in zip(self.arrays, arrays, strict=True)
        )
        return same and (self.floor, self.total) == (floor, total) and self.task == task


def decoded(task: DetectionParameters, outputs: Outputs, floor: float) -> Boxes:
    """Return the boxes of a score of at least ``floor``, those that others of their class overlap left out.

    Classes are counted without the background. Boxes are in the network's own unit.
    """
    arrays = [outputs[name] for name in (*task.boxes, *task.scores, *task.objectness)]
    total = float(sum(np.sum(array, dtype=np.float64) for array in arrays))
    for kept in _LAST:
        if kept.answers(task, floor, arrays, total):
            return kept.boxes
    boxes = _decoded(task, outputs, floor)
    _LAST.append(_Kept(task, floor, tuple(map(weakref.ref, arrays)), total, boxes))
    return boxes


def _decoded(task: DetectionParameters, outputs: Outputs, floor: float) -> Boxes:
    n = len(outputs[task.boxes[0]])
    parts = list(_candidates(task, outputs, floor))
    image, kind, score, box = (np.concatenate([part[index] for part in parts]) for index in range(4))
    order = np.lexsort((kind, image))  # positions stay in their order within a class
    found = Boxes(n=n, image=image[order], kind=kind[order], score=score[order], box=box[order])
    found = found.where(_highest(found))
    kept = [
        place.start + suppressed(found.box[place], found.score[place], task.nms)
        for place in groups_of(found.image, found.kind)
    ]
    places = np.concatenate(kept) if kept else np.zeros(0, np.int64)
    return found.where(places)


def _highest(found: Boxes) -> NDArray[np.bool_]:
    kept = np.ones(len(found), bool)
    for image in np.flatnonzero(found.counts > MOST):
        there = found.of_image(int(image))
        # Not all of a score: a silent level gives thousands of equal ones, which would take minutes.
        kept[there.start + np.argsort(-found.score[there], kind="stable")[MOST:]] = False
    return kept


def _candidates(
    task: DetectionParameters, outputs: Outputs, floor: float
) -> Iterator[tuple[Places, Places, Floats, Floats]]:
    """Yield image, class, score and box of what is above the floor, level by level."""
    for level, name in enumerate(task.boxes):
        if task.form == "rows":
            yield _rows(outputs[name], floor)
            continue
        places, scores = positions(task, outputs, level)
        image, position, kind = _above(task, scores, _factor(task, outputs, level), floor)
        values = places[image, position].astype(np.float64)
        score = _score(task, outputs, level, scores, (image, position, kind))
        if task.background >= 0:
            kind = np.where(kind > task.background, kind - 1, kind)
        yield image, kind, score, _placed(task, level, position, values)


def positions(task: DetectionParameters, outputs: Mapping[str, Any], level: int) -> tuple[Any, Any]:
    """Return what places boxes and what scores them as (N, positions, numbers) each, of one level.

    Maps (N, anchors x numbers, h, w) are read row by row, the anchors of a position behind each other. Works on arrays
    and on tensors alike.
    """
    boxes = outputs[task.boxes[level]]
    if task.form == "columns":
        boxes = boxes.swapaxes(1, 2)
        return boxes[..., :4], boxes[..., 4:]
    if task.form == "objectness_rows":
        return boxes[..., :4], boxes[..., 5:]
    scores = outputs[task.scores[level]]
    if len(boxes.shape) == 4:
        anchors = _anchors(task, boxes.shape[1], level)
        return _flat(boxes, anchors), _flat(scores, anchors)
    return boxes, scores[..., None] if len(scores.shape) == 2 else scores


def _anchors(task: DetectionParameters, channels: int, level: int) -> int:
    if task.form == "anchors":
        return len(task.anchors[level])
    return 1 if task.form == "distributions" else max(1, channels // 4)


def _flat(maps: Any, anchors: int) -> Any:
    n, channels, height, width = maps.shape
    split = maps.reshape(n, anchors, channels // anchors, height * width)
    return split.swapaxes(2, 3).swapaxes(1, 2).reshape(n, height * width * anchors, channels // anchors)


def _factor(task: DetectionParameters, outputs: Outputs, level: int) -> NDArray[Any] | None:
    """Return what multiplies the scores of each position, (N, positions), as a probability."""
    if task.form == "objectness_rows":
        return np.asarray(outputs[task.boxes[level]][..., 4])
    if not task.objectness:
        return None
    values = np.asarray(outputs[task.objectness[level]])
    values = values.reshape(len(values), -1)
    return values if task.scores_are == "probabilities" else _sigmoid(values)


def _above(
    task: DetectionParameters, scores: NDArray[Any], factor: NDArray[Any] | None, floor: float
) -> tuple[Places, Places, Places]:
    """Return where scores are above the floor: image, position, class."""
    values = probabilities(task, scores) if task.scores_are == "softmax" else scores
    least = logit(floor) if task.scores_are == "logits" and factor is None else floor
    if factor is not None:
        values = (_sigmoid(values) if task.scores_are == "logits" else values) * factor[..., None]
    above = values >= least
    if 0 <= task.background < above.shape[-1]:
        above = above.copy()
        above[..., task.background] = False
    image, position, kind = np.nonzero(above)
    return image, position, kind


def _score(
    task: DetectionParameters, outputs: Outputs, level: int, scores: NDArray[Any], places: tuple[Places, ...]
) -> Floats:
    image, position, kind = places
    if task.scores_are == "softmax":
        found = probabilities(task, scores[image, position])[np.arange(len(kind)), kind]
    else:
        found = probabilities(task, scores[image, position, kind])
    factor = _factor(task, outputs, level)
    return np.asarray(found if factor is None else found * factor[image, position], np.float64)


def probabilities(task: DetectionParameters, scores: NDArray[Any]) -> NDArray[Any]:
    """Return scores as probabilities; a softmax is over the last axis."""
    if task.scores_are == "softmax":
        shifted = np.exp(scores - scores.max(-1, keepdims=True))
        return np.asarray(shifted / shifted.sum(-1, keepdims=True))
    return _sigmoid(scores) if task.scores_are == "logits" else scores


def _sigmoid(values: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-values)))


def _placed(task: DetectionParameters, level: int, position: Places, values: Floats) -> Floats:
    """Return corners of boxes at positions, of the numbers that place them, (K, 4)."""
    if task.form == "corners":
        return values
    if task.form in ("centre", "columns", "objectness_rows"):
        return _corners(values[:, :2], values[:, 2:])
    centre, stride, size = (each[position] for each in priors(task, level))
    if task.form == "anchors":
        first, second = task.variances
        moved = _corners(centre + values[:, :2] * first * size, np.exp(values[:, 2:] * second) * size)
    else:
        if task.form == "distributions":
            values = means(values)
        distance = values * stride
        moved = np.concatenate([centre - distance[:, :2], centre + distance[:, 2:]], 1)
    return moved / np.array([task.size[1], task.size[0]] * 2, np.float64) if task.unit == "image" else moved


def means(values: Floats) -> Floats:
    """Return the means (..., 4) of distributions, of logits (..., 4 x bins): distances from four sides, in strides."""
    bins = values.reshape(*values.shape[:-1], 4, values.shape[-1] // 4)  # of no box at all, too
    weights = np.exp(bins - bins.max(-1, keepdims=True))
    return np.asarray((weights / weights.sum(-1, keepdims=True)) @ np.arange(bins.shape[-1]))


def priors(task: DetectionParameters, level: int) -> tuple[Floats, Floats, Floats]:
    """Return where the positions of one output are (P, 2), in pixels, their strides (P, 1) and anchors' sizes (P, 2).

    Positions go row by row, the anchors of each behind each other; of an output of all levels, level by level.
    """
    levels = [level] if len(task.boxes) > 1 else range(len(task.strides))
    centres, strides, all_sizes = [], [], []
    for each in levels:
        stride = task.strides[each]
        rows, columns = grid(task.size, stride)
        sizes = np.array(task.anchors[each] if task.form == "anchors" else [(stride, stride)], np.float64)
        y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        centre = np.stack([x.ravel(), y.ravel()], 1) * stride + stride / 2 - task.shift
        centres.append(np.repeat(centre, len(sizes), 0))
        strides.append(np.full((len(centres[-1]), 1), stride, np.float64))
        all_sizes.append(np.tile(sizes, (len(centre), 1)))
    return np.concatenate(centres), np.concatenate(strides), np.concatenate(all_sizes)


def grid(size: tuple[int, int], stride: float) -> tuple[int, int]:
    """Return the rows and columns of positions of an image of a size, so many pixels apart."""
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


def _corners(centre: Floats, size: Floats) -> Floats:
    return np.concatenate([centre - size / 2, centre + size / 2], 1)


def _rows(values: NDArray[Any], floor: float) -> tuple[Places, Places, Floats, Floats]:
    """Return boxes of rows (N, n, 6): corners, score, class."""
    image, position = np.nonzero(values[..., 4] >= floor)
    rows = values[image, position].astype(np.float64)
    return image, np.round(rows[:, 5]).astype(np.int64), rows[:, 4], rows[:, :4]
