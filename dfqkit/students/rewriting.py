"""Exact rewrites of a float graph in normal form, for layers that integer kernels would not find otherwise.

What belongs here: rewrites that keep the function up to rounding. Axes: a linear layer on maps whose channels come last
(ConvNeXt, Swin) is a 1x1 convolution between two permutations (`normal_form` writes it so), and permutations that undo
each other go. Scales: a constant a channel goes into the layer in front of it. BatchNorm is `folding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, fx, nn

from dfqkit.students.normal_form import op_name

_ELEMENTWISE = {"gelu", "hardsigmoid", "hardtanh", "leaky_relu", "relu", "sigmoid", "tanh"}
_ELEMENTWISE_MODULES = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Hardtanh)


def cancel_permutations(graph: fx.GraphModule) -> None:
    """Take out permutations of axes that undo each other, in place, also across operators that look at no axis."""
    modules = dict(graph.named_modules())
    changed = True
    while changed:
        changed = any([_cancel(graph, node, modules) for node in list(graph.graph.nodes) if _is_permutation(node)])
    graph.graph.eliminate_dead_code()  # what is left over would count as a reader of its input


def _is_permutation(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and op_name(node.target) == "permute"


def _order(node: fx.Node) -> tuple[int, ...]:
    dims: Sequence[int] = node.args[1]  # type: ignore[assignment]
    return tuple(dim % len(dims) for dim in dims)


def _cancel(graph: fx.GraphModule, node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Remove one pair, or bring a permutation nearer to the one it may undo."""
    before = node.args[0]
    if not isinstance(before, fx.Node) or not node.users:
        return False
    if _is_permutation(before):
        if tuple(_order(before)[axis] for axis in _order(node)) != tuple(range(len(_order(node)))):
            return False
        node.replace_all_uses_with(before.args[0])  # type: ignore[arg-type]
        graph.graph.erase_node(node)
        return True
    if not (_is_elementwise(before, modules) and len(before.users) == 1 and _is_permutation(before.args[0])):
        return False
    with graph.graph.inserting_before(before):
        moved = graph.graph.call_function(torch.permute, (before.args[0], _order(node)))
    before.replace_input_with(before.args[0], moved)  # type: ignore[arg-type]
    node.replace_all_uses_with(before)
    graph.graph.erase_node(node)
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
        for layer_node, constant in (node.args, node.args[::-1]):
            layer = modules.get(str(layer_node.target)) if getattr(layer_node, "op", "") == "call_module" else None
            if not isinstance(layer, nn.Conv2d | nn.Linear) or calls.count(str(layer_node.target)) > 1:
                continue
            scale = _channel_scale(graph, constant, layer)
            if scale is None or len(layer_node.users) > 1:
                continue
            with torch.no_grad():
                layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
                layer.bias.mul_(scale)  # type: ignore[union-attr]
            node.replace_all_uses_with(layer_node)
            graph.graph.erase_node(node)
            break


def _channel_scale(graph: fx.GraphModule, constant: object, layer: nn.Conv2d | nn.Linear) -> Tensor | None:
    """Return the constant as (C_out,), or None where it is none or does not lie along the layer's channels."""
    if not isinstance(constant, fx.Node) or constant.op != "get_attr":
        return None
    value: Tensor = reduce(getattr, str(constant.target).split("."), graph)  # type: ignore[assignment, arg-type]
    channels = layer.weight.shape[0]
    convolution = isinstance(layer, nn.Conv2d)
    rank = 4 if convolution else 2
    shape = (1,) * (rank - value.dim()) + tuple(value.shape)
    wanted = (1, channels, 1, 1) if convolution else (1, channels)
    return value.detach().reshape(-1) if shape == wanted else None
