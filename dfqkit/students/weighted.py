"""Layers of an exported graph that multiply stored weights, as modules: convolutions, transposed or not, linear layers.

What belongs here: from an ATen call and its tensors to a `torch.nn` module. Which nodes become one is `normal_form`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from dfqkit.students.folding import with_parameters
from dfqkit.students.nodes import op_name, tensor_at

_TRANSPOSED = {"conv_transpose1d", "conv_transpose2d"}
#: Convolutions over one axis: made over two, the first of height 1, so that one kind of layer serves both.
ONE_AXIS = {"conv1d", "conv_transpose1d"}
#: Products whose second factor is (in, out) where a linear layer stores (out, in).
PRODUCTS = {"matmul", "mm"}
OPERATORS = _TRANSPOSED | ONE_AXIS | PRODUCTS | {"conv2d", "linear"}


class TransposedConvolution(nn.ConvTranspose2d):
    """One that adds its bias by itself.

    ONNX Runtime has no integer kernel for it, but rounds the float weights of a ConvTranspose between Q/DQ pairs to
    int8 all the same, with its own scales (`WeightBiasQuantization`; measured, 1.32): behind an Add it leaves them.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the maps (N, C_out, H', W')."""
        options: Any = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        mapped = nn.functional.conv_transpose2d(x, self.weight, None, *options)
        return mapped + tensor_at(self, "bias")[:, None, None]


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of an ATen call by name, its operator's own defaults among them."""
    schema: Any = getattr(node.target, "_schema")  # noqa: B009  # of operators only
    return {
        each.name: node.args[i] if i < len(node.args) else node.kwargs.get(each.name, each.default_value)
        for i, each in enumerate(schema.arguments)
    }


def operands(node: fx.Node) -> tuple[Any, Any, Any]:
    """Return what a call of one of `OPERATORS` reads, its weight and its bias."""
    given = arguments(node)
    x, weight = list(given.values())[:2]
    return x, weight, given.get("bias")


def is_layer(node: fx.Node) -> bool:
    """Whether a call of one of `OPERATORS` multiplies its input with a stored weight."""
    x, weight, bias = operands(node)
    stored = all(isinstance(each, fx.Node) and each.op == "get_attr" for each in (weight, bias) if each is not None)
    matrix = op_name(node.target) not in PRODUCTS or (weight.meta["val"].dim() == 2 and x.meta["val"].dim() > 1)
    return stored and matrix and x.op != "get_attr"


def make_layer(node: fx.Node, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return the layer that a call of one of `OPERATORS` runs.

    A linear layer on maps (rank 4, channels last) is a 1x1 convolution, which wants channels in front.
    """
    name, given = op_name(node.target), arguments(node)
    if name in PRODUCTS:
        weight = weight.t().contiguous()
    if weight.dim() == 2:
        channels, inputs = weight.shape
        if node.meta["val"].dim() != 4:
            return with_parameters(nn.Linear(inputs, channels, device="meta"), weight, bias)
        return with_parameters(nn.Conv2d(inputs, channels, 1, device="meta"), weight[:, :, None, None], bias)
    if name in ONE_AXIS:
        weight = weight.unsqueeze(2)
    options = {key: _pair(given[key], 1) for key in ("stride", "dilation")} | {"padding": _pair(given["padding"], 0)}
    kernel, groups = _pair(weight.shape[2:], 1), int(given["groups"])
    if name in _TRANSPOSED:
        channels, inputs = weight.shape[1] * groups, weight.shape[0]
        options["output_padding"] = _pair(given["output_padding"], 0)
        up = TransposedConvolution(inputs, channels, kernel, groups=groups, device="meta", **options)
        return with_parameters(up, weight, torch.zeros(channels).to(weight) if bias is None else bias)
    channels, inputs = weight.shape[0], weight.shape[1] * groups
    layer = nn.Conv2d(inputs, channels, kernel, groups=groups, device="meta", **options)
    return with_parameters(layer, weight, bias)


def _pair(value: Any, first: int) -> Any:
    """Return a size for each of two axes; of a single axis, with ``first`` in front."""
    if isinstance(value, str):
        return value
    sizes = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(sizes) if len(sizes) == 2 else (first, *sizes)
