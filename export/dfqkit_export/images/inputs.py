"""The images a tool feeds to a file, and what the file says of them.

What belongs here: `Inputs`, random ones, the shapes that a file wants, and `Entrance`, by which they go in. Reading
files of images of any kind is `comparison.inputs`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.pixels import PIXELS
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.onnxfile.graph import type_name
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


@dataclass(frozen=True, kw_only=True)
class Entrance:
    """How normalised images (n, C, H, W) go into a file: what its inputs are called, and what each takes of them.

    Attributes:
        names: Names of the file's inputs.
        shape: Of the images; sizes that the file leaves open are None.
        image: What the file says that it takes; None of a file of others.
    """

    names: tuple[str, ...]
    shape: tuple[int | None, ...]
    image: ImageSpec | None = None

    def feed(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return the arrays that the file takes, by name."""
        if self.image is None or self.image.plain:
            return {self.names[0]: np.ascontiguousarray(images, dtype=np.float32)}
        found = self.image.to_file(images)
        return found if self.image.inputs else {self.names[0]: found[""]}


def entrance(model: onnx.ModelProto, path: str | Path) -> Entrance:
    """Return how images go into a file.

    Raises:
        ArtefactError: It takes something other than one batch of float32 images, and does not say what.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value.type.tensor_type for value in model.graph.input if value.name not in stored}
    plain = [tensor.elem_type for tensor in inputs.values()] == [onnx.TensorProto.FLOAT]
    try:
        image = model_image(model)
    except ArtefactError:
        if not plain:
            raise
        image = None  # whoever asks for it says what is wrong with it
    kind = onnx.TensorProto.UINT8 if image is not None and image.dtype == PIXELS else onnx.TensorProto.FLOAT
    types = {name: tensor.elem_type for name, tensor in inputs.items()}
    pixels = [entry.name for entry in image.inputs if entry.shape is None] if image else []
    known = {entry.name for entry in image.inputs} if image else set[str]()
    fits = list(types.values()) == [kind]
    if not (set(types) == known and all(types[name] == kind for name in pixels) if known else fits):
        found = ", ".join(f"{name}: {type_name(tensor.elem_type)}" for name, tensor in inputs.items())
        message = (
            f"Model {str(path)!r} has {len(inputs)} input(s) ({found}); allowed is one float32 input, or what the "
            "file's own entry 'dfqkit.image' lists. Export the network alone, with weights as initializers and not as "
            "inputs."
        )
        raise ArtefactError(message)
    shape = [size.dim_value or None for size in inputs[pixels[0] if pixels else next(iter(inputs))].shape.dim]
    if image is not None and not image.plain:
        sizes = [shape[image.axis(place)] for place in range(len(shape))] if len(shape) == 4 else shape
        shape = [sizes[0], image.shape[0], *sizes[2:]]
    return Entrance(names=tuple(inputs), shape=tuple(shape), image=image)


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
    image = model_image(model)
    if image is not None and not image.plain:
        return image.shape
    sizes = _input_sizes(model)[1:]
    if sizes and min(sizes) > 0:
        return sizes
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
