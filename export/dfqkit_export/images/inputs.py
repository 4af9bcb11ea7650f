"""The images a tool feeds to a file: a stored set, a sentinel, an array file, or random numbers.

What belongs here: finding out what a file of images is, and bringing it into the normalised space of a model.
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec

__all__ = ["Inputs", "model_image", "own_batch", "random_inputs", "read_inputs"]

Floats = NDArray[np.float32]

# 2 GiB of float32: what a model with a mistaken shape would otherwise ask of the machine.
_MOST_NUMBERS = 2**29


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Images that are ready to go into a model.

    Attributes:
        images: float32, shape (N, C, H, W), normalised.
        source: Where they come from, in words.
        random: Whether they are random numbers: what is measured on them says nothing about accuracy.
    """

    images: Floats
    source: str
    random: bool = False


def model_image(model: onnx.ModelProto) -> ImageSpec | None:
    """Return the image specification that dfqkit writes into a file's metadata; None for files of others.

    Raises:
        ArtefactError: It is there and damaged.
    """
    stored = {entry.key: entry.value for entry in model.metadata_props}.get("dfqkit.image")
    if stored is None:
        return None
    try:
        return ImageSpec.from_dict(json.loads(stored))
    except ValueError as error:
        msg = f"The model's metadata entry 'dfqkit.image' is not JSON: {error}. Export the file again."
        raise ArtefactError(msg) from None


def own_batch(model: onnx.ModelProto) -> int | None:
    """Return the number of images that a call must have; None where the file leaves it open."""
    sizes = _input_sizes(model)
    return sizes[0] if sizes and sizes[0] > 0 else None


def random_inputs(model: onnx.ModelProto, n: int, *, seed: int = 0) -> Inputs:
    """Draw images from a normal distribution with mean 0 and deviation 1 in the normalised space.

    Args:
        model: What they are for; open sizes other than the batch's are taken from its metadata.
        n: How many.
        seed: Of the random numbers.

    Raises:
        ArtefactError: The shape of an image is not known, or there is no room for so many.
    """
    shape = _image_shape(model)
    if n * math.prod(shape) > _MOST_NUMBERS:
        msg = f"{n} random images of shape {shape} are more than {_MOST_NUMBERS} numbers. Ask for fewer images."
        raise ArtefactError(msg)
    values = np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)
    return Inputs(images=values, source=f"random numbers, seed {seed}", random=True)


def read_inputs(source: str | Path, model: onnx.ModelProto, n: int) -> Inputs:
    """Read images, evenly spread over the source.

    Args:
        source: A stored set (folder or file), a sentinel file, a `.npz` with `images`, or a `.npy`. uint8 arrays have
            shape (N, H, W, C) and are normalised as the model's metadata say; float arrays (N, C, H, W) are taken as
            normalised.
        model: What they are for.
        n: How many at most.

    Raises:
        ArtefactError: The source is missing, damaged or nothing of the kind, or its images cannot be normalised.
    """
    path = Path(source)
    if not path.exists():
        msg = f"Images '{path}' do not exist. Give a stored set, a sentinel file, or a .npz or .npy of images."
        raise ArtefactError(msg)
    if path.suffix in (".npz", ".npy"):
        images = _from_array(path, model, n)
    elif path.is_file() and _is_sentinel(path):
        images = _from_sentinel(path, n)
    else:
        images = _from_set(path, n)
    return Inputs(images=images, source=str(path))


def _image_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    sizes = _input_sizes(model)[1:]
    if sizes and min(sizes) > 0:
        return sizes
    image = model_image(model)
    if image is None:
        msg = (
            f"The model's input leaves the shape of an image open, found {sizes or 'no shape'}. Give images, where "
            "the command takes them (--images), or export it with fixed channels, height and width."
        )
        raise ArtefactError(msg)
    return image.shape


def _input_sizes(model: onnx.ModelProto) -> tuple[int, ...]:
    # 0 where a size is open.
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    return tuple(int(size.dim_value) for size in inputs[0].type.tensor_type.shape.dim) if inputs else ()


def _spread(count: int, n: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(n, count)).astype(int)).tolist() if count else []


def _from_set(path: Path, n: int) -> Floats:
    from dfqkit_export.images.stored import ImageSet

    images = ImageSet.open(path)
    return images.normalized(_spread(len(images), n))


def _is_sentinel(path: Path) -> bool:
    from dfqkit_export.tensorfile import TensorFile

    return "sentinel" in TensorFile(path).metadata


def _from_sentinel(path: Path, n: int) -> Floats:
    from dfqkit_export.sentinel import normalized, read_sentinel

    sentinel = read_sentinel(path)
    return normalized(sentinel.images[_spread(len(sentinel), n)], sentinel.spec)


def _from_array(path: Path, model: onnx.ModelProto, n: int) -> Floats:
    images = _stored_array(path)
    if images.ndim != 4 or len(images) == 0:
        msg = f"'{path}' holds an array of shape {images.shape}; allowed are images, (N, H, W, C) or (N, C, H, W)."
        raise ArtefactError(msg)
    chosen = images[_spread(len(images), n)]
    if chosen.dtype.kind == "f":
        return chosen.astype(np.float32)
    image = model_image(model)
    if chosen.dtype != np.uint8 or image is None:
        known = "knows" if image is not None else "does not know"
        msg = (
            f"'{path}' holds {chosen.dtype} images, and the model {known} how they are normalised. Allowed are uint8 "
            "for a file that dfqkit wrote, and normalised float32 (N, C, H, W) for any."
        )
        raise ArtefactError(msg)
    pixels = np.ascontiguousarray(chosen.transpose(0, 3, 1, 2)).astype(np.float32)
    return image.normalize(pixels / np.float32(255))


def _stored_array(path: Path) -> NDArray[Any]:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return np.asarray(found["images"])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        msg = f"'{path}' cannot be read as images: {error}. Allowed are a .npy, or a .npz with an array 'images'."
        raise ArtefactError(msg) from None
