"""Detection: boxes, each with a class and a score.

What belongs here: what is measured of a file's boxes beside the teacher's own and beside labels. How outputs become
boxes is `decoding`, what is done with these `boxes`.

Beside the teacher, its boxes of at least `threshold` are the truth, the file's from `floor` on the candidates: what
falls below the threshold in the file is still there, at a lower rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.breakdown import Breakdown
from dfqkit_export.measure.kinds import (
    AP50,
    AP50_CLASSES,
    AP50_LARGE,
    AP50_MEDIUM,
    AP50_SMALL,
    AP50_WORST,
    BOX_IOU,
    BOXES_APPEARED,
    BOXES_VANISHED,
    COCO_AP,
    SCORE_ERROR,
    TRUE_AP,
    TRUE_AP50,
    Metric,
    MetricKind,
)
from dfqkit_export.measure.resampling import interval, ratio
from dfqkit_export.tasks.base import Groups, Labels, Limits, Outputs, OutputSpec, Task
from dfqkit_export.tasks.box_parts import SIZES, parts_of_boxes, pixels_of, sized
from dfqkit_export.tasks.boxes import Boxes, Ranked, iou, matched, of_some, ranked
from dfqkit_export.tasks.coco import coco_precision
from dfqkit_export.tasks.decoding import decoded
from dfqkit_export.tasks.detector_forms import fitted_detection
from dfqkit_export.tasks.detector_signs import signs
from dfqkit_export.tasks.marks import Marks
from dfqkit_export.tasks.measured import Floats, MeasuredTask
from dfqkit_export.tasks.parameters import DetectionParameters
from dfqkit_export.words import some

#: Boxes of a class below which its average precision is chance.
_ENOUGH = 10
#: Score from which boxes count beside labels.
_LEAST_SCORE = 0.05
#: IoU over which AP is a mean.
_IOUS = np.linspace(0.5, 0.95, 10)


class Detection(DetectionParameters, MeasuredTask):
    """Boxes with classes and scores."""

    name: ClassVar[str] = "detection"
    title: ClassVar[str] = "object detector"
    words: ClassVar[str] = "boxes and scores"
    answer: ClassVar[str] = "boxes"
    # Provisional: one file each of RFB-320 and NanoDet-m, whose AP50 on real images is known, lie on the right side.
    limits: ClassVar[Limits] = Limits(ok=90.0, ok_db=8.0, failed=60.0, failed_db=8.0)

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """What places the boxes, what scores them, and what multiplies the scores."""
        meanings = [(name, f"boxes as {self.form}, in {self.unit}") for name in self.boxes]
        meanings += [(name, f"scores as {self.scores_are}") for name in self.scores]
        meanings += [(name, "objectness") for name in self.objectness]
        shapes = self.shapes or (("values",),) * len(meanings)
        return tuple(
            OutputSpec(name=name, shape=shape, meaning=meaning)
            for (name, meaning), shape in zip(meanings, shapes, strict=True)
        )

    def fitted(self, found: Outputs, image: ImageSpec) -> Task:
        """Return the same with what a network's shapes tell: names, form, strides, the image's size."""
        return replace(self, **fitted_detection(self, found, image))

    @property
    def count(self) -> int:
        """Classes, the background left out; 1 while the shapes are not known."""
        if not self.shapes or self.form == "rows":
            return 1
        if self.form in ("columns", "objectness_rows"):
            sizes = self.shapes[0]
            return int(sizes[0]) - 4 if self.form == "columns" else int(sizes[-1]) - 5
        sizes = self.shapes[len(self.boxes)]
        channels = int(sizes[0]) if len(sizes) == 3 else int(sizes[-1]) if len(sizes) == 2 else 1
        if len(sizes) == 3:
            channels //= max(1, int(self.shapes[0][0]) // 4 if self.form != "distributions" else 1)
        return channels - (self.background >= 0)

    def margins(self, reference: Outputs, outputs: Outputs) -> Floats:
        """Return the least distance of a score from the threshold that would change the set of boxes, (N,).

        Of each box of the reference it is the score of the file's box there less the threshold; of each other box of
        the file the threshold less its score. Where neither has a box near, it is how far the floor is.
        """
        truth, found = decoded(self, reference, self.threshold), decoded(self, outputs, self.floor)
        order, partner = matched(truth, found)
        least = np.full(truth.n, self.threshold - self.floor)
        kept = np.zeros(len(truth))
        kept[partner[partner >= 0]] = found.score[order][partner >= 0]
        np.minimum.at(least, truth.image, kept - self.threshold)
        others = order[partner < 0]
        # A score of exactly the threshold is a box.
        np.minimum.at(least, found.image[others], np.nextafter(self.threshold - found.score[others], -1))
        return least

    def kept(self, reference: Outputs, outputs: Outputs) -> float | None:
        """Return AP50 beside the reference's boxes, in percent; None where it has none."""
        truth, found = decoded(self, reference, self.threshold), decoded(self, outputs, self.floor)
        value = ranked(truth, found, matched(truth, found)).precision()
        return None if value is None else 100 * value

    def groups(self, outputs: Outputs, image: ImageSpec) -> Groups:
        """Return the class of each image's box of the highest score, in front of them those without a box."""
        found = decoded(self, outputs, self.threshold)
        of, confidence = np.zeros(found.n, np.int64), np.zeros(found.n, np.float32)
        for row in np.argsort(found.score, kind="stable"):
            of[found.image[row]] = found.kind[row] + 1
            confidence[found.image[row]] = found.score[row]
        count = max(self.count + 1, int(of.max(initial=0)) + 1)
        return Groups(of=of, count=count, nothing=0, confidence=confidence, one="kind of object", many="kinds")

    def signs(self, reference: Outputs, outputs: Outputs) -> list[str]:
        """Return whether columns are exchanged, boxes scaled, a level silent, or scores on a grid of boxes."""
        return list(signs(self, reference, outputs))

    def marks(self, outputs: Outputs) -> list[Marks]:
        """Return the boxes above the threshold, with class and score."""
        found = decoded(self, outputs, self.threshold)
        scale = 1.0 if self.unit == "image" else np.array([self.size[1], self.size[0]] * 2, np.float64)
        corners = (found.box / scale).tolist()
        said = [f"{kind} {score:.2f}" for kind, score in zip(found.kind, found.score, strict=True)]
        each = [(tuple(box), int(kind), text) for box, kind, text in zip(corners, found.kind, said, strict=True)]
        return [Marks(boxes=tuple(each[found.of_image(place)])) for place in range(found.n)]

    def wrong_classes(self, classes: Sequence[str]) -> str:
        """Say where labels are of more or fewer classes than the network has."""
        if not classes or self.form == "rows" or len(classes) == self.count:
            return ""
        return (
            f"The labels are of {len(classes)} classes ({some(list(classes), 5)}); the network has {self.count}, "
            "without the background. Give a file of the network's own classes, in its order."
        )

    def beside_teacher(self, reference: Outputs, outputs: Outputs, **where: Any) -> list[Metric]:
        """Return AP50 beside the teacher's boxes, by class and size, and which boxes came, went and moved."""
        truth, found = decoded(self, reference, self.threshold), decoded(self, outputs, self.floor)
        pairs = matched(truth, found)
        metrics = [_precision(AP50, ranked(truth, found, pairs), **where)]
        return [
            *metrics,
            *self._by_class(truth, found, pairs, where),
            *self._by_size(truth, found, pairs, where),
            *self._changes(truth, found.above(self.threshold), where),
        ]

    def breakdown(self, reference: Outputs, outputs: Outputs, *, subject: str, data: str) -> Breakdown | None:
        """Return AP50 beside the teacher by class and by size, and which boxes crossed the threshold."""
        return parts_of_boxes(self, reference, outputs, subject=subject, data=data)

    def _by_class(self, truth: Boxes, found: Boxes, pairs: Any, where: Mapping[str, Any]) -> list[Metric]:
        kinds, counts = np.unique(truth.kind, return_counts=True)
        if len(kinds) < 2:
            return []
        each = {int(kind): of_some(truth, found, pairs, truth.kind == kind, found.kind == kind) for kind in kinds}
        values = {kind: one.precision() or 0.0 for kind, one in each.items()}
        drawn = np.array([one.spread() for one in each.values()])
        drawn = drawn[:, ~np.isnan(drawn).all(0)]  # of few images, some draws show no box
        spread = np.nanmean(drawn, axis=0)
        metrics = [
            AP50_CLASSES.metric(
                value=100 * float(np.mean(list(values.values()))), n=truth.n, interval=interval(100 * spread), **where
            )
        ]
        enough = [int(kind) for kind, count in zip(kinds, counts, strict=True) if count >= _ENOUGH]
        if enough:
            metrics.append(_precision(AP50_WORST, each[min(enough, key=lambda kind: values[kind])], **where))
        return metrics

    def _by_size(self, truth: Boxes, found: Boxes, pairs: Any, where: Mapping[str, Any]) -> list[Metric]:
        metrics = []
        for kind, bounds in zip((AP50_SMALL, AP50_MEDIUM, AP50_LARGE), SIZES.values(), strict=True):
            inside, others = (sized(self, boxes, bounds) for boxes in (truth, found))
            if inside.sum() >= _ENOUGH:
                metrics.append(_precision(kind, of_some(truth, found, pairs, inside, others), **where))
        return metrics

    def _changes(self, truth: Boxes, found: Boxes, where: Mapping[str, Any]) -> list[Metric]:
        order, partner = matched(truth, found)
        both = partner >= 0
        all_ = np.asarray(truth.counts, np.float64)
        kept, new = (
            np.asarray(np.bincount(images, minlength=truth.n), np.float64)
            for images in (truth.image[partner[both]], found.image[order[~both]])
        )
        metrics = [ratio(BOXES_VANISHED, all_ - kept, all_, **where), ratio(BOXES_APPEARED, new, all_, **where)]
        ours, theirs = order[both], partner[both]
        if len(ours):
            overlap = [iou(found.box[a], truth.box[b : b + 1])[0] for a, b in zip(ours, theirs, strict=True)]
            error = np.abs(found.score[ours] - truth.score[theirs])
            for kind, values in ((BOX_IOU, np.array(overlap)), (SCORE_ERROR, error)):
                sums, counts = (
                    np.asarray(np.bincount(truth.image[theirs], weights=weights, minlength=truth.n), np.float64)
                    for weights in (values, np.ones(len(values)))
                )
                metrics.append(ratio(kind, sums, counts, **where))
        return metrics

    def beside_labels(self, outputs: Outputs, labels: Labels, **where: Any) -> list[Metric]:
        """Return AP50 and AP beside labelled boxes.

        Labels are an array of arrays (boxes, 5): class, and corners in pixels of the network's image.
        """
        truth = self.labelled(labels, len(outputs[self.boxes[0]]))
        found = decoded(self, outputs, min(self.floor, _LEAST_SCORE))
        own = [ranked(truth, found, matched(truth, found, float(least))) for least in _IOUS]
        values = [one.precision() for one in own]
        metrics = [_precision(TRUE_AP50, own[0], **where)]
        if None not in values:
            spread = np.mean([one.spread() for one in own], axis=0)
            value = 100 * float(np.mean([value or 0.0 for value in values]))
            metrics.append(TRUE_AP.metric(value=value, n=truth.n, interval=interval(100 * spread), **where))
        known = coco_precision(truth, found, pixels_of(self))
        return [*metrics, *([] if known is None else [COCO_AP.metric(value=100 * known, n=truth.n, **where)])]

    def rightness(self, outputs: Outputs, labels: Labels) -> tuple[float, Floats] | None:
        """Return AP50 beside the labels."""
        truth = self.labelled(labels, len(outputs[self.boxes[0]]))
        found = decoded(self, outputs, min(self.floor, _LEAST_SCORE))
        one = ranked(truth, found, matched(truth, found))
        value = one.precision()
        return None if value is None else (100 * value, 100 * one.spread())

    def labelled(self, labels: Labels, n: int) -> Boxes:
        """Return labelled boxes in the network's unit.

        Raises:
            ArtefactError: They are not boxes, or of classes that the network does not have.
        """
        rows = [np.asarray(each, np.float64).reshape(-1, 5) if np.size(each) % 5 == 0 else None for each in labels]
        if len(rows) != n or any(row is None for row in rows) or np.asarray(labels).dtype != object:
            message = (
                f"Labels of the task {self.name!r} are arrays (boxes, 5) of a class and corners, one an image; found "
                f"{np.asarray(labels).dtype} of {np.shape(labels)} for {n} images. Give a COCO file."
            )
            raise ArtefactError(message)
        flat = np.concatenate([row for row in rows if row is not None] or [np.zeros((0, 5))])
        image = np.repeat(np.arange(n), [0 if row is None else len(row) for row in rows])
        kind = flat[:, 0].astype(np.int64)
        if len(kind) and self.form != "rows" and not 0 <= kind.min() <= kind.max() < self.count:
            message = (
                f"The labels name classes {kind.min()} to {kind.max()}; the network has {self.count}, without the "
                "background. Check that both count the same classes."
            )
            raise ArtefactError(message)
        scale = np.array([self.size[1], self.size[0]] * 2) if self.unit == "image" else 1.0
        return Boxes(n=n, image=image, kind=kind, score=np.ones(len(kind)), box=flat[:, 1:] / scale)


def _precision(kind: MetricKind, found: Ranked, **where: Any) -> Metric:
    value = found.precision()
    if value is None:
        return kind.metric(value=None, n=len(found.truths), **where)
    return kind.metric(value=100 * value, n=len(found.truths), interval=interval(100 * found.spread()), **where)
