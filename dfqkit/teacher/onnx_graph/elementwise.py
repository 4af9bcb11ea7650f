"""Operators that compute number by number, and those that reduce axes.

What belongs here: arithmetic, comparisons, activations, softmax, reductions. What moves values is `shapes`, what has
weights `layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import helper
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from dfqkit.teacher.onnx_graph.building import Building, Value, refuse
from dfqkit.teacher.onnx_graph.reading import Operator
from dfqkit.teacher.onnx_graph.table import OPERATORS, Given, axes_of, fixed, needed, plain, translates, whole_batch

_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Neg": torch.neg, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Floor": torch.floor,
    "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan,
    "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Erf": torch.erf, "Reciprocal": torch.reciprocal, "Relu": F.relu,
    "Softplus": F.softplus, "Softsign": F.softsign, "HardSwish": F.hardswish, "Mish": F.mish, "Not": torch.logical_not,
    "Atan": torch.atan, "IsNaN": torch.isnan,
}  # fmt: skip
_BINARY: dict[str, Callable[..., Any]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Pow": torch.pow, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "And": torch.logical_and,
    "Or": torch.logical_or, "Xor": torch.logical_xor,
}  # fmt: skip
_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceL2": torch.linalg.vector_norm, "ReduceL1": torch.linalg.vector_norm,
}  # fmt: skip
#: Parameters of activations: ONNX's name, its default, and torch's place for it.
_ALPHA = {"LeakyRelu": (F.leaky_relu, 0.01), "Elu": (F.elu, 1.0), "Celu": (F.celu, 1.0)}


def _binary(node: Operator, given: Given, to: Building) -> Value:
    one, other = needed(node, given, 0), needed(node, given, 1)
    first, second = plain(one, other), plain(other, one)
    if first is not one and node.kind not in ("Add", "Mul"):
        first = one  # torch's functions begin with a tensor
        if node.kind == "Sub":
            return to.call(torch.rsub, other, plain(one, other))
    elif first is not one:
        first, second = second, first
    return to.call(_BINARY[node.kind], first, second)


def _reduction(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    axes = axes_of(node, given)
    if not axes and node.get("noop_with_empty_axes", 0):
        return x
    axes = axes or list(range(x.rank))
    whole_batch(node, x, axes)
    keep = bool(node.get("keepdims", 1))
    more = {"ord": 1} if node.kind == "ReduceL1" else {}
    return to.call(_REDUCTIONS[node.kind], x, dim=axes, keepdim=keep, **more)


OPERATORS.update(dict.fromkeys(_UNARY, lambda node, given, to: to.call(_UNARY[node.kind], needed(node, given, 0))))
OPERATORS.update(dict.fromkeys(_BINARY, _binary))
OPERATORS.update(dict.fromkeys(_REDUCTIONS, _reduction))


@translates("ReduceSumSquare")
def _sum_of_squares(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    axes = axes_of(node, given) or list(range(x.rank))
    whole_batch(node, x, axes)
    return to.call(torch.sum, to.call(torch.square, x), dim=axes, keepdim=bool(node.get("keepdims", 1)))


@translates("ReduceProd")
def _product(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    axes = axes_of(node, given) or list(range(x.rank))
    whole_batch(node, x, axes)
    for axis in sorted(axes, reverse=True):
        x = to.call(torch.prod, x, dim=axis, keepdim=bool(node.get("keepdims", 1)))
    return x


@translates("Div")
def _div(node: Operator, given: Given, to: Building) -> Value:
    one, other = needed(node, given, 0), needed(node, given, 1)
    if not one.examples[0].is_floating_point():
        return to.call(torch.div, one, plain(other, one), rounding_mode="trunc")
    return to.call(torch.div, one, plain(other, one))


@translates("Mod")
def _mod(node: Operator, given: Given, to: Building) -> Value:
    function = torch.fmod if node.get("fmod", 0) else torch.remainder
    return to.call(function, needed(node, given, 0), needed(node, given, 1))


@translates("Min", "Max", "Sum", "Mean")
def _several(node: Operator, given: Given, to: Building) -> Value:
    function = {"Min": torch.minimum, "Max": torch.maximum}.get(node.kind, torch.add)
    found = needed(node, given, 0)
    for index in range(1, len(given)):
        found = to.call(function, found, needed(node, given, index))
    return to.call(torch.div, found, len(given)) if node.kind == "Mean" else found


@translates("Where")
def _where(node: Operator, given: Given, to: Building) -> Value:
    return to.call(torch.where, *(needed(node, given, index) for index in range(3)))


@translates("Cast")
def _cast(node: Operator, given: Given, to: Building) -> Value:
    x, kind = needed(node, given, 0), helper.tensor_dtype_to_np_dtype(int(node.get("to")))
    wanted = torch.from_numpy(np.zeros(1, kind)).dtype
    return x if x.examples[0].dtype == wanted else to.call(Tensor.to, x, wanted)


@translates("LeakyRelu", "Elu", "Celu")
def _alpha(node: Operator, given: Given, to: Building) -> Value:
    function, usual = _ALPHA[node.kind]
    return to.call(function, needed(node, given, 0), float(node.get("alpha", usual)))


@translates("Selu")
def _selu(node: Operator, given: Given, to: Building) -> Value:
    alpha, gamma = float(node.get("alpha", 1.67326319)), float(node.get("gamma", 1.05070102))
    return to.call(torch.mul, to.call(F.elu, needed(node, given, 0), alpha), gamma)


@translates("ThresholdedRelu")
def _thresholded(node: Operator, given: Given, to: Building) -> Value:
    return to.call(F.threshold, needed(node, given, 0), float(node.get("alpha", 1.0)), 0.0)


@translates("PRelu")
def _prelu(node: Operator, given: Given, to: Building) -> Value:
    x, slope = needed(node, given, 0), needed(node, given, 1)
    numbers = slope.constant
    sizes = () if numbers is None else tuple(numbers.shape)
    if numbers is not None and numbers.numel() == 1:
        return to.call(F.leaky_relu, x, float(numbers.item()))
    if numbers is not None and len(sizes) == x.rank - 1 and numbers.numel() == sizes[0]:
        flat = Value((numbers.flatten(), numbers.flatten()), None, slope.name)
        return to.call(F.prelu, x, flat)
    # Another number for each position: the general form.
    low = to.call(torch.mul, to.call(torch.clamp, x, max=0.0), slope)
    return to.call(torch.add, to.call(F.relu, x), low)


@translates("HardSigmoid")
def _hard_sigmoid(node: Operator, given: Given, to: Building) -> Value:
    alpha, beta = float(node.get("alpha", 0.2)), float(node.get("beta", 0.5))
    x = needed(node, given, 0)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return to.call(F.hardsigmoid, x)
    return to.call(F.hardtanh, to.call(torch.add, to.call(torch.mul, x, alpha), beta), 0.0, 1.0)


@translates("Gelu")
def _gelu(node: Operator, given: Given, to: Building) -> Value:
    return to.call(F.gelu, needed(node, given, 0), approximate=node.get("approximate", "none"))


@translates("Clip")
def _clip(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    if node.opset < 11:
        low, high = node.get("min"), node.get("max")
    else:
        low, high = (None if (bound := fixed(node, given, i)) is None else bound.item() for i in (1, 2))
    low = None if low is None or low <= torch.finfo(torch.float32).min else low
    high = None if high is None or high >= torch.finfo(torch.float32).max else high
    if not x.examples[0].is_floating_point():
        return x if low is None and high is None else to.call(torch.clamp, x, min=low, max=high)
    if (low, high) == (0, 6):
        return to.call(F.relu6, x)
    if (low, high) == (0, None):
        return to.call(F.relu, x)
    if low is not None and high is not None and low < high:
        return to.call(F.hardtanh, x, float(low), float(high))
    return x if low is None and high is None else to.call(torch.clamp, x, min=low, max=high)


@translates("Softmax", "LogSoftmax")
def _softmax(node: Operator, given: Given, to: Building) -> Value:
    function = torch.softmax if node.kind == "Softmax" else torch.log_softmax
    x = needed(node, given, 0)
    axis = int(node.get("axis", 1 if node.opset < 13 else -1)) % x.rank
    whole_batch(node, x, [axis])
    if node.opset >= 13 or all(size == 1 for size in x.examples[0].shape[axis + 1 :]):
        return to.call(function, x, axis)
    # Until opset 13, all axes from this one on were one.
    flat = to.call(function, to.call(torch.flatten, x, axis), axis)
    return to.call(torch.unflatten, flat, axis, x.sizes()[axis:])


@translates("LpNormalization")
def _normalise(node: Operator, given: Given, to: Building) -> Value:
    x, p = needed(node, given, 0), float(node.get("p", 2))
    return to.call(F.normalize, x, p, int(node.get("axis", -1)) % x.rank, 0.0)


@translates("ArgMax", "ArgMin")
def _arg(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    if node.get("select_last_index", 0):
        raise refuse(node, "asks for the last of equal values", "Leave select_last_index out when exporting.")
    axis = int(node.get("axis", 0)) % x.rank
    whole_batch(node, x, [axis])
    function = torch.argmax if node.kind == "ArgMax" else torch.argmin
    return to.call(function, x, axis, bool(node.get("keepdims", 1)))


@translates("TopK")
def _top(node: Operator, given: Given, to: Building) -> Any:
    x = needed(node, given, 0)
    count = node.get("k") if node.opset < 10 else fixed(node, given, 1)
    axis = int(node.get("axis", -1)) % x.rank
    whole_batch(node, x, [axis])
    largest, order = bool(node.get("largest", 1)), bool(node.get("sorted", 1))
    if count is None:
        raise refuse(node, "does not say how many it takes", "Export the file again.")
    return to.several(torch.topk, x, int(count), axis, largest, order)


@translates("CumSum")
def _cumulated(node: Operator, given: Given, to: Building) -> Value:
    axis = fixed(node, given, 1)
    if node.get("exclusive", 0) or node.get("reverse", 0) or axis is None:
        raise refuse(node, "sums exclusively or backwards", "Give the torch module, or fold the node (onnxsim).")
    return to.call(torch.cumsum, needed(node, given, 0), int(axis))
