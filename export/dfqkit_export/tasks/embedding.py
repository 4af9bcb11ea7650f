"""Embeddings: vectors of which the direction counts, and which images they put beside each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import COSINE, NEIGHBOUR, RETRIEVAL, Metric
from dfqkit_export.measure.metrics import share
from dfqkit_export.measure.resampling import draws, mean
from dfqkit_export.tasks.base import Labels, Limits, Outputs, OutputSpec, Task
from dfqkit_export.tasks.generic import cosine
from dfqkit_export.tasks.measured import Floats, MeasuredTask, choose, output
from dfqkit_export.tasks.parameters import EmbeddingParameters


class Embedding(EmbeddingParameters, MeasuredTask):
    """A vector an image."""

    name: ClassVar[str] = "embedding"
    title: ClassVar[str] = "embedding network"
    words: ClassVar[str] = "vectors"
    # Of all images that keep their direction; files of known loss there are none.
    limits: ClassVar[Limits] = Limits(ok=97.0, ok_db=15.0, failed=80.0, failed_db=6.0)

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """The vector."""
        return output(self.output, self.shape, "a vector, of which the direction counts")

    def fitted(self, found: Outputs, image: ImageSpec) -> Task:
        """Return the same with the network's name and shape."""
        name, shape = choose(self.name, found, self.output, (1, 3))
        return replace(self, output=name, shape=shape)

    def margins(self, reference: Outputs, outputs: Outputs) -> Floats:
        """Return by how much the cosine with the reference's vector is above the least of the same answer, (N,)."""
        return cosine(reference[self.output], outputs[self.output]) - self.same

    def beside_teacher(self, reference: Outputs, outputs: Outputs, **where: Any) -> list[Metric]:
        """Return the cosine, and for how many images the nearest other one is the same."""
        first, second = reference[self.output], outputs[self.output]
        found = [mean(COSINE, cosine(first, second), **where)]
        if len(first) > 2:
            found.append(share(NEIGHBOUR, nearest(first) == nearest(second), **where))
        return found

    def beside_labels(self, outputs: Outputs, labels: Labels, **where: Any) -> list[Metric]:
        """Return for how many images the nearest other one has the same label."""
        hits = self._found(outputs, labels)
        return [share(RETRIEVAL, hits, **where)] if len(hits) > 2 else []

    def rightness(self, outputs: Outputs, labels: Labels) -> tuple[float, Floats] | None:
        """Return for how many images the nearest other one has the same label."""
        hits = self._found(outputs, labels)
        return 100 * float(hits.mean()), 100 * (draws(len(hits)) @ hits) / len(hits)

    def _found(self, outputs: Outputs, labels: Labels) -> NDArray[np.bool_]:
        indices = np.asarray(labels)
        if indices.dtype.kind not in "iu" or indices.shape != (len(outputs[self.output]),):
            message = (
                f"Labels of the task {self.name!r} are an integer an image (who or what it shows), found "
                f"{indices.dtype} of {indices.shape}."
            )
            raise ArtefactError(message)
        return np.asarray(indices[nearest(outputs[self.output])] == indices)


def nearest(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the place of the other vector with the largest cosine, for each of (N, ...); the first of equal ones."""
    flat = np.asarray(vectors, np.float64).reshape(len(vectors), -1)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    found = np.empty(len(flat), np.int64)
    for start in range(0, len(flat), 512):
        near = flat[start : start + 512] @ flat.T
        rows = np.arange(len(near))
        near[rows, start + rows] = -np.inf
        found[start : start + 512] = near.argmax(1)
    return found
