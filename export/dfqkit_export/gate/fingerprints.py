"""What each layer puts out on a few images, in a few numbers, so that a later file can be compared layer by layer.

What belongs here: sketches (`sketches`) of the layers' outputs, their short text form, and the distance of two files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..activations import layer_outputs
from ..errors import ArtefactError
from .sketches import pack, relative_distance, sketch, unpack

__all__ = ["IMAGES", "distances", "pack_sketches", "sketch", "sketch_layers", "unpack_sketches"]

Floats = NDArray[np.float64]

#: Images that layers are compared on.
IMAGES = 8


def sketch_layers(path: str | Path, images: NDArray[np.float32], *, threads: int | None = None) -> dict[str, Floats]:
    """Run a file and return the sketch of each layer's output.

    Args:
        path: The ONNX file.
        images: Shape (N, C, H, W), normalised.
        threads: Threads inside one operator; None leaves the choice to the runtime.

    Raises:
        ArtefactError: The file is not a complete ONNX model, or the images do not fit it.
    """
    return {name: sketch(values) for name, values in layer_outputs(path, images, threads=threads).items()}


def distances(base: Mapping[str, Floats], now: Mapping[str, Floats]) -> dict[str, float]:
    """Return how far each layer's output is from the baseline's, relative to its size.

    Args:
        base: Sketches of the baseline's file.
        now: Sketches of today's, of the same images.

    Returns:
        |now - base|^2 / |base|^2 by layer, in the order of `now`; layers that only one of them has are left out.
    """
    found = {}
    for name, values in now.items():
        before = base.get(name)
        if before is not None and before.shape == values.shape:
            found[name] = relative_distance(before, values)
    return found


def pack_sketches(sketches: Mapping[str, Floats]) -> dict[str, str]:
    """Write sketches as text, 44 letters a layer."""
    return {name: pack(np.clip(values, -65504, 65504).astype("<f2")) for name, values in sketches.items()}


def unpack_sketches(texts: Mapping[str, object]) -> dict[str, Floats]:
    """Read what `pack_sketches` wrote.

    Raises:
        ArtefactError: Something else stands there.
    """
    try:
        return {name: unpack(text, "<f2").astype(np.float64) for name, text in texts.items()}
    except ValueError as error:
        msg = f"The baseline's fingerprints are damaged ({error}). Record it again with --update."
        raise ArtefactError(msg) from None
