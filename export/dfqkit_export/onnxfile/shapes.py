"""Types and shapes of a model's tensors, as far as ONNX can infer them.

What belongs here: the call to shape inference, without carrying a model's weights through it. What a shape means is the
caller's question.
"""

from __future__ import annotations

import math
from typing import Any

import onnx
from onnx import helper

from dfqkit_export.errors import ArtefactError

# Inference looks at the values of small constants only (new shapes, axes); large ones would just be copied.
_SMALL = 1024
# Of an image's axes: how many there are, and what tells that channels are last.
_AXES, _CHANNELS = 3, (1, 3, 4)


def inferred_types(model: onnx.ModelProto, *, image: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Return the tensor type (`onnx.TypeProto.Tensor`) of every tensor of the main graph that one is known of.

    With `image`, one image takes the place of the file's batch, of this shape (C, H, W), or the file's where it is ();
    what the file says of the tensors behind its inputs is then forgotten. None takes the file's word for everything.
    """
    slim = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph, old = slim.graph, model.graph
    graph.name = old.name or "graph"
    for field in ("node", "input", "output"):
        getattr(graph, field).extend(getattr(old, field))
    known = {value.name for value in graph.input}
    if image is None:
        graph.value_info.extend(old.value_info)
    else:
        _take_one_image(graph, {tensor.name for tensor in old.initializer}, image)
    for tensor in old.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in known:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    try:
        found = onnx.shape_inference.infer_shapes(slim, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        found = graph  # An operator of a domain or version that onnx does not know: what the file declares must do.
    return {value.name: value.type.tensor_type for value in [*found.input, *found.value_info, *found.output]}


def _take_one_image(graph: onnx.GraphProto, stored: set[str], image: tuple[int, ...]) -> None:
    # Old files repeat initializers among the inputs.
    for sizes in (value.type.tensor_type.shape.dim for value in graph.input if value.name not in stored):
        if image and len(sizes) == 1 + len(image):
            for size, number in zip(sizes[1:], image, strict=True):
                size.dim_value = number
        if sizes:
            sizes[0].dim_value = 1
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def image_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that are no initializers; old exporters list those too.

    Raises:
        ArtefactError: There is none.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs: list[onnx.ValueInfoProto] = [value for value in model.graph.input if value.name not in stored]
    if not inputs:
        message = "The file has no input: it is a constant, not a network. Export the network itself."
        raise ArtefactError(message)
    return inputs


def told_sizes(value: onnx.ValueInfoProto) -> str:
    """Return an input's sizes for people, such as ``(N, 3, ?, 320)``."""
    sizes = value.type.tensor_type.shape.dim
    return f"({', '.join(str(size.dim_value) if size.dim_value > 0 else size.dim_param or '?' for size in sizes)})"


def stated_image(model: onnx.ModelProto) -> tuple[int, int, int] | None:
    """Return (C, H, W) of the images that a file takes, of which channels may come last; None where it leaves it open.

    Raises:
        ArtefactError: It takes none.
    """
    found = [size.dim_value for size in image_inputs(model)[0].type.tensor_type.shape.dim][1:]
    if len(found) != _AXES or min(found) < 1:
        return None
    first, middle, last = found
    return (last, first, middle) if last in _CHANNELS and first not in _CHANNELS else (first, middle, last)
