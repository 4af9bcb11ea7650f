"""The last step before export: put every number of a student on the grid that the integer file can hold.

What belongs here: rounding of scales, zero points and biases, so that the fake-quantized student in torch and the file
that ships are one and the same function. Weights need nothing: their codes are integers already.
"""

from __future__ import annotations

from typing import Any

import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from torch import Tensor, fx, nn

from dfqkit_export.qdq import input_scales, integer_bias

#: Bits of mantissa that a weight scale keeps. With activation scales that are powers of two, a product of integer
#: accumulator and scale then fits float32's 24 bits exactly for accumulators up to 2^16.
SCALE_MANTISSA = 8

#: Largest bias code. A dead channel (BatchNorm trained to gamma 0) has weights, and so a weight scale, of nearly zero,
#: in units of which its bias would not fit int32; its scale is raised, at the cost of weights that hardly add to the
#: bias.
LARGEST_BIAS = 2**20


def freeze(student: fx.GraphModule, *, integer_biases: bool) -> None:
    """Round weight scales, zero points and biases in place; the student is final afterwards.

    Args:
        student: calibrated, and distilled if it is to be.
        integer_biases: round biases to int32 multiples of input scale x weight scale, as the target stores them.
    """
    student.eval()
    with torch.no_grad():
        scales = input_scales(student) if integer_biases else {}
        for name, module in student.named_modules():
            if isinstance(module, QuantWeightBiasInputOutputLayer):
                _round_weight_scale(module, scales.get(name))
        even_zero_points(student)
        if integer_biases:
            for layer, bias in integer_bias(student).items():
                student.get_submodule(layer).bias.copy_(bias)  # type: ignore[operator, union-attr]
    for parameter in student.parameters():
        parameter.requires_grad_(False)


def even_zero_points(student: fx.GraphModule) -> None:
    """Make every zero point even.

    Brevitas rounds x / scale + zero_point, ONNX rounds x / scale and adds the zero point; both round half to even,
    which is the same only where the zero point is even.
    """
    with torch.no_grad():
        for module in student.modules():
            quantizer = activation_internals(module)
            shift = getattr(getattr(quantizer, "zero_point_impl", None), "value", None)
            if shift is None:
                continue
            proxy: Any = module.act_quant
            largest = 2 ** int(proxy.bit_width()) - 2
            code = torch.round(proxy.zero_point() / 2).mul(2).clamp(max=largest)
            shift.copy_((code * proxy.scale()).reshape(shift.shape))


def activation_internals(module: nn.Module) -> nn.Module | None:
    """The Brevitas module that holds an activation quantizer's scale and zero point, or None for any other module."""
    if not hasattr(module, "act_quant") or isinstance(module, QuantWeightBiasInputOutputLayer):
        return None
    proxy: Any = module.act_quant
    internals: nn.Module = proxy.fused_activation_quant_proxy.tensor_quant
    return internals


def _round_weight_scale(layer: QuantWeightBiasInputOutputLayer, input_scale: Tensor | None) -> None:
    value = layer.weight_quant.tensor_quant.scaling_impl.value
    scale = short_mantissa(layer.quant_weight().scale.reshape(-1), SCALE_MANTISSA)
    if input_scale is not None:
        least = layer.bias.abs() / (input_scale * LARGEST_BIAS)
        scale = torch.maximum(
            scale, short_mantissa(least if scale.numel() > 1 else least.max(), SCALE_MANTISSA, up=True)
        )
    # Brevitas keeps the largest weight, not the step: an integer apart.
    largest_code = 2 ** (int(layer.weight_quant.bit_width()) - 1) - int(layer.weight_quant.is_narrow_range)
    value.copy_((scale * largest_code).reshape(value.shape))


def short_mantissa(x: Tensor, bits: int, *, up: bool = False) -> Tensor:
    """Positive numbers rounded to ``bits`` significant bits, to the nearest or upwards.

    Example:
        >>> short_mantissa(torch.tensor([1.0, 1.2, 3.3]), 3).tolist()
        [1.0, 1.25, 3.5]
    """
    mantissa, exponent = torch.frexp(x)
    rounded = torch.ceil(mantissa * 2**bits) if up else torch.round(mantissa * 2**bits)
    return torch.ldexp(rounded / 2**bits, exponent)
