"""What every runtime adapter offers.

What belongs here: the protocols `Runtime` and `Session`, and what all adapters share.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtefactError

__all__ = ["Runtime", "Session", "batched"]

Images = NDArray[np.float32]
Logits = NDArray[np.float32]


@runtime_checkable
class Session(Protocol):
    """One model, loaded and ready to run."""

    def run(self, images: Images) -> Logits:
        """Compute logits (n, classes) of images (n, C, H, W), normalised, in one call of the runtime."""
        ...


@runtime_checkable
class Runtime(Protocol):
    """One way to execute a model file.

    Attributes:
        name: The name reports use as the subject of what it computed.
    """

    name: str

    def available(self) -> str | None:
        """Return None where the runtime can be used, else the reason why not and what to install."""
        ...

    def load(self, path: str | Path, **options: Any) -> Session:
        """Load a model file.

        Raises:
            RuntimeUnavailableError: The runtime is not installed.
            ArtefactError: The file is not a model that the runtime accepts.
        """
        ...


def batched(images: Images, size: int) -> Iterator[Images]:
    """Cut images into consecutive batches.

    Args:
        images: Shape (N, C, H, W), at least one image.
        size: Images in a batch, at least 1; the last batch may be smaller.

    Raises:
        ArtefactError: The size is below 1 or there is no image.
    """
    if size < 1 or len(images) == 0:
        msg = f"Prediction needs a batch size of at least 1 and at least one image, found {size} and {len(images)}."
        raise ArtefactError(msg)
    for start in range(0, len(images), size):
        yield images[start : start + size]
