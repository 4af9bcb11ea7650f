"""The images that a comparison feeds to files: a stored set, a sentinel, or an array file.

What belongs here: finding out what a file of images is, and bringing it into the normalised space of a model.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.arrays import UNREADABLE, read_array, read_arrays
from dfqkit_export.images.inputs import Inputs, model_image
from dfqkit_export.images.stored import StoredBank
from dfqkit_export.images.tensors import TensorFile
from dfqkit_export.sentinel import normalized, read_sentinel

Floats = NDArray[np.float32]


def read_inputs(source: str | Path, model: onnx.ModelProto, n: int) -> Inputs:
    """Read up to n images, evenly spread over a stored set (folder or file), a sentinel file, a `.npz` or a `.npy`.

    uint8 arrays have shape (N, H, W, C) or, grey, (N, H, W), and are normalised as the model's metadata say; float
    arrays (N, C, H, W) are taken as normalised.
    """
    path = Path(source)
    if not path.exists():
        message = f"Images '{path}' do not exist. Give a stored set, a sentinel file, or a .npz or .npy of images."
        raise ArtefactError(message)
    labels = None
    if path.suffix in (".npz", ".npy"):
        images, labels = _from_array(path, model, n)
    elif path.is_file() and "sentinel" in TensorFile(path).metadata:
        sentinel = read_sentinel(path)
        images = normalized(sentinel.images[_spread(len(sentinel), n)], sentinel.spec)
    else:
        stored = StoredBank.open(path)
        images = stored.normalized(_spread(len(stored), n))
    return Inputs(images=images, source=str(path), labels=labels)


def _spread(count: int, n: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(n, count)).astype(int)).tolist() if count else []


def _from_array(path: Path, model: onnx.ModelProto, n: int) -> tuple[Floats, NDArray[np.int64] | None]:
    images, labels = _stored_arrays(path)
    if images.ndim == 3 and images.dtype == np.uint8:  # grey pictures, as labelled sets may have them
        images = images[..., None]
    if images.ndim != 4 or len(images) == 0:
        message = f"'{path}' holds an array of shape {images.shape}; allowed are images, (N, H, W, C) or (N, C, H, W)."
        raise ArtefactError(message)
    places = _spread(len(images), n)
    chosen = images[places]
    classes = None if labels is None or labels.shape != images.shape[:1] else labels[places].astype(np.int64)
    if chosen.dtype.kind == "f":
        return chosen.astype(np.float32), classes
    image = model_image(model)
    if chosen.dtype != np.uint8 or image is None:
        known = "knows" if image is not None else "does not know"
        message = (
            f"'{path}' holds {chosen.dtype} images, and the model {known} how they are normalised. Allowed are uint8 "
            "for a file that dfqkit wrote, and normalised float32 (N, C, H, W) for any."
        )
        raise ArtefactError(message)
    return normalized(np.ascontiguousarray(chosen.transpose(0, 3, 1, 2)), image), classes


def _stored_arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    try:
        if not zipfile.is_zipfile(path):
            return read_array(path), None
        arrays, _ = read_arrays(path, ["images", "labels"])
        return arrays["images"], arrays.get("labels")
    except UNREADABLE as error:
        message = f"'{path}' cannot be read as images: {error}. Allowed are a .npy, or a .npz with an array 'images'."
        raise ArtefactError(message) from None
