"""A loaded file: what every runtime offers of it.

What belongs here: the protocol `Session`, and what the sessions of all runtimes share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.inputs import Entrance

Images = NDArray[np.float32]
Values = NDArray[np.float32]


@runtime_checkable
class Session(Protocol):
    """One model, loaded and ready to run."""

    def run(self, images: Images) -> Values:
        """Compute the first output of images (n, C, H, W), normalised, in one call of the runtime."""
        ...

    def run_all(self, images: Images) -> dict[str, NDArray[Any]]:
        """Compute every output of the file by its name, in the file's order, in one call of the runtime."""
        ...


class FileSession(ABC):
    """What the sessions of all runtimes share: one file that takes images, which must fit it, and named outputs.

    Attributes:
        path: The file.
        entrance: How images go into it.
        output_names: Names of the model's outputs, in the file's order.
    """

    path: Path
    entrance: Entrance
    output_names: tuple[str, ...]

    @property
    def input_name(self) -> str:
        """Name of the model's first input."""
        return self.entrance.names[0]

    @property
    def input_shape(self) -> tuple[int | str | None, ...]:
        """Shape of the images that it takes; open sizes are None."""
        return self.entrance.shape

    @property
    def output_name(self) -> str:
        """Name of the model's first output."""
        return self.output_names[0]

    @abstractmethod
    def outputs(self, images: Images, names: Sequence[str] | None = None) -> list[NDArray[Any]]:
        """Compute several of the model's outputs, in one call of the runtime.

        Args:
            images: Shape (n, C, H, W), float32, normalised.
            names: Output names; None for all, in the file's order.

        Raises:
            ArtefactError: The images do not fit the model's input, or an output is unknown.
        """

    def wanted(self, names: Sequence[str] | None, known: Container[str]) -> Sequence[str]:
        """Return the names of the outputs to compute, all where none is given, and refuse unknown ones."""
        wanted = self.output_names if names is None else names
        unknown = next((name for name in wanted if name not in known), None)
        if unknown is not None:
            message = (
                f"Model {str(self.path)!r} could not run: it has no output {unknown!r}, but {list(self.output_names)}."
            )
            raise ArtefactError(message)
        return wanted

    def run(self, images: Images) -> Values:
        """Compute the first output in one call of the runtime; see `outputs`."""
        return np.asarray(self.outputs(images, [self.output_name])[0])

    def run_all(self, images: Images) -> dict[str, NDArray[Any]]:
        """Compute every output by its name, in the file's order, in one call of the runtime; see `outputs`."""
        return dict(zip(self.output_names, self.outputs(images), strict=True))

    def predict(self, images: Images, batch: int = 64) -> Values:
        """Compute the first output of any number of images, at most `batch` of them in one call of the runtime.

        Raises:
            ArtefactError: The images do not fit the model's input, or there are none.
        """
        return np.concatenate([self.run(part) for part in batched(images, batch)])

    def whole_batches(self, images: Images, batch: int = 64) -> Iterator[Images]:
        """Cut images (N, C, H, W), at least one, into batches that the file takes, at most `batch` where it takes any.

        A file of a fixed batch gets the last image again where its last batch is short: what it gives beyond N images
        is to be left out.
        """
        fixed = self.input_shape[0] if self.input_shape else None
        if isinstance(fixed, int) and len(images) % fixed:
            images = np.concatenate([images, np.repeat(images[-1:], -len(images) % fixed, axis=0)])
        return batched(images, fixed if isinstance(fixed, int) else batch)

    def check(self, images: Images) -> None:
        """Refuse images that do not fit the model's input."""
        expected = self.input_shape
        fits = images.ndim == len(expected) and all(
            not isinstance(size, int) or size == found for size, found in zip(expected, images.shape, strict=True)
        )
        if not fits:
            message = f"Model {str(self.path)!r} takes images of shape {expected}, found {images.shape}."
            raise ArtefactError(message)


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads below 1; None leaves the choice to the runtime."""
    if threads is not None and threads < 1:
        message = f"Threads must be at least 1, found {threads}. Leave it out to let the runtime choose."
        raise ArtefactError(message)


def batched(images: Images, size: int) -> Iterator[Images]:
    """Cut images (N, C, H, W), at least one, into consecutive batches of `size`; the last may be smaller."""
    if size < 1 or len(images) == 0:
        message = f"Prediction needs a batch size of at least 1 and at least one image, found {size} and {len(images)}."
        raise ArtefactError(message)
    for start in range(0, len(images), size):
        yield images[start : start + size]
