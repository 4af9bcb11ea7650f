"""Any tensors: how far they are from the teacher's, whatever they mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import COSINE, LARGEST_ERROR, Metric
from dfqkit_export.measure.resampling import mean
from dfqkit_export.tasks.base import Limits, Outputs, OutputSpec, Task
from dfqkit_export.tasks.measured import Floats, NumbersTask
from dfqkit_export.tasks.parameters import GenericParameters


class Generic(GenericParameters, NumbersTask):
    """Outputs that nobody said more of."""

    name: ClassVar[str] = "generic"
    title: ClassVar[str] = "network"
    # 25 dB is what this project asks of every output; files of known loss there are none for tensors of no meaning.
    limits: ClassVar[Limits] = Limits(ok=95.0, ok_db=25.0, failed=50.0, failed_db=10.0)

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """All that were found, or those that were named."""
        shapes = self.shapes or (("values",),) * len(self.names)
        named = zip(self.names, shapes, strict=True)
        return tuple(OutputSpec(name=name, shape=shape, meaning="numbers") for name, shape in named)

    def fitted(self, found: Outputs, image: ImageSpec) -> Task:
        """Return the same with the network's names and shapes."""
        if list(found) == [""]:
            found = {(self.names or ("output",))[0]: found[""]}
        names = self.names or tuple(found)
        missing = [name for name in names if name not in found]
        if missing:
            message = (
                f"The task {self.name!r} names the output {missing[0]!r}, which the network does not give; it gives "
                f"{', '.join(found)}."
            )
            raise ArtefactError(message)
        return replace(self, names=names, shapes=tuple(found[name].shape[1:] for name in names))

    def beside_teacher(self, reference: Outputs, outputs: Outputs, **where: Any) -> list[Metric]:
        """Return the cosine of each image's worst output, and the largest error of all."""
        cosines = np.min([cosine(reference[name], outputs[name]) for name in self.names], axis=0)
        largest = [
            float(np.abs(np.subtract(reference[name], outputs[name], dtype=np.float64)).max())
            / (float(np.ptp(reference[name])) or 1.0)
            for name in self.names
        ]
        n = len(cosines)
        return [mean(COSINE, cosines, **where), LARGEST_ERROR.metric(value=100 * max(largest), n=n, **where)]


def cosine(reference: object, outputs: object) -> Floats:
    """Return the cosine between each image's values of two arrays (N, ...), 1 where both are 0, (N,)."""
    first, second = (np.asarray(values, np.float64) for values in (reference, outputs))
    first, second = first.reshape(len(first), -1), second.reshape(len(second), -1)
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    both_zero = ~(first.any(1) | second.any(1))
    return np.where(both_zero, 1.0, (first * second).sum(1) / np.where(sizes == 0, 1.0, sizes))
