"""How many multiply-adds each layer of a file costs, so that a share of layers can be a share of the work.

What belongs here: counting from shapes alone. What was executed how is the readers' question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

from dfqkit_export.onnxfile.graph import SourceGraph, attribute
from dfqkit_export.onnxfile.shapes import inferred_types

Shapes = Mapping[str, tuple[int, ...]]


def multiply_adds(model: onnx.ModelProto, image_shape: tuple[int, ...] | None = None) -> dict[str, int]:
    """Count the multiply-adds of the convolutions and matrix products by the names of their nodes, for one image.

    Layers whose shapes cannot be inferred are left out: all of them where the file leaves another size than the batch's
    open and `image_shape` (C, H, W) does not give it.
    """
    shapes = _shapes(model, image_shape)
    counts = {node.name: _count(node, shapes) for node in SourceGraph(model.graph).weighted()}
    return {name: count for name, count in counts.items() if count is not None}


def _shapes(model: onnx.ModelProto, image_shape: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    # One image: what a file states for a symbolic batch behind its input would contradict that.
    for name, kind in inferred_types(model, image=image_shape or ()).items():
        if kind.HasField("shape") and all(size.HasField("dim_value") for size in kind.shape.dim):
            stored.setdefault(name, tuple(size.dim_value for size in kind.shape.dim))
    return stored


def _count(node: onnx.NodeProto, shapes: Shapes) -> int | None:
    known = [shapes.get(name) for name in (node.input[0], node.input[1], node.output[0])]
    first, second, output = known
    if first is None or second is None or output is None or not first:
        return None
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    return math.prod(output) * (first[0] if attribute(node, "transA", 0) else first[-1])
