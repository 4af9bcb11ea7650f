"""Weight scales are as short as exact sums want them, and are so before biases are corrected."""

from __future__ import annotations

import math

import brevitas.nn as qnn
import pytest
import torch
from torch import Tensor, fx, nn

from dfqkit.students.freezing import freeze
from dfqkit.students.onnx_nodes import input_scales
from dfqkit.students.weight_scales import (
    CODE_AND_SCALE_BITS,
    FLOAT_BITS,
    MOST_BITS,
    round_weight_scales,
    short_mantissa,
)
from tests._toys import Depthwise, images, randomise, student

LEAST = CODE_AND_SCALE_BITS - 8


def layers(graph: fx.GraphModule) -> dict[str, qnn.QuantConv2d | qnn.QuantLinear]:
    return {n: m for n, m in graph.named_modules() if isinstance(m, qnn.QuantConv2d | qnn.QuantLinear)}


def weight_scales(graph: fx.GraphModule) -> dict[str, Tensor]:
    return {name: layer.quant_weight().scale.detach().flatten() for name, layer in layers(graph).items()}


def odd(number: float) -> int:
    whole = int(math.frexp(number)[0] * 2**FLOAT_BITS)
    return whole // (whole & -whole)


def largest_sums(graph: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    """Sums of absolute products and biases, the largest a channel, (C_out,)."""
    inputs: dict[str, Tensor] = {}
    for name, layer in layers(graph).items():
        layer.register_forward_hook(lambda _, given, out, name=name: inputs.__setitem__(name, given[0]))
    with torch.no_grad():
        graph(x)
        found = {}
        for name, layer in layers(graph).items():
            weight, bias = layer.quant_weight().value.abs(), layer.bias.abs()
            if isinstance(layer, nn.Linear):
                found[name] = nn.functional.linear(inputs[name].abs(), weight, bias).amax(0)
            else:
                options = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
                found[name] = nn.functional.conv2d(inputs[name].abs(), weight, bias, **options).amax((0, 2, 3))
    return found


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_short_mantissa(bits: int) -> None:
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 10 + 1e-3
    nearest, above = short_mantissa(x, bits), short_mantissa(x, bits, rounding=torch.ceil)
    for found in (nearest, above):
        mantissa = torch.frexp(found).mantissa * 2**bits
        assert torch.equal(mantissa, mantissa.round())
        assert torch.equal(short_mantissa(found, bits), found)
    assert float(((nearest - x) / x).abs().max()) <= 2.0**-bits
    assert bool((above >= x).all())
    assert float(((above - x) / x).max()) <= 2.0 ** (1 - bits)


def test_known_values() -> None:
    assert short_mantissa(torch.tensor([1.0, 1.2, 3.3, 0.3]), 3).tolist() == [1.0, 1.25, 3.5, 0.3125]
    assert short_mantissa(torch.tensor([1.01, 7.1]), 3, rounding=torch.ceil).tolist() == [1.25, 8.0]


def many_at_six() -> nn.Module:
    model = randomise(Depthwise())
    with torch.no_grad():
        model.expand[1].bias += 6
    return model


@pytest.mark.parametrize("name", ["residual", "squeeze_excite", "relu6"])
def test_scales_take_the_bits_that_sums_leave_them(name: str) -> None:
    graph = student(many_at_six() if name == "relu6" else name, target="onnxruntime-vnni")
    scales, fine = input_scales(graph), 0
    sums = largest_sums(graph, images(32, seed=99))  # of none of the images that calibrated
    for layer, weight_scale in weight_scales(graph).items():
        for scale, largest in zip(weight_scale.tolist(), sums[layer].tolist(), strict=True):
            step = odd(float(scales[layer])) * odd(scale)  # the exact accumulator's, in units of the last bits
            accumulator = largest / (float(scales[layer]) * scale)
            assert odd(scale) < 3 * 2**MOST_BITS
            if odd(scale) >= 2**LEAST:
                fine += 1
                assert accumulator * step <= 2**FLOAT_BITS
    assert fine > 10


def test_large_sums_leave_no_more_bits_than_are_always_taken() -> None:
    graph = student("residual", target="onnxruntime-vnni", frozen=False)
    layer = graph.get_submodule("a1.0")
    before = weight_scales(graph)["a1.0"]
    with torch.no_grad():
        layer.bias.copy_(before * input_scales(graph)["a1.0"] * 2**19)
    round_weight_scales(graph, [images(8)])
    assert max(map(odd, before.tolist())) >= 2**LEAST
    assert max(map(odd, weight_scales(graph)["a1.0"].tolist())) < 2**LEAST


@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_what_is_calibrated_ships(bits: str) -> None:
    graph = student("squeeze_excite", bits, frozen=False)
    before = weight_scales(graph)
    freeze(graph)
    after = weight_scales(graph)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_short_scale_is_the_better_one_of_two() -> None:
    graph = student("residual", target="onnxruntime-vnni", frozen=False)
    layer = graph.get_submodule("a1.0")
    value = layer.weight_quant.tensor_quant.scaling_impl.value
    weight = layer.weight.detach().flatten(1)
    with torch.no_grad():
        value.copy_(weight.abs().amax(1).reshape(value.shape) * 1.1)
    wanted = weight_scales(graph)["a1.0"]
    round_weight_scales(graph)

    def error(scale: Tensor) -> Tensor:
        step = scale.unsqueeze(1)
        return ((weight / step).round().clamp(-127, 127) * step - weight).square().sum(1)

    neighbours = [short_mantissa(wanted, LEAST, rounding=way) for way in (torch.floor, torch.ceil)]
    found = weight_scales(graph)["a1.0"]
    assert torch.equal(error(found), torch.minimum(*map(error, neighbours)))
    assert bool((found < wanted).any())
    assert bool((found > wanted).any())


def test_scales_of_many_bits_are_not_trained() -> None:
    for bits, trained in (("w8a8", 0), ("w4a8", 1)):
        graph = student("residual", bits, frozen=False)
        layer = graph.get_submodule("a1.0")
        assert layer.weight.requires_grad
        assert layer.weight_quant.tensor_quant.scaling_impl.value.requires_grad == bool(trained)


def test_inputs_that_are_not_short_leave_scales_all_bits() -> None:
    graph = student("residual", scales="float", frozen=False)
    odds = [odd(scale) for name, one in weight_scales(graph).items() if name != "stem" for scale in one.tolist()]
    assert max(odds) >= 2 ** (MOST_BITS - 1)
