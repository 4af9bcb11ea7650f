"""The images a tool feeds to a file, and what the file says of them.

What belongs here: `Inputs`, random ones, and the shapes that a file wants. Reading files of images of any kind is
`comparison.inputs`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.onnxfile.model import metadata_in

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
        labels: Their classes, int64 (N,), where the file has them.
    """

    images: Floats
    source: str
    random: bool = False
    labels: NDArray[np.int64] | None = None


def model_image(model: onnx.ModelProto) -> ImageSpec | None:
    """Return the image specification that dfqkit writes into a file's metadata; None for files of others."""
    stored = metadata_in(model).get("dfqkit.image")
    if stored is None:
        return None
    try:
        return ImageSpec.from_dict(json.loads(stored))
    except ValueError as error:
        message = f"The model's metadata entry 'dfqkit.image' is not JSON: {error}. Export the file again."
        raise ArtefactError(message) from None


def own_batch(model: onnx.ModelProto) -> int | None:
    """Return the number of images that a call must have; None where the file leaves it open."""
    sizes = _input_sizes(model)
    return sizes[0] if sizes and sizes[0] > 0 else None


def random_inputs(model: onnx.ModelProto, n: int, *, seed: int = 0) -> Inputs:
    """Draw n images from a normal distribution with mean 0 and deviation 1 in the normalised space.

    Open sizes other than the batch's are taken from the model's metadata.
    """
    shape = _image_shape(model)
    if n * math.prod(shape) > _MOST_NUMBERS:
        message = f"{n} random images of shape {shape} are more than {_MOST_NUMBERS} numbers. Ask for fewer images."
        raise ArtefactError(message)
    values = np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)
    return Inputs(images=values, source=f"random numbers, seed {seed}", random=True)


def _image_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    sizes = _input_sizes(model)[1:]
    if sizes and min(sizes) > 0:
        return sizes
    image = model_image(model)
    if image is None:
        message = (
            f"The model's input leaves the shape of an image open, found {sizes or 'no shape'}. Give images, where "
            "the command takes them (--images), or export it with fixed channels, height and width."
        )
        raise ArtefactError(message)
    return image.shape


def _input_sizes(model: onnx.ModelProto) -> tuple[int, ...]:
    # 0 where a size is open.
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    return tuple(int(size.dim_value) for size in inputs[0].type.tensor_type.shape.dim) if inputs else ()
