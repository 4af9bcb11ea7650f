"""Operators with weights: convolutions, linear layers, norms, as modules of torch.

What belongs here: what becomes an `nn.Module` at the path of its weight. Recurrent layers are `recurrent`, pooling and
resizing `sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from dfqkit.teacher.onnx_graph.building import Building, Value, refuse
from dfqkit.teacher.onnx_graph.reading import Operator
from dfqkit.teacher.onnx_graph.table import Given, needed, optional, translates

_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
_GIVE_TORCH = "Give the torch module that the file was made from."


def holding(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Give a layer made on the meta device its parameters; None for one that it does not have."""
    for name, tensor in tensors.items():
        setattr(layer, name, None if tensor is None else nn.Parameter(tensor.clone(), requires_grad=False))
    return layer


def window(node: Operator, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Return stride and dilation of each axis, and the zeros before all axes and behind all.

    SAME_UPPER and SAME_LOWER give ceil(size / stride) places; the odd zero is behind, or before.
    """
    axes = len(kernel)
    stride, dilation = (list(node.get(key) or [1] * axes) for key in ("strides", "dilations"))
    auto = node.get("auto_pad", "NOTSET")
    if auto == "VALID":
        return stride, dilation, [0] * (2 * axes)
    if auto == "NOTSET":
        return stride, dilation, list(node.get("pads") or [0] * (2 * axes))
    before, behind = [], []
    for size, width, step, apart in zip(sizes, kernel, stride, dilation, strict=True):
        total = max(0, (-(-size // step) - 1) * step + (width - 1) * apart + 1 - size)
        small = total // 2
        before.append(small if auto == "SAME_UPPER" else total - small)
        behind.append(total - before[-1])
    return stride, dilation, before + behind


def padded(x: Value, pads: Sequence[int], to: Building, fill: float = 0.0) -> tuple[Value, tuple[int, ...]]:
    """Return a value and the padding that a layer can do by itself: the same on both sides of an axis."""
    axes = len(pads) // 2
    before, behind = pads[:axes], pads[axes:]
    if list(before) == list(behind):
        return x, tuple(before)
    flat = [side[axis] for axis in reversed(range(axes)) for side in (before, behind)]
    return to.call(F.pad, x, flat, "constant", fill), (0,) * axes


@translates("Conv")
def _convolution(node: Operator, given: Given, to: Building) -> Value:
    x, weight, bias = needed(node, given, 0), needed(node, given, 1), optional(given, 2)
    kernel, groups = weight.examples[0].shape[2:], int(node.get("group", 1))
    if len(kernel) not in _CONVOLUTIONS:
        raise refuse(node, f"is a convolution over {len(kernel)} axes", "Images have two; " + _GIVE_TORCH)
    stride, dilation, pads = window(node, x.examples[0].shape[2:], kernel)
    x, padding = padded(x, pads, to)
    stored = weight.constant
    if stored is None or (bias is not None and bias.constant is None):
        function = F.conv2d if len(kernel) == 2 else F.conv1d
        return to.call(function, x, weight, bias, tuple(stride), padding, tuple(dilation), groups)
    layer = _CONVOLUTIONS[len(kernel)](
        stored.shape[1] * groups, stored.shape[0], tuple(kernel), tuple(stride), padding, tuple(dilation), groups,
        bias=bias is not None, device="meta",
    )  # fmt: skip
    return to.layer(node, holding(layer, weight=stored, bias=None if bias is None else bias.constant), x)


@translates("ConvTranspose")
def _transposed(node: Operator, given: Given, to: Building) -> Value:
    x, weight, bias = needed(node, given, 0), needed(node, given, 1), optional(given, 2)
    stored, kernel = weight.constant, weight.examples[0].shape[2:]
    if stored is None or len(kernel) not in _TRANSPOSED or (bias is not None and bias.constant is None):
        raise refuse(node, "is no transposed convolution over one or two axes with stored weights", _GIVE_TORCH)
    axes, groups = len(kernel), int(node.get("group", 1))
    stride, dilation = (list(node.get(key) or [1] * axes) for key in ("strides", "dilations"))
    more = list(node.get("output_padding") or [0] * axes)
    pads = list(node.get("pads") or [0] * (2 * axes))
    auto = node.get("auto_pad", "NOTSET")
    sizes = x.examples[0].shape[2:]
    full = [
        (size - 1) * step + (width - 1) * apart + 1 + extra
        for size, step, width, apart, extra in zip(sizes, stride, kernel, dilation, more, strict=True)
    ]
    wanted = list(node.get("output_shape") or ())[-axes:]
    if not wanted and auto.startswith("SAME"):
        wanted = [size * step for size, step in zip(sizes, stride, strict=True)]
    if wanted:
        totals = [max(0, have - want) for have, want in zip(full, wanted, strict=True)]
        before = [total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals]
        pads = before + [total - each for total, each in zip(totals, before, strict=True)]
    even = pads[:axes] == pads[axes:]
    layer = _TRANSPOSED[axes](
        stored.shape[0], stored.shape[1] * groups, tuple(kernel), tuple(stride), tuple(pads[:axes]) if even else 0,
        tuple(more), groups, bias is not None, tuple(dilation), device="meta",
    )  # fmt: skip
    made = to.layer(node, holding(layer, weight=stored, bias=None if bias is None else bias.constant), x)
    for axis in range(axes if not even else 0):
        length = made.examples[0].shape[2 + axis]
        made = to.call(torch.narrow, made, 2 + axis, pads[axis], length - pads[axis] - pads[axes + axis])
    return made


@translates("BatchNormalization")
def _batch_norm(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    stored = [needed(node, given, index).constant for index in range(1, 5)]
    if node.get("training_mode", 0) or any(each is None for each in stored):
        raise refuse(node, "was exported in training mode", "Export the network in eval mode.")
    scale, shift, mean, variance = (each for each in stored if each is not None)
    kind: Any = nn.BatchNorm2d if x.rank == 4 else nn.BatchNorm1d
    layer = kind(len(mean), eps=float(node.get("epsilon", 1e-5)), device="meta")
    layer.num_batches_tracked = None
    layer.running_mean, layer.running_var = mean.clone(), variance.clone()
    return to.layer(node, holding(layer, weight=scale, bias=shift), x)


@translates("InstanceNormalization")
def _instance_norm(node: Operator, given: Given, to: Building) -> Value:
    x, scale, shift = (needed(node, given, index) for index in range(3))
    if scale.constant is None or shift.constant is None or x.rank not in (3, 4):
        raise refuse(node, "has no stored weights, or no maps", _GIVE_TORCH)
    kind: Any = nn.InstanceNorm2d if x.rank == 4 else nn.InstanceNorm1d
    layer = kind(len(scale.constant), eps=float(node.get("epsilon", 1e-5)), affine=True, device="meta")
    return to.layer(node, holding(layer, weight=scale.constant, bias=shift.constant), x)


@translates("LayerNormalization")
def _layer_norm(node: Operator, given: Given, to: Building) -> Value:
    x, scale, shift = needed(node, given, 0), optional(given, 1), optional(given, 2)
    axis = int(node.get("axis", -1)) % x.rank
    sizes = tuple(x.examples[0].shape[axis:])
    stored = [None if each is None else each.constant for each in (scale, shift)]
    computed = any((one is None) != (other is None) for one, other in zip((scale, shift), stored, strict=True))
    if computed or set(range(axis, x.rank)) & set(x.moving):
        raise refuse(node, "has no stored weights, or runs across images", _GIVE_TORCH)
    weight, bias = (None if each is None else each.expand(sizes) for each in stored)
    options: dict[str, Any] = {"elementwise_affine": weight is not None, "bias": bias is not None, "device": "meta"}
    layer = nn.LayerNorm(sizes, eps=float(node.get("epsilon", 1e-5)), **options)
    return to.layer(node, holding(layer, weight=weight, bias=bias), x)


@translates("GroupNormalization")
def _group_norm(node: Operator, given: Given, to: Building) -> Value:
    x, scale, shift = (needed(node, given, index) for index in range(3))
    groups, channels = int(node.get("num_groups")), x.examples[0].shape[1]
    if scale.constant is None or shift.constant is None:
        raise refuse(node, "has no stored weights", _GIVE_TORCH)
    # Until opset 21 there is a number a group.
    weight, bias = (
        each if len(each) == channels else each.repeat_interleave(channels // groups)
        for each in (scale.constant, shift.constant)
    )
    layer = nn.GroupNorm(groups, channels, eps=float(node.get("epsilon", 1e-5)), device="meta")
    return to.layer(node, holding(layer, weight=weight, bias=bias), x)


@translates("LRN")
def _response_norm(node: Operator, given: Given, to: Building) -> Value:
    options = (float(node.get("alpha", 1e-4)), float(node.get("beta", 0.75)), float(node.get("bias", 1.0)))
    (channels,) = (each for each in node.attributes.values() if isinstance(each, int))  # its window is its only integer
    return to.call(F.local_response_norm, needed(node, given, 0), channels, *options)


@translates("Gemm")
def _gemm(node: Operator, given: Given, to: Building) -> Value:
    x, weight, bias = needed(node, given, 0), needed(node, given, 1), optional(given, 2)
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    if node.get("transA", 0):
        x = to.call(torch.t, x)
    stored, shift = weight.constant, None if bias is None else bias.constant
    channels = 0 if stored is None else stored.shape[0 if node.get("transB", 0) else 1]
    if stored is not None and (bias is None or (shift is not None and shift.numel() in (1, channels))):
        matrix = stored if node.get("transB", 0) else stored.t()
        if shift is not None:
            shift = beta * shift.flatten().expand(channels)
        return linear(node, matrix * alpha if alpha != 1 else matrix, shift, x, to)
    product = to.call(torch.matmul, x, to.call(torch.t, weight) if node.get("transB", 0) else weight)
    product = product if alpha == 1 else to.call(torch.mul, product, alpha)
    if bias is None:
        return product
    return to.call(torch.add, product, bias if beta == 1 else to.call(torch.mul, bias, beta))


@translates("MatMul")
def _product(node: Operator, given: Given, to: Building) -> Value:
    x, weight = needed(node, given, 0), needed(node, given, 1)
    if weight.constant is not None and weight.rank == 2 and x.node is not None and x.rank > 1:
        bias = optional(given, 2)  # of an Add behind it, which the idioms put here
        return linear(node, weight.constant.t(), None if bias is None else bias.constant, x, to)
    return to.call(torch.matmul, x, weight)


def linear(node: Operator, matrix: Tensor, bias: Tensor | None, x: Value, to: Building) -> Value:
    """Return what a linear layer gives; its matrix is (out, in)."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None, device="meta")
    return to.layer(node, holding(layer, weight=matrix.contiguous(), bias=bias), x)


@translates("Einsum")
def _einsum(node: Operator, given: Given, to: Building) -> Value:
    return to.call(torch.einsum, node.get("equation"), *(needed(node, given, i) for i in range(len(given))))
