"""Exact rewrites of a float graph in normal form, for layers that integer kernels would not find otherwise.

What belongs here: rewrites of axes. A linear layer on maps whose channels come last (ConvNeXt, Swin) is a 1x1
convolution between two permutations (`normal_form` writes it so), and permutations that undo each other go. Scales and
shifts are `folding`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from dfqkit.students.nodes import bypass, op_name, source

_ELEMENTWISE = {"gelu", "hardsigmoid", "hardtanh", "leaky_relu", "relu", "sigmoid", "tanh"}
_ELEMENTWISE_MODULES = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Hardtanh)


def cancel_permutations(graph: fx.GraphModule) -> None:
    """Take out permutations of axes that undo each other, in place, also across operators that look at no axis."""
    modules = dict(graph.named_modules())
    changed = True
    while changed:
        changed = any([_cancel(graph, node, modules) for node in list(graph.graph.nodes) if _is_permutation(node)])
    graph.graph.eliminate_dead_code()  # what is left over would count as a reader of its input


def _is_permutation(node: fx.Node) -> bool:
    return node.op == "call_function" and op_name(node.target) == "permute"


def _order(node: fx.Node) -> tuple[int, ...]:
    dims: Any = node.args[1]
    return tuple(dim % len(dims) for dim in dims)


def _cancel(graph: fx.GraphModule, node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Remove one pair, or bring a permutation nearer to the one it may undo."""
    if not node.users:
        return False
    before = source(node)
    if _is_permutation(before):
        if tuple(_order(before)[axis] for axis in _order(node)) != tuple(range(len(_order(node)))):
            return False
        bypass(node, source(before))
        return True
    if not (_is_elementwise(before, modules) and len(before.users) == 1 and _is_permutation(source(before))):
        return False
    with graph.graph.inserting_before(before):
        moved = graph.graph.call_function(torch.permute, (source(before), _order(node)))
    before.replace_input_with(source(before), moved)
    bypass(node, before)
    return True


def _is_elementwise(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _ELEMENTWISE_MODULES)
    return node.op == "call_function" and op_name(node.target) in _ELEMENTWISE
