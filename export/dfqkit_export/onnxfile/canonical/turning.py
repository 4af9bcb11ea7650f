"""Transposes moved behind what can be done before them, so that those of another layout meet and cancel.

What belongs here: an operator that reads turned values, as one that reads them as they were, with its axes, pads and
constants turned back, and a Transpose behind it. All are exact. Between an operator and a Transpose there may be a
DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from dfqkit_export.onnxfile.canonical.workgraph import Rule, WorkGraph, ints, plain_attributes
from dfqkit_export.onnxfile.graph import attribute, has_input

_OF_TWO = ("Add", "Mul", "Sub", "Div", "Pow", "PRelu", "Max", "Min", "Sum", "Mean", "Where", "Equal", "Less", "Greater")
_OF_ONE = (
    "Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu", "Celu", "Softplus",
    "Softsign", "ThresholdedRelu", "Gelu", "Mish", "Erf", "Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Sin",
    "Cos", "Floor", "Ceil", "Round", "Sign", "Cast", "Not", "Identity",
)  # fmt: skip
_REDUCTIONS = tuple(
    f"Reduce{kind}" for kind in ("Mean", "Sum", "Max", "Min", "L1", "L2", "Prod", "SumSquare", "LogSum", "LogSumExp")
)


def turned(graph: WorkGraph, tensor: str) -> tuple[str, list[int]] | None:
    """Return what a tensor was before it was turned, read with the same numbers, and how it was turned."""
    reader = graph.made_by(tensor, "DequantizeLinear")
    turn = graph.made_by(tensor if reader is None else reader.input[0], "Transpose")
    perm = ints(turn, "perm") if turn is not None else None
    if turn is None or perm is None:
        return None
    if reader is None:
        return turn.input[0], perm
    inputs, attributes = [turn.input[0], *reader.input[1:]], {}
    if graph.scalar(reader.input[1]) is None:
        attributes["axis"] = perm[int(attribute(reader, "axis", 1)) % len(perm)]
    return graph.add("DequantizeLinear", inputs, attributes, name=reader.name, like=turn.input[0]), perm


def turned_back(graph: WorkGraph, tensor: str, perm: Sequence[int]) -> str | None:
    """Return a tensor of which a Transpose gives this one: of a constant, or where sizes of 1 alone would be moved."""
    shape, back = graph.shape(tensor), np.argsort(perm)
    if shape is None or len(shape) > len(perm):
        return None
    whole = (1,) * (len(perm) - len(shape)) + shape
    if (value := graph.value(tensor, None)) is not None:
        return graph.constant(value.reshape(whole).transpose(back))
    now = [int(axis) for axis in back if whole[axis] != 1]
    if now != sorted(now):
        return None
    found = graph.add("Reshape", [tensor], {"to": [whole[axis] for axis in back]})
    graph.shapes[found] = tuple(whole[axis] for axis in back)
    return found


def stripped(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Leave out the leading sizes of 1 of a constant that is spread over the other input anyway."""
    if len(node.input) != 2:
        return False
    for place in (0, 1):
        value, rank = graph.value(node.input[place], None), graph.rank(node.input[1 - place])
        if value is None or rank is None or rank < value.ndim or value.ndim == 0 or value.shape[0] != 1:
            continue
        kept = np.trim_zeros(np.array(value.shape) != 1, "f").size
        node.input[place] = graph.constant(value.reshape(value.shape[value.ndim - kept :]))
        return True
    return False


def alone(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Turn later what is computed of each place alone."""
    return _behind(graph, node, range(len(node.input)), single=True)


def reshaped(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Give another shape later to what is computed of each place alone."""
    inputs, shapes = list(node.input), set()
    for place, tensor in enumerate(inputs):
        if not tensor or graph.scalar(tensor) is not None:
            continue
        reader = graph.made_by(tensor, "DequantizeLinear")
        before = graph.made_by(tensor if reader is None else reader.input[0], "Reshape")
        if before is None or (reader is not None and graph.scalar(reader.input[1]) is None):
            return False
        inputs[place] = source = before.input[0]
        if reader is not None:
            inputs[place] = graph.add("DequantizeLinear", [source, *reader.input[1:]], name=reader.name, like=source)
        shapes.add((graph.shape(source), graph.shape(before.output[0])))
    out = graph.shape(node.output[0])
    if len(shapes) != 1 or None in (out, *next(iter(shapes))) or next(iter(shapes))[1] != out:
        return False
    like = next(name for name, old in zip(inputs, node.input, strict=True) if name != old)
    new = graph.add(node.op_type, inputs, plain_attributes(node), name=node.name, like=like)
    return graph.stand_for(node.output[0], graph.add("Reshape", [new], {"to": list(out or ())}, like=node.output[0]))


def joined(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Turn later what was joined."""
    return _behind(graph, node, range(len(node.input)), axis=0)


def along(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Turn later what is computed along one axis."""
    return _behind(graph, node, [0], axis=-1)


def _behind(
    graph: WorkGraph, node: onnx.NodeProto, places: Sequence[int], *, axis: int | None = None, single: bool = False
) -> bool:
    before = {place: turned(graph, node.input[place]) for place in places if node.input[place]}
    perms = [found[1] for found in before.values() if found is not None]
    if not perms or any(perm != perms[0] for perm in perms):
        return False
    perm, inputs = perms[0], list(node.input)
    for place, found in before.items():
        if found is not None:
            inputs[place] = found[0]
        elif not (single and graph.scalar(inputs[place]) is not None):  # one number is the same in every order
            back = turned_back(graph, inputs[place], perm)
            if back is None:
                return False
            inputs[place] = back
    attributes = plain_attributes(node)
    if axis is not None:
        attributes["axis"] = perm[int(attribute(node, "axis", axis)) % len(perm)]
    return _replaced(graph, node, inputs, attributes, perm)


def _replaced(
    graph: WorkGraph, node: onnx.NodeProto, inputs: Sequence[str], attributes: dict[str, Any], perm: Sequence[int]
) -> bool:
    out, shape = graph.add(node.op_type, inputs, attributes, name=node.name), graph.shape(node.output[0])
    if shape is not None and len(shape) == len(perm):
        graph.shapes[out] = tuple(shape[perm.index(axis)] for axis in range(len(perm)))
    if list(perm) != sorted(perm):
        out = graph.add("Transpose", [out], {"perm": list(perm)}, like=node.output[0])
    return graph.stand_for(node.output[0], out)


def reduced(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Turn later what is left of a reduction."""
    before = turned(graph, node.input[0])
    axes = graph.value(node.input[1]) if has_input(node, 1) else None
    if before is None or axes is None:
        return False
    source, perm = before
    gone = sorted(perm[int(axis) % len(perm)] for axis in axes.reshape(-1))
    inputs = [source, graph.constant(np.array(gone, np.int64))]
    if not attribute(node, "keepdims", 1):
        left = [axis for axis in perm if axis not in gone]
        perm = [sorted(left).index(axis) for axis in left]
    return _replaced(graph, node, inputs, plain_attributes(node), perm)


def cut(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Turn later what a Slice leaves."""
    before = turned(graph, node.input[0])
    axes = graph.value(node.input[3]) if has_input(node, 3) else None
    if before is None or axes is None:
        return False
    source, perm = before
    now = graph.constant(np.array([perm[int(axis) % len(perm)] for axis in axes.reshape(-1)], np.int64))
    return _replaced(graph, node, [source, *node.input[1:3], now, *node.input[4:]], {}, perm)


def padded(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Turn later what has pads on all axes."""
    before, pads = turned(graph, node.input[0]), graph.value(node.input[1])
    if before is None or pads is None or has_input(node, 3) or pads.size != 2 * len(before[1]):
        return False
    source, perm = before
    now = graph.constant(pads.reshape(2, -1)[:, np.argsort(perm)].reshape(-1))
    return _replaced(graph, node, [source, now, *node.input[2:]], plain_attributes(node), perm)


def resized(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Turn later what was resized."""
    before = turned(graph, node.input[0])
    if before is None or has_input(node, 1) or ints(node, "axes") is not None:
        return False
    source, perm = before
    inputs, back = [source, *node.input[1:]], np.argsort(perm)
    for place in range(2, len(inputs)):
        value = graph.value(inputs[place]) if inputs[place] else None
        if value is not None and value.size == len(perm):
            inputs[place] = graph.constant(value.reshape(-1)[back])
        elif inputs[place]:
            return False
    return _replaced(graph, node, inputs, plain_attributes(node), perm)


RULES: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(_OF_TWO, (stripped, alone, reshaped)),
    **dict.fromkeys(_OF_ONE, (alone, reshaped)),
    **dict.fromkeys(_REDUCTIONS, (reduced,)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), (along,)),
    "Concat": (joined,),
    "Slice": (cut,),
    "Pad": (padded,),
    "Resize": (resized,),
}
