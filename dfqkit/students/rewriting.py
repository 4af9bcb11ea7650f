"""Exact rewrites of a float graph in normal form, for layers that integer kernels would not find otherwise.

What belongs here: rewrites that keep the function up to rounding. Axes: a linear layer on maps whose channels come last
(ConvNeXt, Swin) is a 1x1 convolution between two permutations (`normal_form` writes it so), and permutations that undo
each other go. Scales: a constant a channel goes into the layer in front of it. BatchNorm is `folding`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from dfqkit.students.folding import scale_outputs
from dfqkit.students.nodes import bypass, called, op_name, source, tensor_at

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


def fold_scales(graph: fx.GraphModule) -> None:
    """Multiply constants a channel (ConvNeXt's layer scale) into the layer they follow, in place.

    Only where nothing else reads that layer and it is called once.
    """
    modules = dict(graph.named_modules())
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not torch.mul or len(node.args) != 2:
            continue
        for before, constant in (node.args, node.args[::-1]):
            layer = called(before, modules)
            if not isinstance(layer, nn.Conv2d | nn.Linear) or calls.count(str(before.target)) > 1:
                continue
            scale = _channel_scale(graph, constant, layer)
            if scale is None or len(before.users) > 1:
                continue
            scale_outputs(layer, scale)
            bypass(node, before)
            break


def _channel_scale(graph: fx.GraphModule, constant: object, layer: nn.Conv2d | nn.Linear) -> Tensor | None:
    """Return the constant as (C_out,), or None where it is none or does not lie along the layer's channels."""
    if not isinstance(constant, fx.Node) or constant.op != "get_attr":
        return None
    value = tensor_at(graph, constant.target)
    channels = layer.weight.shape[0]
    convolution = isinstance(layer, nn.Conv2d)
    rank = 4 if convolution else 2
    shape = (1,) * (rank - value.dim()) + tuple(value.shape)
    wanted = (1, channels, 1, 1) if convolution else (1, channels)
    return value.detach().reshape(-1) if shape == wanted else None
