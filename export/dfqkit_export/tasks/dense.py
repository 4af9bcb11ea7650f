"""A number, or several, for each position: depth, a larger image, flow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import PSNR_DB, RELATIVE_ERROR, TRUE_RELATIVE_ERROR, Metric
from dfqkit_export.measure.resampling import draws, ratio, ratio_db
from dfqkit_export.tasks.base import Labels, Limits, Outputs, OutputSpec, Task
from dfqkit_export.tasks.marks import Marks
from dfqkit_export.tasks.measured import Floats, NumbersTask, choose, output, powers
from dfqkit_export.tasks.parameters import DenseParameters


class Dense(DenseParameters, NumbersTask):
    """Numbers for each position."""

    name: ClassVar[str] = "dense"
    title: ClassVar[str] = "network that gives maps of numbers"
    words: ClassVar[str] = "maps"
    least_right: ClassVar[float] = -90.0  # of 100 % error nothing is left
    limits: ClassVar[Limits] = Limits(ok=95.0, ok_db=20.0, failed=50.0, failed_db=8.0)

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """The map."""
        return output(self.output, self.shape, "numbers for each position")

    def fitted(self, found: Outputs, image: ImageSpec) -> Task:
        """Return the same with the network's name and shape."""
        name, shape = choose(self.name, found, self.output, (3, 2))
        return replace(self, output=name, shape=shape)

    def marks(self, outputs: Outputs) -> list[Marks]:
        """Return the first map."""
        values = np.asarray(outputs[self.output], np.float64)
        return [Marks(field=each[0] if each.ndim > 2 else each) for each in values]

    def beside_teacher(self, reference: Outputs, outputs: Outputs, **where: Any) -> list[Metric]:
        """Return PSNR and relative error.

        PSNR is 10 log10(peak^2 / mean squared error), of the peak that the task names or the teacher's own range; the
        relative error the mean absolute error beside the teacher's mean absolute value.
        """
        first, second = (np.asarray(side[self.output], np.float64) for side in (reference, outputs))
        _, noise = powers(first, second)
        peak = self.peak or float(np.ptp(first))
        highest = np.full(len(first), peak * peak * first[0].size)
        return [ratio_db(PSNR_DB, highest, noise, **where), ratio(RELATIVE_ERROR, *_sizes(first, second), **where)]

    def beside_labels(self, outputs: Outputs, labels: Labels, **where: Any) -> list[Metric]:
        """Return the relative error beside the labels, of the positions where these are finite."""
        return [ratio(TRUE_RELATIVE_ERROR, *self._wrong(outputs, labels), **where)]

    def rightness(self, outputs: Outputs, labels: Labels) -> tuple[float, Floats] | None:
        """Return the relative error beside the labels, below zero."""
        error, size = self._wrong(outputs, labels)
        if not size.sum():
            return None
        drawn = draws(len(size))
        with np.errstate(divide="ignore", invalid="ignore"):
            return -100 * float(error.sum() / size.sum()), -100 * (drawn @ error) / (drawn @ size)

    def _wrong(self, outputs: Outputs, labels: Labels) -> tuple[Floats, Floats]:
        found, wanted = np.asarray(outputs[self.output], np.float64), np.asarray(labels)
        if wanted.dtype.kind not in "fiu" or wanted.size != found.size:
            message = (
                f"Labels of the task {self.name!r} are a map of numbers an image, like {found.shape}; found "
                f"{wanted.dtype} of {wanted.shape}."
            )
            raise ArtefactError(message)
        wanted = wanted.reshape(found.shape).astype(np.float64)
        known = np.isfinite(wanted)
        return _sizes(np.where(known, wanted, 0.0), np.where(known, found, 0.0))


def _sizes(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Return the sums of each image's absolute errors and of the first's absolute values, (N,) each."""
    error, size = np.abs(first - second), np.abs(first)
    return error.reshape(len(error), -1).sum(1), size.reshape(len(size), -1).sum(1)
