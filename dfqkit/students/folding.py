"""BatchNorm folding on a float graph in normal form, and the helpers that make and scale its layers."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx, nn

from dfqkit.students.nodes import bypass, called, source, tensor_at


def with_parameters(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Give a layer made on the meta device its tensors: the global random state is never drawn from."""
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(weight.new_zeros(weight.shape[0]) if bias is None else bias)
    return layer


def add_submodule(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path, making plain containers on the way."""
    *parents, leaf = path.split(".")
    for part in parents:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(leaf, module)


def scale_outputs(layer: nn.Conv2d | nn.Linear, scale: Tensor) -> Tensor:
    """Multiply what a layer gives by a number a channel, (C_out,), in place; return its bias."""
    bias = tensor_at(layer, "bias")
    with torch.no_grad():
        layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
        return bias.mul_(scale)


def fold_batch_norms(graph: fx.GraphModule) -> None:
    """Take every BatchNorm out of ``graph``, in place.

    One that follows a convolution or linear layer used by nothing else goes into its weight and bias; any other becomes
    a depthwise 1x1 convolution with the attribute ``affine_norm``.
    """
    modules = dict(graph.named_modules())
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    for node in list(graph.graph.nodes):
        norm = called(node, modules)
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = source(node)
        layer = called(before, modules)
        scale = norm.weight.detach() / torch.sqrt(tensor_at(norm, "running_var") + norm.eps)
        shift = norm.bias.detach() - tensor_at(norm, "running_mean") * scale
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and len(before.users) == 1 and calls[str(before.target)] == 1:
            with torch.no_grad():
                scale_outputs(layer, scale).add_(shift)
            bypass(node, before)
            continue
        channels = scale.numel()
        affine = nn.Conv2d(channels, channels, 1, groups=channels, device="meta")
        with_parameters(affine, scale.reshape(channels, 1, 1, 1).clone(), shift.clone())
        affine.affine_norm = True  # type: ignore[assignment]  # stays at 8 bits: its weights are one number a channel
        add_submodule(graph, str(node.target), affine.eval())
