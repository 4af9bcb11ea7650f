"""The last step before export: put every number of a student on the grid that the integer file can hold.

What belongs here: rounding of scales, zero points and biases, so that the fake-quantized student in torch and the file that
ships are one and the same function. Weights need nothing: their codes are integers already.
"""

from __future__ import annotations

import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from torch import Tensor, fx, nn

from dfqkit_export.qdq import integer_bias

#: Bits of mantissa that a weight scale keeps. With activation scales that are powers of two, a product of integer
#: accumulator and scale then fits float32's 24 bits exactly for accumulators up to 2^16.
SCALE_MANTISSA = 8


def freeze(student: fx.GraphModule, *, integer_biases: bool) -> None:
    """Round weight scales, zero points and biases in place; the student is final afterwards.

    Args:
        student: calibrated, and distilled if it is to be.
        integer_biases: round biases to int32 multiples of input scale x weight scale, as the target stores them.
    """
    student.eval()
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, QuantWeightBiasInputOutputLayer):
                _round_weight_scale(module)
        even_zero_points(student)
        if integer_biases:
            for layer, bias in integer_bias(student).items():
                student.get_submodule(layer).bias.copy_(bias)  # type: ignore[operator, union-attr]
    for parameter in student.parameters():
        parameter.requires_grad_(False)


def even_zero_points(student: fx.GraphModule) -> None:
    """Make every zero point even.

    Brevitas rounds x / scale + zero_point, ONNX rounds x / scale and adds the zero point; both round half to even, which is
    the same only where the zero point is even.
    """
    with torch.no_grad():
        for module in student.modules():
            quantizer = activation_internals(module)
            shift = getattr(getattr(quantizer, "zero_point_impl", None), "value", None)
            if shift is None:
                continue
            scale = module.act_quant.scale()  # type: ignore[union-attr, operator]
            code = torch.round(module.act_quant.zero_point() / 2) * 2  # type: ignore[union-attr, operator]
            shift.copy_((code * scale).reshape(shift.shape))


def activation_internals(module: nn.Module) -> nn.Module | None:
    """The Brevitas module that holds an activation quantizer's scale and zero point, or None for any other module."""
    if not hasattr(module, "act_quant") or isinstance(module, QuantWeightBiasInputOutputLayer):
        return None
    return module.act_quant.fused_activation_quant_proxy.tensor_quant  # type: ignore[no-any-return, union-attr]


def _round_weight_scale(layer: QuantWeightBiasInputOutputLayer) -> None:
    value = layer.weight_quant.tensor_quant.scaling_impl.value
    before = layer.quant_weight().scale.reshape(value.shape)
    per_code = torch.round(value / before)  # Brevitas keeps the largest weight, not the step; an integer apart
    value.copy_(short_mantissa(before, SCALE_MANTISSA) * per_code)


def short_mantissa(x: Tensor, bits: int) -> Tensor:
    """Positive numbers rounded to ``bits`` significant bits.

    Example:
        >>> short_mantissa(torch.tensor([1.0, 1.2, 3.3]), 3).tolist()
        [1.0, 1.25, 3.5]
    """
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent)
