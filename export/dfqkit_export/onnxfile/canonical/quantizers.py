"""Quantizers in one form: parameters said in full, values moved as codes, nothing quantized twice.

What belongs here: rewritings of QuantizeLinear and DequantizeLinear and of what stands between them. All are exact: to
quantize is monotone and is done to each value alone, so it may be done before values are moved or the largest is taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from dfqkit_export.onnxfile.canonical.workgraph import Rule, WorkGraph, ints, set_attribute
from dfqkit_export.onnxfile.graph import attribute, has_input

#: Operators that move values, or take the largest, and compute nothing.
MOVES = frozenset({"Reshape", "Transpose", "MaxPool", "Slice", "DepthToSpace", "SpaceToDepth", "Expand", "Resize"})


def said_in_full(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Say a zero point that is left out; say a scale of one number without a list and an axis."""
    scale = graph.value(node.input[1])
    if scale is None:
        return False
    changed = False
    if scale.size == 1 and scale.ndim:
        node.input[1], changed = graph.constant(scale.reshape(())), True
    if not has_input(node, 2):
        dtype = _code_type(graph, node)
        if dtype is not None:
            point = graph.constant(np.zeros(() if scale.size == 1 else scale.shape, dtype))
            node.input[:] = [*node.input[:2], point]
            set_attribute(node, "output_dtype", None)
            changed = True
    elif (point_value := graph.value(node.input[2])) is not None and point_value.size == 1 and point_value.ndim:
        node.input[2], changed = graph.constant(point_value.reshape(())), True
    rank, axis = graph.rank(node.input[0]), int(attribute(node, "axis", 1))
    wanted = None if scale.size == 1 else axis % rank if rank else axis
    if wanted != attribute(node, "axis", None):
        set_attribute(node, "axis", wanted)
        changed = True
    return changed


def _code_type(graph: WorkGraph, node: onnx.NodeProto) -> Any:
    if node.op_type == "QuantizeLinear":
        return helper.tensor_dtype_to_np_dtype(attribute(node, "output_dtype", 0) or onnx.TensorProto.UINT8)
    stored = graph.constants.get(graph.resolved(node.input[0]))
    if stored is not None:
        return helper.tensor_dtype_to_np_dtype(stored.data_type)
    maker = graph.producer(node.input[0])
    while maker is not None and maker.op_type in MOVES:
        maker = graph.producer(maker.input[0])
    if maker is None or maker.op_type != "QuantizeLinear":
        return None
    point = graph.value(maker.input[2]) if has_input(maker, 2) else None
    return point.dtype if point is not None else _code_type(graph, maker)


def quantized_again(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Take codes that were read and are written again on the same grid as they were."""
    before = graph.made_by(node.input[0], "DequantizeLinear")
    if before is None or not (has_input(node, 2) and has_input(before, 2)):
        return False
    if not all(graph.same(node.input[i], before.input[i]) for i in (1, 2)):
        return False
    if attribute(node, "axis", None) != attribute(before, "axis", None):
        return False
    return graph.stand_for(node.output[0], before.input[0])


def quantized_first(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Quantize values before they are moved."""
    mover = graph.producer(node.input[0])
    if mover is None or not _movable(graph, mover):
        return False
    attributes: dict[str, Any] = {}
    if not _one_scale(graph, node):
        perm = ints(mover, "perm")
        if mover.op_type != "Transpose" or perm is None:
            return False
        attributes["axis"] = perm[int(attribute(node, "axis", 1)) % len(perm)]
    source = mover.input[0]
    codes = graph.add("QuantizeLinear", [source, *node.input[1:]], attributes, name=node.name, like=source)
    return graph.stand_for(node.output[0], graph.copied(mover, codes))


def read_last(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Move codes before they are read; weights are turned with the axis of their scales."""
    reader = graph.made_by(node.input[0], "DequantizeLinear") if node.input else None
    if reader is None or not _movable(graph, node):
        return False
    attributes: dict[str, Any] = {}
    if not _one_scale(graph, reader):
        perm, rank = ints(node, "perm"), graph.rank(reader.input[0])
        if node.op_type != "Transpose" or perm is None or rank is None:
            return False
        attributes["axis"] = perm.index(int(attribute(reader, "axis", 1)) % rank)
    codes = graph.copied(node, reader.input[0])
    values = graph.add("DequantizeLinear", [codes, *reader.input[1:]], attributes, name=reader.name)
    return graph.stand_for(node.output[0], values)


def bound_by_codes(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Leave out a Relu or Clip that keeps what the codes can hold anyway."""
    before = graph.made_by(node.input[0], "Relu", "Clip")
    scale = graph.scalar(node.input[1])
    point: NDArray[Any] | None = graph.value(node.input[2]) if has_input(node, 2) else None
    if before is None or not scale or point is None or point.size != 1 or point.dtype.kind not in "iu":
        return False
    bounds: tuple[float | None, ...] = (0.0, None)
    if before.op_type == "Clip":
        bounds = tuple(graph.scalar(before.input[i]) if has_input(before, i) else None for i in (1, 2))
        if any(has_input(before, i) and bounds[i - 1] is None for i in (1, 2)):
            return False
    zero, limits = float(point.reshape(-1)[0]), np.iinfo(point.dtype)
    low, high = bounds
    if low is not None and np.rint(low / scale) + zero > limits.min:
        return False
    if high is not None and np.rint(high / scale) + zero < limits.max:
        return False
    node.input[0] = graph.resolved(before.input[0])
    return True


def _movable(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Whether an operator moves values that are computed; it has one output."""
    if node.op_type == "Resize" and (
        attribute(node, "mode", b"nearest") != b"nearest"
        or attribute(node, "coordinate_transformation_mode", b"half_pixel") == b"tf_crop_and_resize"
    ):
        return False
    return node.op_type in MOVES and not node.domain and len([name for name in node.output if name]) == 1


def _one_scale(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    return graph.scalar(node.input[1]) is not None


QUANTIZE: tuple[Rule, ...] = (said_in_full, quantized_again, bound_by_codes, quantized_first)
DEQUANTIZE: tuple[Rule, ...] = (said_in_full,)
