"""What a node of a graph does to channels: the affine map it computes, and where it moves an axis.

What belongs here: reading, nothing is changed. What is done with the answers is `folding`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from dfqkit.students.nodes import op_name, tensor_at

_MOVES = {"permute", "transpose", "flatten", "reshape", "view", "unsqueeze", "squeeze"}
_OPERATORS = {"mul", "neg", "add", "sub", "rsub", "div"}


@dataclass(frozen=True)
class AffineMap:
    """``before * scale + shift`` along one axis.

    Attributes:
        before: The node whose value is mapped.
        axis: Where the numbers lie; None for one number.
        scale: (C,), or () for one number.
        shift: The same.
    """

    before: fx.Node
    axis: int | None
    scale: Tensor
    shift: Tensor


def affine_map(node: fx.Node, graph: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]]) -> AffineMap | None:
    """Return the affine map that a function call computes with constants, None where it computes anything else."""
    name, args = op_name(node.target), node.args
    if node.kwargs or node not in shapes:
        return None
    if name == "neg":
        args = (args[0], -1.0)
    elif name == "addcmul" and len(args) == 3:
        return _addcmul(node, graph, shapes)
    elif name not in _OPERATORS or len(args) != 2:
        return None
    for turned, (x, constant) in enumerate((args, args[::-1])):
        numbers = _numbers(constant, graph, shapes[node])
        if numbers is not None and isinstance(x, fx.Node) and shapes.get(x) == shapes[node]:
            axis, value = numbers
            if (form := _form(name, value, turned)) is not None:
                return AffineMap(x, axis, *form)
    return None


def _form(name: str, value: Tensor, turned: int) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift of (x, constant), turned those of (constant, x); None where they do not exist."""
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    if name == "div":
        return None if turned else (1 / value, zero)
    if name == "add":
        return one, value
    if name in ("sub", "rsub"):
        return (-one, value) if turned == (name == "sub") else (one, -value)
    return value, zero


def _addcmul(node: fx.Node, graph: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]]) -> AffineMap | None:
    shift, *factors = node.args
    for x, scale in (factors, factors[::-1]):
        found = [_numbers(each, graph, shapes[node]) for each in (scale, shift)]
        if isinstance(x, fx.Node) and shapes.get(x) == shapes[node] and found[0] and found[1]:
            (first, by), (second, to) = found[0], found[1]
            if None in (first, second) or first == second:
                by, to = by + torch.zeros_like(to), to + torch.zeros_like(by)  # the same shape
                return AffineMap(x, second if first is None else first, by, to)
    return None


def _numbers(value: object, graph: fx.GraphModule, shape: Sequence[int]) -> tuple[int | None, Tensor] | None:
    """Return a constant as the axis along which it lies and its numbers; None where it is none, or lies along two."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None, torch.tensor(float(value))
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    tensor = tensor_at(graph, value.target).detach()
    if not tensor.is_floating_point() or tensor.dim() > len(shape):
        return None
    full = (1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape)
    axes = [axis for axis, size in enumerate(full) if size != 1]
    if not axes:
        return None, tensor.reshape(())
    return (axes[0], tensor.reshape(-1)) if len(axes) == 1 and axes[0] > 0 else None


def is_structural(node: fx.Node) -> bool:
    """Whether a node moves values of one tensor, each to one place."""
    return node.op == "call_function" and op_name(node.target) in _MOVES


def _order(node: fx.Node, rank: int) -> tuple[int, ...] | None:
    """Return which axis of its input each axis is, for operators that give axes another order."""
    name = op_name(node.target)
    if name == "permute":
        dims: Any = node.args[1]
        return tuple(dim % rank for dim in dims)
    if name == "transpose":
        order = list(range(rank))
        swapped: Any = node.args[1:3]
        first, second = (dim % rank for dim in swapped)
        order[first], order[second] = second, first
        return tuple(order)
    return None


def axis_before(node: fx.Node, before: Sequence[int], shape: Sequence[int], axis: int) -> int | None:
    """Return which axis in front of an operator that moves values is ``axis`` behind it; None where none is.

    Args:
        node: The operator.
        before: The shape in front of it.
        shape: The shape behind it.
        axis: The axis behind it.
    """
    order = _order(node, len(shape))
    if order is not None:
        return order[axis]
    behind = math.prod(shape[axis + 1 :])
    found = (a for a, size in enumerate(before) if size == shape[axis] and math.prod(before[a + 1 :]) == behind)
    return next(found, None)


def axis_behind(node: fx.Node, before: Sequence[int], shape: Sequence[int], axis: int) -> tuple[int, Tensor] | None:
    """Return where ``axis`` in front of an operator lies behind it, and which channel each place there comes from.

    Args:
        node: The operator.
        before: The shape in front of it.
        shape: The shape behind it.
        axis: The axis in front of it.

    Returns:
        The axis and the channels (size of the axis,); None where the axis is split, or joined with the images'.
    """
    order, channels = _order(node, len(shape)), before[axis]
    if order is not None:
        return order.index(axis), torch.arange(channels)
    step = math.prod(before[axis + 1 :])
    for place in range(1, len(shape)):
        least = math.prod(shape[place + 1 :])
        if step % least == 0 and (least * shape[place]) % (step * channels) == 0:
            return place, (torch.arange(shape[place]) * least // step) % channels
    return None
