"""Scales and zero points that no runtime may see: some divide by them without a look, and die.

What belongs here: finding the constant parameters of every quantization operator, also those of Constant nodes, of
graphs inside nodes and of functions. What computes its parameters is left to the process that runs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from dfqkit_export.errors import ArtefactError
from dfqkit_export.onnxfile.graph import attribute, inner_graphs
from dfqkit_export.onnxfile.skeleton import values_of

#: Places of the scales among the inputs, each with that of its zero point.
_BINARY = ((1, 2), (4, 5), (6, 7))
_UNARY = ((1, 2), (3, 4))
_PARAMETERS: dict[str, tuple[tuple[int, int], ...]] = {
    "DequantizeLinear": ((1, 2),),
    "DynamicQuantizeMatMul": ((2, 3),),
    "MatMulIntegerToFloat": ((2, 4), (3, 5)),
    "QAttention": ((3, 6), (4, 7)),
    "QGemm": ((1, 2), (4, 5), (7, 8)),
    "QLinearAdd": _BINARY,
    "QLinearAveragePool": _UNARY,
    "QLinearConv": _BINARY,
    "QLinearConvTranspose": _BINARY,
    "QLinearGlobalAveragePool": _UNARY,
    "QLinearLeakyRelu": _UNARY,
    "QLinearMatMul": _BINARY,
    "QLinearMul": _BINARY,
    "QLinearReduceMean": _UNARY,
    "QLinearSigmoid": _UNARY,
    "QLinearSoftmax": _UNARY,
    "QLinearWhere": ((2, 3), (5, 6), (7, 8)),
    "QuantizeLinear": ((1, 2),),
}
_PAIR = frozenset({"DequantizeLinear", "QuantizeLinear"})
# These hand values on in another form; Cast is looked at, since it can make 0 and inf of a number.
_HANDED_ON = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_MOST_DEEP, _MOST_NODES = 32, 1_000_000

Known = dict[str, Any]


def check_parameters(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a model whose quantization operators have constant parameters that no number can be divided by.

    Raises:
        ArtefactError: A scale is 0, negative, infinite or not a number, there is none, or scales and zero points do not
            fit each other or the axis; or functions call each other without end.
    """
    _Walk(model, path).graph(model.graph, {}, {}, 0)


class _Walk:
    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        self._path = path
        self._functions = {(item.domain, item.name): item for item in model.functions}
        self._seen = 0

    def graph(self, graph: onnx.GraphProto, outer: Known, given: Mapping[str, Any], depth: int) -> None:
        known = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
        self._nodes(graph.node, known, given, depth)

    def _nodes(self, nodes: Iterable[onnx.NodeProto], known: Known, given: Mapping[str, Any], depth: int) -> None:
        """Go through nodes in order; `known` gets what is constant, `given` are the attributes of a function's call."""
        if depth > _MOST_DEEP:
            self._refuse(f"its graphs and functions are nested more than {_MOST_DEEP} deep, or call themselves")
        for node in nodes:
            self._seen += 1
            if self._seen > _MOST_NODES:
                self._refuse(f"its functions become more than {_MOST_NODES:,} nodes")
            self._check(node, known)
            for inner in inner_graphs(node):
                self.graph(inner, known, given, depth + 1)
            function = self._functions.get((node.domain, node.op_type))
            if function is not None:
                self._call(function, node, known, depth)
            elif node.op_type == "Constant" and node.output:
                known[node.output[0]] = _constant(node, given)
            elif node.op_type in _HANDED_ON and node.input and node.output:
                known[node.output[0]] = _handed_on(node, known.get(node.input[0]))

    def _call(self, function: onnx.FunctionProto, node: onnx.NodeProto, known: Known, depth: int) -> None:
        inner: Known = dict(zip(function.input, (known.get(name) for name in node.input), strict=False))
        given = {item.name: item for item in (*function.attribute_proto, *node.attribute)}
        self._nodes(function.node, inner, given, depth + 1)
        known.update(zip(node.output, (inner.get(name) for name in function.output), strict=False))

    def _check(self, node: onnx.NodeProto, known: Known) -> None:
        places = _PARAMETERS.get(node.op_type, ())
        if node.op_type == "QLinearConcat":
            places = tuple((place, place + 1) for place in (0, *range(3, len(node.input), 3)))
        for at, zero_at in places:
            scale = self._values(node, at, known)
            if scale is None:
                continue
            wrong = _wrong_scale(scale) or _wrong_sizes(node, scale, self._shape(node, zero_at, known), known)
            if wrong:
                self._refuse(f"{node.op_type} {node.name!r:.100} has {wrong}")

    def _values(self, node: onnx.NodeProto, at: int, known: Known) -> NDArray[Any] | None:
        found = known.get(node.input[at]) if at < len(node.input) and node.input[at] else None
        if not isinstance(found, TensorProto):
            return found
        try:
            return None if found.data_type == TensorProto.STRING else values_of(found)
        except (KeyError, TypeError, ValueError) as error:
            self._refuse(f"{node.op_type} {node.name!r:.100} has a parameter that is not whole ({error})")
            return None

    def _shape(self, node: onnx.NodeProto, at: int, known: Known) -> tuple[int, ...] | None:
        return _shape_of(known.get(node.input[at])) if at < len(node.input) and node.input[at] else None

    def _refuse(self, wrong: str) -> None:
        message = (
            f"Model {str(self._path)!r} is not given to a runtime: {wrong}. Runtimes crash of such a file, or compute "
            "nothing; it is damaged, or its calibration is: quantize it again."
        )
        raise ArtefactError(message)


def _wrong_scale(scale: NDArray[Any]) -> str:
    if not scale.size:
        return "no scale: its tensor holds no number"
    if scale.dtype.kind in "biu":
        return f"a scale of type {scale.dtype}; allowed are floats"
    with np.errstate(all="ignore"):
        numbers = scale.astype(np.float64).reshape(-1)
    wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
    where = f" (number {wrong[0]} of {numbers.size})" if wrong.size and numbers.size > 1 else ""
    return f"the scale {numbers[wrong[0]]:g}{where}; allowed are finite numbers above 0" if wrong.size else ""


def _wrong_sizes(node: onnx.NodeProto, scale: NDArray[Any], zero: tuple[int, ...] | None, known: Known) -> str:
    if node.op_type not in _PAIR:
        return ""
    if zero is not None and math.prod(zero) != scale.size:
        return f"{scale.size} scale(s) and {math.prod(zero)} zero point(s); allowed are as many of both"
    shape = _shape_of(known.get(node.input[0]))
    if scale.size == 1 or shape is None or attribute(node, "block_size", 0):
        return ""
    axis = attribute(node, "axis", 1)
    fits = isinstance(axis, int) and -len(shape) <= axis < len(shape) and shape[axis] == scale.size
    if fits and scale.ndim == 1:
        return ""
    return f"scales of shape {list(scale.shape)} for axis {axis!r:.20} of a tensor of shape {list(shape)}"


def _shape_of(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, TensorProto):
        return tuple(value.dims)
    return None if value is None else value.shape


def _constant(node: onnx.NodeProto, given: Mapping[str, Any]) -> Any:
    for stored in node.attribute:
        item = given.get(stored.ref_attr_name) if stored.ref_attr_name else stored
        if item is None:
            continue
        if item.HasField("t"):
            return item.t
        if stored.name in ("value_float", "value_floats", "value_int", "value_ints"):
            return np.array(helper.get_attribute_value(item), np.float32 if "float" in stored.name else np.int64)
    return None


def _handed_on(node: onnx.NodeProto, value: Any) -> Any:
    if node.op_type != "Cast" or value is None:
        return value
    to = attribute(node, "to", 0)
    if to not in TensorProto.DataType.values() or to in (TensorProto.UNDEFINED, TensorProto.STRING):
        return None
    stored = values_of(value) if isinstance(value, TensorProto) else value
    with np.errstate(all="ignore"):
        return stored.astype(helper.tensor_dtype_to_np_dtype(to))
