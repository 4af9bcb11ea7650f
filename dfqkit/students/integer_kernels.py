"""What ONNX Runtime's integer kernels compute: exact sums of codes, then float32 operations in the runtime's order.

What belongs here: one formula an operator, in torch; those of two tensors of codes stand where other processors' do, in
`dfqkit_export.backends.onnxruntime.kernels`. ``rint`` rounds half to even; every ``*``, ``/`` and ``+`` rounds to
float32. Operators that are not here (Concat, LeakyRelu, Relu, MaxPool) are those of the values between DequantizeLinear
and QuantizeLinear, as the student has them. Additions depend on the processor: one without AVX2 may part on ties.

Source: ONNX Runtime 1.32, core/mlas/lib: quantize.cpp, qlmul.cpp, qlgavgpool.cpp, intrinsics/avx2/qladd_avx2.cpp;
contrib_ops/cpu/quantization/qlinear_pool.cc.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfqkit_export.backends.onnxruntime.kernels import Codes, Table, add_fused, mul_plain

#: Takes values, each on its grid; gives codes of the output's grid, beyond its ends too, or values where it has none.
Kernel = Callable[..., Tensor]

#: Up to here float32 holds every integer, and adds them exactly in any order.
_EXACT = 2**24


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where a tensor's values lie: codes from ``low`` to ``high``, of which ``zero`` stands for 0.

    Attributes:
        scale: float32, ().
    """

    scale: Tensor
    zero: int
    low: int
    high: int

    def steps(self, x: Tensor) -> Tensor:
        """Return the codes of values on the grid, less the zero point."""
        return torch.round(x / self.scale)

    def quantized(self, x: Tensor) -> Tensor:
        """Return the codes of any values: QuantizeLinear, rint(x / scale) + zero point."""
        return self.steps(x) + self.zero

    def values(self, codes: Tensor) -> Tensor:
        """Return what codes stand for, those beyond an end moved there: Clip and DequantizeLinear."""
        return (codes.clamp(self.low, self.high) - self.zero) * self.scale


def _requantized(sums: Tensor, factor: Tensor, out: Grid | None) -> Tensor:
    """Return what exact sums become: codes, or without a grid values."""
    if out is None:
        return sums.float() * factor
    return torch.round(sums.float() * (factor / out.scale)) + out.zero


def weighted(function: Kernel, weight: Tensor, scale: Tensor, bias: Tensor, grid: Grid, out: Grid | None) -> Kernel:
    """QLinearConv and QGemm: rint(sum * ((x's scale * w's) / y's scale)) + y's zero point.

    Without ``out`` it is sum * (x's scale * w's). Inputs of a linear layer that have more than two axes go through
    MatMulIntegerToFloat, and the bias is added in float.

    Args:
        function: Computes the layer of (x, weight, bias).
        weight: Codes, (C_out, ...).
        scale: float32, (C_out,).
        bias: Codes, (C_out,).
        grid: That of x.
        out: That of the output.
    """
    low, high, rows = grid.low - grid.zero, grid.high - grid.zero, weight.flatten(1)
    positive, negative = rows.clamp(min=0).sum(1), rows.clamp(max=0).sum(1)
    above = high * positive + low * negative + bias.clamp(min=0)  # what partial sums can reach
    below = low * positive + high * negative + bias.clamp(max=0)
    exact = int(torch.maximum(above, -below).max()) <= _EXACT and weight.device.type == "cpu"
    dtype, factor, axes = torch.float32 if exact else torch.float64, grid.scale * scale, weight.dim() - 2
    factor = factor.reshape(-1, *[1] * axes)

    def kernel(x: Tensor) -> Tensor:
        in_float = not axes and x.dim() > 2
        offset = torch.zeros_like(bias) if in_float else bias
        sums = function(grid.steps(x).to(dtype), weight.to(dtype), offset.to(dtype))
        if not in_float:
            return _requantized(sums, factor, out)
        values = sums.float() * factor + bias * factor
        return values if out is None else out.quantized(values)

    return kernel


def product_of_matrices(first: Grid, second: Grid, out: Grid | None) -> Kernel:
    """QLinearMatMul and MatMulIntegerToFloat: as layers."""
    factor = first.scale * second.scale
    return lambda x, y: _requantized(first.steps(x).double() @ second.steps(y).double(), factor, out)


def average_of_all(grid: Grid, out: Grid) -> Kernel:
    """QLinearGlobalAveragePool: rint(sum * (x's scale / (y's scale * n))) + y's zero point."""

    def kernel(x: Tensor) -> Tensor:
        sums = grid.steps(x).sum((2, 3), keepdim=True, dtype=torch.float64).float()
        return torch.round(sums * (grid.scale / (out.scale * (x.shape[2] * x.shape[3])))) + out.zero

    return kernel


def average(pool: nn.AvgPool2d, out: Grid) -> Kernel:
    """QLinearAveragePool: rint(mean / y's scale + y's zero point), the mean in float32 as torch has it."""
    return lambda x: torch.round(pool(x) / out.scale + out.zero)


def addition(first: Grid, second: Grid, out: Grid) -> Kernel:
    """QLinearAdd, as x86 with AVX2 computes it for each pair of codes."""
    return _looked_up(add_fused, first, second, out)


def product(first: Grid, second: Grid, out: Grid) -> Kernel:
    """QLinearMul, as x86 computes it for each pair of codes."""
    return _looked_up(mul_plain, first, second, out)


def _looked_up(formula: Callable[..., Table], first: Grid, second: Grid, out: Grid) -> Kernel:
    """Return the kernel that finds what two codes give in a table of all pairs."""
    grids = (first, second, out)
    table = formula(*(Codes(scale=float(g.scale), zero=g.zero, low=g.low, high=g.high) for g in grids))
    flat, width = torch.from_numpy(table).to(first.scale).flatten(), table.shape[1]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        row, column = first.steps(x) + (first.zero - first.low), second.steps(y) + (second.zero - second.low)
        return flat[(row * width + column).int()]

    return kernel
