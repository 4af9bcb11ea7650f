"""BatchNorm folding on a float graph in normal form, and the two helpers that build modules without drawing numbers."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn


def with_parameters(layer: nn.Module, weight: Tensor, bias: Tensor | None, channels: int) -> nn.Module:
    """Give a layer made on the meta device its tensors: the global random state is never drawn from.

    Args:
        layer: Convolution or linear layer without storage.
        weight: Its weight.
        bias: (channels,), or None for zeros.
        channels: Output channels.
    """
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(torch.zeros(channels, dtype=weight.dtype, device=weight.device) if bias is None else bias)
    return layer


def add_submodule(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path, making plain containers on the way."""
    *parents, leaf = path.split(".")
    for part in parents:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(leaf, module)


def fold_batch_norms(graph: fx.GraphModule) -> None:
    """Take every BatchNorm out of ``graph``, in place.

    One that follows a convolution or linear layer used by nothing else goes into its weight and bias; any other becomes
    a depthwise 1x1 convolution with the attribute ``affine_norm``.
    """
    modules = dict(graph.named_modules())
    calls: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for node in list(graph.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = node.args[0]
        layer = modules.get(str(before.target)) if before.op == "call_module" else None
        scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)  # type: ignore[operator, arg-type]
        shift = norm.bias.detach() - norm.running_mean * scale  # type: ignore[operator]
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and len(before.users) == 1 and calls[str(before.target)] == 1:
            with torch.no_grad():
                layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
                layer.bias.mul_(scale).add_(shift)  # type: ignore[union-attr]
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
            continue
        channels = scale.numel()
        affine = nn.Conv2d(channels, channels, 1, groups=channels, device="meta")
        with_parameters(affine, scale.reshape(channels, 1, 1, 1).clone(), shift.clone(), channels)
        affine.affine_norm = True  # type: ignore[assignment]  # stays at 8 bits: its weights are one number a channel
        add_submodule(graph, str(node.target), affine.eval())
