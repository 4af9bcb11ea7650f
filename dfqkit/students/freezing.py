"""The last step before export: put every number of a student on the grid that the integer file can hold.

What belongs here: rounding of scales, zero points and biases, so that the fake-quantized student in torch and the file
that ships are one and the same function. Weights need nothing: their codes are integers already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from torch import Tensor, fx, nn

from dfqkit.students.nodes import called, tensor_at
from dfqkit.students.onnx_nodes import input_scales, integer_bias
from dfqkit.students.quantizers import activation_proxy, zero_point_values

#: Significant bits of a weight's code and its scale together. With activation scales that are powers of two, the
#: product of integer accumulator and scale then fits float32's 24 bits for accumulators up to 2^20 at 8 bits and 2^16
#: at 4 bits: more than real layers reach.
CODE_AND_SCALE_BITS = 12

#: Largest bias code. A dead channel (BatchNorm trained to gamma 0) has weights, and so a weight scale, of nearly zero,
#: in units of which its bias would not fit int32; its scale is raised, at the cost of weights that hardly add to the
#: bias.
LARGEST_BIAS = 2**20


def freeze(student: fx.GraphModule) -> None:
    """Round a calibrated student's weight scales, zero points and biases in place; it is final afterwards.

    Biases become multiples of input scale x weight scale for every target: where a file keeps them in float, ONNX
    Runtime still rounds them so when it fuses the layer.
    """
    student.eval()
    with torch.no_grad():
        scales, units = input_scales(student), _output_units(student)
        for layers in _by_weights(student):
            inputs = {name: scales[name] for name in layers if name in scales}
            _round_weight_scale(layers, inputs, max(units.get(name, 1) for name in layers))
        even_zero_points(student)
        for layer, bias in integer_bias(student).items():
            tensor_at(student, f"{layer}.bias").copy_(bias)
    for parameter in student.parameters():
        parameter.requires_grad_(False)


def even_zero_points(student: fx.GraphModule) -> None:
    """Make every zero point even.

    Brevitas rounds x / scale + zero_point, ONNX rounds x / scale and adds the zero point; both round half to even,
    which is the same only where the zero point is even.
    """
    with torch.no_grad():
        for module in student.modules():
            shift, proxy = zero_point_values(module), activation_proxy(module)
            if shift is not None:
                largest = 2 ** int(proxy.bit_width()) - 2
                code = torch.round(proxy.zero_point() / 2).mul(2).clamp(max=largest)
                shift.copy_((code * proxy.scale()).reshape(shift.shape))


def _output_units(student: fx.GraphModule) -> dict[str, int]:
    """3 for each layer whose output's scale is 3 times a power of two (see `calibration`, ReLU6), by layer name."""
    modules = dict(student.named_modules())
    units: dict[str, int] = {}
    for node in student.graph.nodes:
        if not isinstance(called(node, modules), QuantWeightBiasInputOutputLayer):
            continue
        readers = list(node.users)
        if len(readers) == 1 and isinstance(called(readers[0], modules), nn.ReLU):
            readers = list(readers[0].users)
        proxies = (activation_proxy(called(reader, modules)) for reader in readers)
        if any(proxy is not None and float(torch.frexp(proxy.scale()).mantissa) == 3 / 4 for proxy in proxies):
            units[str(node.target)] = 3
    return units


def _by_weights(student: fx.GraphModule) -> list[dict[str, QuantWeightBiasInputOutputLayer]]:
    """Return the quantized layers, by name, those together that are calls of one layer."""
    groups: dict[nn.Module, dict[str, QuantWeightBiasInputOutputLayer]] = {}
    for name, module in student.named_modules():
        if isinstance(module, QuantWeightBiasInputOutputLayer):
            groups.setdefault(module.weight_quant, {})[name] = module
    return list(groups.values())


def _round_weight_scale(
    layers: Mapping[str, QuantWeightBiasInputOutputLayer], input_scales: Mapping[str, Tensor], unit: int
) -> None:
    """Give the weight scale of a layer, in all of its calls, few significant bits.

    What the runtime multiplies accumulators with is input scale x weight scale / output scale. That is short too, and
    rounds as the student in torch does, only where the weight scale is a multiple of the output scale's odd part.
    """
    layer = next(iter(layers.values()))
    weight_bits = int(layer.weight_quant.bit_width())
    bits = CODE_AND_SCALE_BITS - weight_bits - (0 if unit == 1 else 2)
    value = layer.weight_quant.tensor_quant.scaling_impl.value
    # So few bits as 8-bit codes leave could cut the largest weights if rounded down.
    rounding = torch.ceil if weight_bits > 4 else torch.round
    scale = short_mantissa(layer.quant_weight().scale.reshape(-1) / unit, bits, rounding=rounding) * unit
    for name, input_scale in input_scales.items():
        least = layers[name].bias.abs() / (input_scale * LARGEST_BIAS)
        least = least if scale.numel() > 1 else least.max()
        scale = torch.maximum(scale, short_mantissa(least / unit, bits, rounding=torch.ceil) * unit)
    # Brevitas keeps the largest weight, not the step: an integer apart.
    largest_code = 2 ** (weight_bits - 1) - int(layer.weight_quant.is_narrow_range)
    value.copy_((scale * largest_code).reshape(value.shape))


def short_mantissa(x: Tensor, bits: int, *, rounding: Callable[[Tensor], Tensor] = torch.round) -> Tensor:
    """Positive numbers rounded to ``bits`` significant bits: to the nearest, or by another ``rounding`` (ceil, floor).

    Example:
        >>> short_mantissa(torch.tensor([1.0, 1.2, 3.3]), 3).tolist()
        [1.0, 1.25, 3.5]
    """
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(rounding(mantissa * 2**bits) / 2**bits, exponent)
