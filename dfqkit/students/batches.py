"""A graph for any batch size of a network that reads its batch size as a number.

What belongs here: the way round `int(x.shape[0])` and `len(x)`, at which a capture with a dynamic batch ends. The
network is captured at two fixed sizes; what differs between the graphs is a number that follows the batch, and is
written as one that does. Whether the result holds for other sizes is for the caller to try.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from dfqkit.students.nodes import op_name, tensor_at
from dfqkit.students.user_code import at, place_of_node
from dfqkit_export.errors import TeacherError

#: The two batch sizes: neither is one that networks have as a number of their own, nor 1, which is special.
SIZES = (7, 11)

_RESHAPES = {"view", "reshape", "_unsafe_view"}


def for_any_batch(first: fx.GraphModule, second: fx.GraphModule) -> fx.GraphModule:
    """Rewrite the graph that was captured at ``SIZES[0]``, in place, with what that at ``SIZES[1]`` tells.

    Raises:
        TeacherError: The graphs differ in more than numbers that follow the batch; names the user's line.
    """
    ours, theirs = list(first.graph.nodes), list(second.graph.nodes)
    follows: dict[tuple[int, int], fx.Node] = {}
    for one, other in zip(ours, theirs, strict=False):
        same = (one.op, str(one.target)) == (other.op, str(other.target))
        if same and one.op == "get_attr":
            same = torch.equal(tensor_at(first, one.target), tensor_at(second, one.target))
        if not same:
            raise TeacherError(_depends(one))
    if len(ours) != len(theirs):
        raise TeacherError(_depends(ours[min(len(ours), len(theirs)) - 1]))
    twin = dict(zip(theirs, ours, strict=True))
    for one, other in zip(ours, theirs, strict=True):
        if one.op == "call_function":
            args = _merged(first, one, one.args, fx.map_arg(other.args, lambda n: twin[n]), follows)
            one.args = tuple(_reshape(one, args))
            one.kwargs = _merged(first, one, one.kwargs, fx.map_arg(other.kwargs, lambda n: twin[n]), follows)
    first.graph.lint()
    first.recompile()
    return first


def _depends(node: fx.Node) -> str:
    return (
        f"The model does other things with another batch size{at(place_of_node(node))} (operator "
        f"'{op_name(node.target)}'): a loop over the images of a batch, or a branch on its size. Compute with the "
        "whole batch at once."
    )


def _merged(graph: fx.GraphModule, node: fx.Node, one: Any, other: Any, follows: dict[tuple[int, int], fx.Node]) -> Any:
    """Return the first of two arguments, each number that differs as a node that computes it from the batch size."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return type(one)([_merged(graph, node, a, b, follows) for a, b in zip(one, other, strict=True)])
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return {key: _merged(graph, node, value, other[key], follows) for key, value in one.items()}
    if one == other and type(one) is type(other):
        return one
    if type(one) is int and type(other) is int and (other - one) % (SIZES[1] - SIZES[0]) == 0:
        factor = (other - one) // (SIZES[1] - SIZES[0])
        return _number(graph, factor, one - factor * SIZES[0], follows)
    raise TeacherError(_depends(node))


def _number(graph: fx.GraphModule, factor: int, rest: int, follows: dict[tuple[int, int], fx.Node]) -> fx.Node:
    """Return a node with ``factor`` times the batch size plus ``rest``."""
    if (factor, rest) in follows:
        return follows[factor, rest]
    nodes = graph.graph
    if (factor, rest) == (1, 0):
        image = next(n for n in nodes.nodes if n.op == "placeholder")
        behind = next(n for n in nodes.nodes if n.op not in ("placeholder", "get_attr"))
        with nodes.inserting_before(behind):
            made = nodes.call_function(torch.ops.aten.sym_size.int, (image, 0))
    elif rest:
        before = _number(graph, factor, 0, follows)
        with nodes.inserting_after(before):
            made = nodes.call_function(operator.add, (before, rest))
    else:
        before = _number(graph, 1, 0, follows)
        with nodes.inserting_after(before):
            made = nodes.call_function(operator.mul, (before, factor))
    follows[factor, rest] = made
    return made


def _reshape(node: fx.Node, args: Any) -> Any:
    """Return the arguments, of a reshape with one number that follows the batch as -1, which files hold best."""
    if op_name(node.target) not in _RESHAPES:
        return args
    sizes = list(args[1])
    moving = [i for i, size in enumerate(sizes) if isinstance(size, fx.Node)]
    if len(moving) == 1 and -1 not in sizes:
        sizes[moving[0]] = -1
    return (args[0], sizes)
