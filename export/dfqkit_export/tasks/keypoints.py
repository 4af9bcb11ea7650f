"""Keypoints: where points are, as heatmaps or as coordinates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import POINT_ERROR, POINTS_KEPT, POINTS_RIGHT, Metric
from dfqkit_export.measure.resampling import draws, mean, ratio
from dfqkit_export.tasks.base import Labels, Limits, Outputs, OutputSpec, Task
from dfqkit_export.tasks.marks import Marks
from dfqkit_export.tasks.measured import Floats, MeasuredTask, choose, output
from dfqkit_export.tasks.parameters import KeypointsParameters


class Keypoints(KeypointsParameters, MeasuredTask):
    """A number of points an image."""

    name: ClassVar[str] = "keypoints"
    title: ClassVar[str] = "network that finds points"
    words: ClassVar[str] = "points"
    answer: ClassVar[str] = "points"
    limits: ClassVar[Limits] = Limits(ok=95.0, ok_db=10.0, failed=75.0, failed_db=4.0)

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """The maps or coordinates."""
        return output(self.output, self.shape, f"{self.form} of points")

    def fitted(self, found: Outputs, image: ImageSpec) -> Task:
        """Return the same with the network's name and shape, and the image's size."""
        name, shape = choose(self.name, found, self.output, (3,) if self.form == "heatmaps" else (1, 2))
        if self.form == "coordinates" and (shape[-1] < 2 if len(shape) == 2 else shape[0] % 2):
            message = (
                f"Coordinates are (points, 2 or more) or (2 x points); output '{name}' gives {shape} an image. Name "
                "another output or task."
            )
            raise ArtefactError(message)
        return replace(self, output=name, shape=shape, size=(image.shape[1], image.shape[2]))

    def points(self, outputs: Outputs) -> Floats:
        """Return x and y of each point as shares of the image's longer side, (N, points, 2).

        Of a heatmap it is the middle of its largest cell, moved by a quarter of a cell towards the larger neighbour on
        each axis (Newell et al., ECCV 2016).
        """
        values = np.asarray(outputs[self.output], np.float64)
        longest = max(self.size)
        if self.form == "coordinates":
            found = values.reshape(len(values), -1, 2) if values.ndim == 2 else values[..., :2]
            return found / longest if self.unit == "pixels" else found * (self.size[1], self.size[0]) / longest
        rows, columns = values.shape[2:]
        flat = values.reshape(*values.shape[:2], -1)
        y, x = np.divmod(flat.argmax(-1), columns)
        places = [
            at + 0.5 + 0.25 * _towards(flat, y, x, columns, axis, limit)
            for axis, at, limit in ((0, x, columns), (1, y, rows))
        ]
        cells = np.stack(places, -1) / (columns, rows)
        return np.asarray(cells * (self.size[1], self.size[0]) / longest)

    def distances(self, reference: Outputs, outputs: Outputs) -> Floats:
        """Return how far each point is from the reference's, as a share of the image's longer side, (N, points)."""
        return np.asarray(np.linalg.norm(self.points(reference) - self.points(outputs), axis=-1))

    def margins(self, reference: Outputs, outputs: Outputs) -> Floats:
        """Return how much further the farthest point of each image may be, (N,)."""
        return np.asarray(self.same - self.distances(reference, outputs).max(1))

    def kept(self, reference: Outputs, outputs: Outputs) -> float | None:
        """Return the share of the points that are near enough, in percent."""
        return 100 * float((self.distances(reference, outputs) <= self.same).mean())

    def marks(self, outputs: Outputs) -> list[Marks]:
        """Return the points."""
        shares = self.points(outputs) * max(self.size) / (self.size[1], self.size[0])
        return [Marks(points=tuple((float(x), float(y)) for x, y in row)) for row in shares]

    def beside_teacher(self, reference: Outputs, outputs: Outputs, **where: Any) -> list[Metric]:
        """Return how many points are where the teacher has them, and how far they are from there."""
        apart = self.distances(reference, outputs)
        near = np.asarray((apart <= self.same).mean(1), np.float64)
        return [mean(POINTS_KEPT, 100 * near, **where), mean(POINT_ERROR, 100 * apart.mean(1), **where)]

    def beside_labels(self, outputs: Outputs, labels: Labels, **where: Any) -> list[Metric]:
        """Return how many labelled points are where the labels have them.

        Labels are (N, points, 2) in pixels of the network's image, NaN where a point is not labelled; or with a third
        number, 0 there.
        """
        return [ratio(POINTS_RIGHT, *self._right(outputs, labels), **where)]

    def rightness(self, outputs: Outputs, labels: Labels) -> tuple[float, Floats] | None:
        """Return how many labelled points are where the labels have them."""
        near, there = self._right(outputs, labels)
        if not there.sum():
            return None
        drawn = draws(len(there))
        return 100 * float(near.sum() / there.sum()), 100 * (drawn @ near) / np.maximum(drawn @ there, 1)

    def _right(self, outputs: Outputs, labels: Labels) -> tuple[Floats, Floats]:
        found, wanted = self.points(outputs), np.asarray(labels)
        if wanted.dtype.kind not in "fiu" or wanted.ndim != 3 or wanted.shape[:2] != found.shape[:2]:
            message = (
                f"Labels of the task {self.name!r} are points {(*found.shape[:2], 'x, y')} in pixels, found "
                f"{wanted.dtype} of {wanted.shape}. Check that both count the same points."
            )
            raise ArtefactError(message)
        there = np.isfinite(wanted[..., :2]).all(-1)
        if wanted.shape[2] > 2:
            there &= wanted[..., 2] > 0
        apart = np.linalg.norm(np.where(there[..., None], wanted[..., :2], 0) / max(self.size) - found, axis=-1)
        near = (apart <= self.same) & there
        return np.asarray(near.sum(1), np.float64), np.asarray(there.sum(1), np.float64)


def _towards(flat: Floats, y: NDArray[Any], x: NDArray[Any], columns: int, axis: int, limit: int) -> Floats:
    """Return -1, 0 or 1 for each point: on which side of its largest cell the numbers are larger."""
    at, step = (x, 1) if axis == 0 else (y, columns)
    place = y * columns + x
    inside = (at > 0) & (at < limit - 1)
    before, after = (
        np.take_along_axis(flat, np.clip(place + side * step, 0, flat.shape[-1] - 1)[..., None], -1)[..., 0]
        for side in (-1, 1)
    )
    return np.where(inside, np.sign(after - before), 0.0)
