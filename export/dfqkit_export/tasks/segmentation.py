"""Segmentation: a class for each position, or the mask of one thing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import MASK_IOU, MASK_TRUE_IOU, PIXEL_AGREEMENT, Metric, MetricKind
from dfqkit_export.measure.resampling import draws, interval, mean
from dfqkit_export.tasks.base import Groups, Labels, Limits, Outputs, OutputSpec, Task
from dfqkit_export.tasks.marks import Marks
from dfqkit_export.tasks.measured import Floats, MeasuredTask, choose, logit, output
from dfqkit_export.tasks.parameters import SegmentationParameters

Masks = NDArray[np.int64]

#: The class of positions that nobody labelled, as in most data sets.
UNLABELLED = 255


class Segmentation(SegmentationParameters, MeasuredTask):
    """A class for each position."""

    name: ClassVar[str] = "segmentation"
    title: ClassVar[str] = "segmentation network"
    words: ClassVar[str] = "masks"
    answer: ClassVar[str] = "mask"
    limits: ClassVar[Limits] = Limits(ok=93.0, ok_db=10.0, failed=75.0, failed_db=4.0)

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """The scores of each position."""
        meaning = f"{self.scores} of each class at each position" if self.count > 1 else f"{self.scores} of the mask"
        return output(self.output, self.shape, meaning)

    @property
    def count(self) -> int:
        """Classes that a position may be of, what is no mask among them; 1 while the shape is not known."""
        if len(self.shape) != 3:
            return 2 if self.shape else 1
        classes = self.shape[self.axis]
        return max(2, classes) if isinstance(classes, int) else 1

    def fitted(self, found: Outputs, image: ImageSpec) -> Task:
        """Return the same with the network's name and shape."""
        name, shape = choose(self.name, found, self.output, (3, 2))
        return replace(self, output=name, shape=shape)

    def masks(self, outputs: Outputs) -> Masks:
        """Return the class of each position, (N, h, w); of one mask 1 where it is."""
        values = np.asarray(outputs[self.output])
        if values.ndim == 4:
            values = np.moveaxis(values, -1, 1) if self.axis else values
            if values.shape[1] > 1:
                return np.asarray(values.argmax(1), np.int64)
            values = values[:, 0]
        least = self.threshold
        if self.scores == "logits":
            least = logit(least)
        return np.asarray(values > least, np.int64)

    def margins(self, reference: Outputs, outputs: Outputs) -> Floats:
        """Return by how much the IoU of each image with the reference's masks is above the least, (N,)."""
        both, either = overlaps(self.masks(reference), self.masks(outputs), self.count)
        there = either > 0
        ious = np.where(there, both / np.where(there, either, 1), 0.0)
        counted = there.sum(1)
        return np.where(counted > 0, ious.sum(1) / np.maximum(counted, 1), 1.0) - self.same

    def kept(self, reference: Outputs, outputs: Outputs) -> float | None:
        """Return the IoU of the masks, mean over classes, in percent."""
        value, _ = mean_iou(*overlaps(self.masks(reference), self.masks(outputs), self.count))
        return None if value is None else 100 * value

    def groups(self, outputs: Outputs, image: ImageSpec) -> Groups:
        """Return the class of most positions, apart from the background."""
        masks = self.masks(outputs).reshape(len(outputs[self.output]), -1)
        counts = np.stack([(masks == kind).sum(1) for kind in range(self.count)], 1)
        background = 0 if self.count == 2 else self.background
        if not 0 <= background < self.count:
            return Groups(of=counts.argmax(1).astype(np.int64), count=self.count, one="class", many="classes")
        things = counts.copy()
        things[:, background] = -1
        empty = counts[:, background] == masks.shape[1]
        of = np.where(empty, background, things.argmax(1)).astype(np.int64)
        return Groups(of=of, count=self.count, nothing=background, one="class", many="classes")

    def marks(self, outputs: Outputs) -> list[Marks]:
        """Return the masks, the background as nothing."""
        nothing = 0 if self.count == 2 else self.background
        return [Marks(mask=np.where(mask == nothing, 0, mask + (mask < nothing))) for mask in self.masks(outputs)]

    def beside_teacher(self, reference: Outputs, outputs: Outputs, **where: Any) -> list[Metric]:
        """Return the IoU of the masks beside the teacher's, and how many positions are of its class."""
        first, second = self.masks(reference), self.masks(outputs)
        same = (first == second).reshape(len(first), -1).mean(1)
        return [
            iou_metric(MASK_IOU, overlaps(first, second, self.count), **where),
            mean(PIXEL_AGREEMENT, 100 * same, **where),
        ]

    def beside_labels(self, outputs: Outputs, labels: Labels, **where: Any) -> list[Metric]:
        """Return the IoU of the masks beside the labelled ones; positions of 255 do not count."""
        return [iou_metric(MASK_TRUE_IOU, self._right(outputs, labels), **where)]

    def rightness(self, outputs: Outputs, labels: Labels) -> tuple[float, Floats] | None:
        """Return the IoU of the masks beside the labelled ones."""
        counted = self._right(outputs, labels)
        value, _ = mean_iou(*counted)
        return None if value is None else (100 * value, iou_spread(*counted))

    def _right(self, outputs: Outputs, labels: Labels) -> tuple[Floats, Floats]:
        wanted, found = np.asarray(labels), self.masks(outputs)
        if wanted.dtype.kind not in "iub" or wanted.ndim != 3 or len(wanted) != len(found):
            message = (
                f"Labels of the task {self.name!r} are masks (N, h, w) of class indices, found {wanted.dtype} of "
                f"{wanted.shape}. Give a folder of masks."
            )
            raise ArtefactError(message)
        wanted = wanted.astype(np.int64)
        known = wanted != UNLABELLED
        if wanted[known].size and not 0 <= wanted[known].min() <= wanted[known].max() < self.count:
            message = (
                f"The masks hold classes {wanted[known].min()} to {wanted[known].max()}; the network has {self.count}. "
                f"Positions without a label are {UNLABELLED}."
            )
            raise ArtefactError(message)
        wanted = resized(wanted, (found.shape[1], found.shape[2]))
        return overlaps(wanted, found, self.count)


def resized(masks: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return masks (N, H, W) at another size (h, w), each position that of the nearest one."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in zip(size, masks.shape[1:], strict=True)
    )
    return masks[:, rows[:, None], columns[None, :]]


def overlaps(first: Masks, second: Masks, count: int) -> tuple[Floats, Floats]:
    """Return the positions of each class in both masks, and in either, by image: (N, classes) each.

    Of two classes the second alone counts, since the first is what is not in the mask. Positions of the first that are
    255 count for nothing.
    """
    known = first != UNLABELLED if count <= UNLABELLED else np.ones(first.shape, bool)
    kinds = [1] if count == 2 else list(range(count))
    both = np.empty((len(first), len(kinds)))
    either = np.empty_like(both)
    for place, kind in enumerate(kinds):
        ours, theirs = first == kind, (second == kind) & known
        both[:, place] = (ours & theirs).reshape(len(first), -1).sum(1)
        either[:, place] = (ours | theirs).reshape(len(first), -1).sum(1)
    return both, either


def mean_iou(both: Floats, either: Floats) -> tuple[float | None, int]:
    """Return the mean over the classes that are anywhere of their IoU over all images; and how many these are."""
    above, below = both.sum(0), either.sum(0)
    there = below > 0
    return (float((above[there] / below[there]).mean()) if there.any() else None), int(there.sum())


def iou_metric(kind: MetricKind, counted: tuple[Floats, Floats], **where: Any) -> Metric:
    """Return the mean IoU in percent with its interval over draws of the images."""
    both, either = counted
    value, _ = mean_iou(both, either)
    if value is None:
        return kind.metric(value=None, n=len(both), **where)
    spread = iou_spread(both, either)
    return kind.metric(value=100 * value, n=len(both), interval=interval(spread), **where)


def iou_spread(both: Floats, either: Floats) -> Floats:
    """Return the mean IoU of draws of the images, in percent."""
    drawn = draws(len(both))
    above, below = drawn @ both, drawn @ either
    there = below > 0
    ious = np.where(there, above / np.where(there, below, 1), 0.0)
    found: Floats = 100 * ious.sum(1) / np.maximum(there.sum(1), 1)
    return found
