"""Boxes of a set of images: suppressed, matched with others, and scored.

What belongs here: what is done with boxes once they are decoded, whatever network gave them. How outputs become boxes
is `decoding`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.measure.resampling import draws

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

#: IoU from which on two boxes are of the same thing.
LEAST_IOU = 0.5
#: Draws that are scored at once: memory of a few MB for thousands of boxes.
_TOGETHER = 25


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes of n images, in the order of the images, in each by class, in each class by falling score.

    Attributes:
        n: Images, those without a box too.
        image: Place of each box's image, (K,).
        kind: Its class, (K,).
        score: From 0 to 1, (K,).
        box: Corners x1, y1, x2, y2, (K, 4), in any unit.
    """

    n: int
    image: Places
    kind: Places
    score: Floats
    box: Floats

    def __len__(self) -> int:
        """Return how many boxes there are."""
        return len(self.image)

    def where(self, kept: NDArray[np.bool_ | np.int64]) -> Boxes:
        """Return those of which ``kept``, (K,), is true."""
        return Boxes(n=self.n, image=self.image[kept], kind=self.kind[kept], score=self.score[kept], box=self.box[kept])

    def above(self, score: float) -> Boxes:
        """Return those of at least a score."""
        return self.where(self.score >= score)

    def of_image(self, place: int) -> slice:
        """Return where the boxes of one image are."""
        first, last = np.searchsorted(self.image, [place, place + 1])
        return slice(int(first), int(last))

    @property
    def counts(self) -> Places:
        """Boxes of each image, (n,)."""
        return np.bincount(self.image, minlength=self.n).astype(np.int64)


def iou(box: Floats, boxes: Floats) -> Floats:
    """Return the intersection over union of one box (4,) with others (K, 4), (K,)."""
    width = np.clip(np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0]), 0, None)
    height = np.clip(np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1]), 0, None)
    both = width * height
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    found: Floats = both / ((box[2] - box[0]) * (box[3] - box[1]) + areas - both + 1e-9)
    return found


def suppressed(boxes: Floats, scores: Floats, least: float) -> Places:
    """Return the places of boxes (K, 4) that no higher-scored one overlaps by ``least``, by falling score."""
    order, kept = np.argsort(-scores, kind="stable"), []
    if least >= 1:
        return order
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        if len(order):
            order = order[iou(boxes[best], boxes[order]) < least]
    return np.array(kept, np.int64)


def matched(truth: Boxes, found: Boxes, least: float = LEAST_IOU) -> tuple[Places, Places]:
    """Give each found box, by falling score, the box of its image and class with the highest IoU that is not taken.

    Returns:
        The found boxes' places by falling score, (K,); and for each of these its box in ``truth``, -1 without one.
    """
    order = np.argsort(-found.score, kind="stable")
    taken, partner = np.zeros(len(truth), bool), np.full(len(found), -1, np.int64)
    places = [truth.of_image(image) for image in range(truth.n)]
    for row, place in enumerate(order):
        there = places[found.image[place]]
        if there.start == there.stop:
            continue
        overlap = iou(found.box[place], truth.box[there])
        allowed = (truth.kind[there] == found.kind[place]) & ~taken[there] & (overlap >= least)
        if allowed.any():
            overlap = np.where(allowed, overlap, -1.0)
            best = there.start + int(np.flatnonzero(overlap == overlap.max())[-1])
            partner[row], taken[best] = best, True
    return order, partner


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Found boxes by falling score, and which are right: what average precision is made of.

    Attributes:
        hits: Whether each is a box of the truth, (K,).
        image: Its image, (K,).
        truths: Boxes of the truth by image, (n,).
    """

    hits: NDArray[np.bool_]
    image: Places
    truths: Places

    def precision(self) -> float | None:
        """Return the area under the curve of precision over recall, from 0 to 1; None where there is no truth.

        Precision is the highest at this recall or a higher one, at all points: as in Pascal VOC from 2010 on.
        """
        value = self._weighted(np.ones((1, len(self.truths))))
        return None if not self.truths.sum() else float(value[0])

    def spread(self) -> Floats:
        """Return the same of draws of the images."""
        drawn = draws(len(self.truths))
        parts = [self._weighted(drawn[start : start + _TOGETHER]) for start in range(0, len(drawn), _TOGETHER)]
        return np.concatenate(parts)

    def _weighted(self, times: Floats) -> Floats:
        """Return it where each image is there so many times, (draws, n) to (draws,); NaN without truth."""
        weights = times[:, self.image]
        total = times @ self.truths
        right, all_ = np.cumsum(weights * self.hits, 1), np.cumsum(weights, 1)
        precision = np.where(all_ > 0, right / np.maximum(all_, 1), 0.0)
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        recall = right / np.maximum(total, 1)[:, None]
        area = (np.diff(recall, axis=1, prepend=0.0) * precision).sum(1)
        return np.where(total > 0, area, np.nan)


def ranked(truth: Boxes, found: Boxes, pairs: tuple[Places, Places]) -> Ranked:
    """Return found boxes, matched with the truth by `matched`, as average precision takes them."""
    order, partner = pairs
    return Ranked(hits=partner >= 0, image=found.image[order], truths=truth.counts)


def of_some(
    truth: Boxes, found: Boxes, pairs: tuple[Places, Places], wanted: NDArray[np.bool_], own: NDArray[np.bool_]
) -> Ranked:
    """Return the same of some boxes of the truth alone.

    Args:
        truth: All boxes.
        found: All that were found.
        pairs: Their matches.
        wanted: Which boxes of the truth count, (T,).
        own: Which found boxes count where they are matched with none, (K,). One that is matched with a box which does
            not count is passed over.
    """
    order, partner = pairs
    counted = np.where(partner >= 0, wanted[partner] if len(truth) else False, own[order])
    return Ranked(hits=(partner >= 0)[counted], image=found.image[order][counted], truths=truth.where(wanted).counts)


def areas(boxes: Floats) -> Floats:
    """Return the area of each box (K, 4), in the square of its unit."""
    found: Floats = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return found


def groups_of(*keys: Places) -> Iterator[slice]:
    """Yield where neighbours are equal in all keys."""
    if not len(keys[0]):
        return
    changes = np.any([np.diff(key) != 0 for key in keys], axis=0)
    ends = [0, *(np.flatnonzero(changes) + 1).tolist(), len(keys[0])]
    yield from (slice(first, last) for first, last in pairwise(ends))
