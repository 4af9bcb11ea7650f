"""Weight scales of so few significant bits that products and sums of the integer network are exact in float32.

What belongs here: how many bits a channel's scale may have, and which short number takes its place. It is chosen before
biases are corrected and students are trained and judged, so that these see what ships.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as Layer
from torch import Tensor, fx, nn

from dfqkit.students.nodes import called
from dfqkit.students.onnx_nodes import input_codes, input_scales, weight_codes
from dfqkit.students.quantizers import activation_proxy
from dfqkit_export.backends.saturation import MOST, bound

#: Significant bits of a weight's code and its scale together that are always taken. With activation scales that are
#: powers of two, the product of integer accumulator and scale then fits float32's 24 bits for accumulators up to 2^20
#: at 8 bits and 2^16 at 4 bits: more than real layers reach.
CODE_AND_SCALE_BITS = 12
#: Significant bits of a scale where sums leave room for them: half a percent, of which no weight's code takes notice.
MOST_BITS = 8
#: Significant bits of a float32 number, and those that sums of the images seen may take: real ones reach 1.4 times them
#: in last layers, whose inputs are averages.
FLOAT_BITS, SUM_BITS = 24, 23
#: The most bits of weights whose scales are trained: those of others jump too far from one short number to the next.
TRAINED_BITS = 5

#: Times that a scale is made larger before it is left as it is: each time the codes are rounded anew.
_MOST_STEPS = 16

#: Largest bias code. A dead channel (BatchNorm trained to gamma 0) has weights, and so a weight scale, of nearly zero,
#: in units of which its bias would not fit int32; its scale is raised, at the cost of weights that hardly add to the
#: bias.
LARGEST_BIAS = 2**20


def round_weight_scales(student: fx.GraphModule, batches: Sequence[Tensor] = ()) -> None:
    """Make the weight scales of a student whose activation ranges are known short, in place.

    What a runtime multiplies accumulators with is input scale x weight scale / output scale. Torch multiplies first and
    sums in an order of its own: it gives the same bits where every partial sum, in units of the input scale's last bit
    times the weight scale's, stays below 2^24. The sums of all positive and of all negative products bound them. Where
    the output's scale is 3 times a power of two the weight scale is a multiple of 3, too: the quotient is short, then.

    Args:
        student: Scales that are short already stay as they are.
        batches: Normalised images (n, C, H, W) that show how large sums become; without any, scales get no more
            bits than `CODE_AND_SCALE_BITS` leaves them, but those whose inputs' scales are not short stay as they were
            trained: nothing is exact there, and training may have left weights close to ties that any other scale
            rounds otherwise.
    """
    student.eval()
    with torch.no_grad():
        sums, scales, units = _sums(student, batches), input_scales(student), _output_units(student)
        read = input_codes(student) if student.meta.get("sums_fit") else {}
        for layers in _by_weights(student):
            inputs = {name: scales[name] for name in layers if name in scales}
            short = _round(layers, inputs, {name: sums[name] for name in layers if name in sums}, units)
            codes = [read[name] for name in layers if name in read]
            if codes:
                low, high = min(low for low, _ in codes), max(high for _, high in codes)
                fit_sums(next(iter(layers.values())), low, high, short)


def fix_weight_scales(student: nn.Module) -> None:
    """Leave scales out of the training of a student whose rounding would move them far."""
    for module in student.modules():
        if isinstance(module, Layer):
            trained = int(module.weight_quant.bit_width()) <= TRAINED_BITS
            module.weight_quant.tensor_quant.scaling_impl.value.requires_grad_(trained)


def short_mantissa(x: Tensor, bits: int | Tensor, *, rounding: Callable[[Tensor], Tensor] = torch.round) -> Tensor:
    """Positive numbers rounded to ``bits`` significant bits: to the nearest, or by another ``rounding`` (ceil, floor).

    Example:
        >>> short_mantissa(torch.tensor([1.0, 1.2, 3.3]), 3).tolist()
        [1.0, 1.25, 3.5]
    """
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(rounding(mantissa * 2**bits) / 2**bits, exponent)


def _by_weights(student: fx.GraphModule) -> list[dict[str, Layer]]:
    """Return the quantized layers, by name, those together that are calls of one layer."""
    groups: dict[nn.Module, dict[str, Layer]] = {}
    for name, module in student.named_modules():
        if isinstance(module, Layer):
            groups.setdefault(module.weight_quant, {})[name] = module
    return list(groups.values())


def _output_units(student: fx.GraphModule) -> dict[str, int]:
    """3 for each layer whose output's scale is 3 times a power of two (see `calibration`, ReLU6), by layer name."""
    modules = dict(student.named_modules())
    units: dict[str, int] = {}
    for node in student.graph.nodes:
        if not isinstance(called(node, modules), Layer):
            continue
        readers = list(node.users)
        if len(readers) == 1 and isinstance(called(readers[0], modules), nn.ReLU):
            readers = list(readers[0].users)
        proxies = (activation_proxy(called(reader, modules)) for reader in readers)
        if any(proxy is not None and float(torch.frexp(proxy.scale()).mantissa) == 3 / 4 for proxy in proxies):
            units[str(node.target)] = 3
    return units


def _sums(student: fx.GraphModule, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the largest sum of a channel's positive or of its negative terms, (C_out,), by layer name."""
    found: dict[str, Tensor] = {}

    def watched(name: str) -> Callable[[Layer, tuple[Tensor, ...], Tensor], None]:
        def see(layer: Layer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight = layer.quant_weight().value.abs()
            sums = (layer.inner_forward_impl(inputs[0].abs(), weight, layer.bias.abs()) + output.abs()) / 2
            largest = sums.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1).amax(1)
            found[name] = torch.maximum(found.get(name, largest), largest)

        return see

    layers = {name: module for name, module in student.named_modules() if isinstance(module, Layer)}
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(watched(name)))
        for batch in batches:
            student(batch)
    return found


def _round(
    layers: Mapping[str, Layer], inputs: Mapping[str, Tensor], sums: Mapping[str, Tensor], units: Mapping[str, int]
) -> Callable[[Tensor], Tensor]:
    """Give the weight scale of a layer, in all of its calls, few significant bits; return what makes others so."""
    layer, unit = next(iter(layers.values())), max(units.get(name, 1) for name in layers)
    weight_bits = int(layer.weight_quant.bit_width())
    plain = layer.quant_weight().scale.reshape(-1) / unit
    least = CODE_AND_SCALE_BITS - weight_bits - (0 if unit == 1 else 2)
    most = max(least, MOST_BITS)
    if sums:
        rooms = [_room(largest, inputs[name], plain) for name, largest in sums.items() if name in inputs]
        bits = torch.stack([torch.full_like(plain, most), *rooms]).amin(0).clamp(min=least)
    else:
        bits = torch.where(short_mantissa(plain, most) == plain, most, least)
        if inputs and not any(_odd(scale) < 2**MOST_BITS for scale in inputs.values()):
            bits = torch.full_like(plain, FLOAT_BITS)
    scale = _better(layer, *(short_mantissa(plain, bits, rounding=way) * unit for way in (torch.floor, torch.ceil)))
    for name, input_scale in inputs.items():
        smallest = layers[name].bias.abs() / (input_scale * LARGEST_BIAS)
        smallest = smallest if scale.numel() > 1 else smallest.max()
        scale = torch.maximum(scale, short_mantissa(smallest / unit, least, rounding=torch.ceil) * unit)
    value = layer.weight_quant.tensor_quant.scaling_impl.value
    value.copy_((scale * largest_code(layer)).reshape(value.shape))
    return lambda larger: short_mantissa(larger / unit, bits, rounding=torch.ceil) * unit


def fit_sums(layer: Layer, low: int, high: int, short: Callable[[Tensor], Tensor]) -> bool:
    """Make the weight scale of channels larger in which a sum of two products can leave 16 bits (`saturation`).

    Args:
        layer: A convolution or a linear layer; depthwise ones add in 32 bits.
        low: The smallest code that it reads, as uint8.
        high: The largest.
        short: Makes scales short, and not smaller.

    Returns:
        Whether any was made larger.
    """
    if (layer.weight.shape[1] == 1 and getattr(layer, "groups", 1) > 1) or layer.output_channel_dim:
        return False
    value = layer.weight_quant.tensor_quant.scaling_impl.value
    for step in range(_MOST_STEPS):
        codes, scale = weight_codes(layer)
        found = bound(codes.numpy(), low, high)
        wide = torch.from_numpy(found.channels > 0)
        if not wide.any():
            return step > 0
        past = torch.from_numpy(1 + found.channels / MOST).to(scale).clamp(min=1 + 2.0**-MOST_BITS)
        larger = torch.where(wide, scale * past, scale)
        larger = short(larger) if value.numel() > 1 else short(larger.max())
        larger = torch.where(wide, larger, scale) if value.numel() > 1 else larger
        value.copy_((larger * largest_code(layer)).reshape(value.shape))
    return True


def _room(largest: Tensor, input_scale: Tensor, plain: Tensor) -> Tensor:
    """Significant bits that sums leave a scale ``plain`` (both (C_out,)); many where the input's is not short either.

    A scale for all channels, (1,), gets what the largest of their sums leaves.
    """
    odd = _odd(input_scale)
    if odd >= 2**MOST_BITS:
        return torch.full_like(plain, FLOAT_BITS)  # nothing is exact
    largest = largest if plain.numel() > 1 else largest.max()
    last_bit = torch.log2(largest / (input_scale / odd)).ceil() - SUM_BITS  # of the scale, as a power of two
    return torch.frexp(plain).exponent - last_bit


def _odd(scale: Tensor) -> int:
    """Return the odd number that a scale is a power of two of."""
    whole = int(math.frexp(float(scale))[0] * 2**FLOAT_BITS)
    return whole // (whole & -whole)


def _better(layer: Layer, low: Tensor, high: Tensor) -> Tensor:
    """Return of two scales, (C_out,) or (1,), the one that moves the weights less; the larger one cuts none."""
    weight, low_code = layer.weight.transpose(0, layer.output_channel_dim).flatten(1), -largest_code(layer)
    high_code = 2 ** (int(layer.weight_quant.bit_width()) - 1) - 1

    def error(scale: Tensor) -> Tensor:
        step = scale.unsqueeze(1)
        codes = torch.round(weight / step).clamp(low_code, high_code)
        lost: Tensor = (codes * step - weight).square().sum(1)
        return lost if scale.numel() > 1 else lost.sum()

    return torch.where(error(low) < error(high), low, high)


def largest_code(layer: Layer) -> int:
    """Return the quotient of what Brevitas keeps, the largest weight, and the scale."""
    return int(2 ** (int(layer.weight_quant.bit_width()) - 1)) - int(layer.weight_quant.is_narrow_range)
