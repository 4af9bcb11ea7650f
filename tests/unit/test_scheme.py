"""The quant section of a recipe, and the Brevitas quantizers that follow from it."""

from __future__ import annotations

from itertools import product

import brevitas.nn as qnn
import pytest
import torch
from pydantic import ValidationError

from dfqkit.config.quant import QuantConfig
from dfqkit.students.quantizers import activation_quantizer, weight_quantizer
from dfqkit_export.backends import get_target
from dfqkit_export.backends.target import QuantSpace, Target
from dfqkit_export.errors import TargetError


def test_bits_are_read_from_the_name() -> None:
    config = QuantConfig(bits="w4a8")
    assert (config.weight_bits, config.activation_bits) == (4, 8)


@pytest.mark.parametrize("bits", ["w4", "8", "w1a8", "w4a9", "W4A8", "w4a8 ", "w16a8", ""])
def test_other_spellings_are_refused(bits: str) -> None:
    with pytest.raises(ValidationError, match="w<weights>a<activations> with 2 to 8 bits"):
        QuantConfig(bits=bits)


@pytest.mark.parametrize(
    "values",
    [{"bit": "w8a8"}, {"first_last": 1}, {"elementwise": 16}, {"percentile": 50}, {"equalize": -1}, {"scales": "x"}],
)
def test_the_section_is_closed_and_bounded(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        QuantConfig.model_validate(values)


def test_it_survives_json_and_is_frozen() -> None:
    config = QuantConfig(bits="w4a4", first_last=None)
    assert QuantConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="frozen"):
        config.bits = "w8a8"  # type: ignore[misc]


def limited(**spaces: tuple[int, ...]) -> Target:
    base = get_target("onnxruntime")
    values = {name: getattr(base, name) for name in base.__dataclass_fields__}
    for name, bits in spaces.items():
        space = values[name]
        values[name] = QuantSpace(
            bits=bits, signed=space.signed, symmetric=space.symmetric, granularity=space.granularity
        )
    return Target(**values)


@pytest.mark.parametrize(
    ("config", "target", "message"),
    [
        (QuantConfig(bits="w4a8"), limited(weights=(8,)), "4-bit weights"),
        (QuantConfig(bits="w8a4"), limited(signed_activations=(8,)), "4-bit activations"),
        (QuantConfig(bits="w4a4", first_last=8), limited(weights=(4,)), "8-bit weights"),
        (QuantConfig(bits="w4a4", first_last=None), limited(signed_activations=(4,)), "8-bit activations"),
    ],
)
def test_every_field_is_checked_against_the_target(config: QuantConfig, target: Target, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        config.check(target)
    config.check(get_target("onnxruntime"))


@pytest.mark.parametrize(
    ("bits", "way", "target"), list(product((2, 4, 8), ("max", "mse"), ("onnxruntime", "tensorrt")))
)
def test_weights_are_symmetric_narrow_and_per_channel(bits: int, way: str, target: str) -> None:
    config = QuantConfig(weight_range=way)  # type: ignore[arg-type]
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1, 5, 20]).view(
        -1, 1, 1, 1
    )
    with torch.random.fork_rng(devices=[]):
        layer = qnn.QuantConv2d(3, 4, 3, weight_quant=weight_quantizer(config, bits, get_target(target)))
    layer.weight.data.copy_(weight)
    quantized = layer.eval().quant_weight()
    codes, scale = quantized.int(float_datatype=False), quantized.scale
    assert scale.numel() == 4
    assert int(codes.abs().max()) <= 2 ** (bits - 1) - 1
    assert float(quantized.zero_point.abs().max()) == 0
    if way == "max":
        expected = weight.abs().amax((1, 2, 3)) / (2 ** (bits - 1) - 1)
        torch.testing.assert_close(scale.flatten(), expected, rtol=1e-5, atol=0)


def test_all_weights_of_a_layer_share_a_scale_where_that_is_asked_for() -> None:
    quantizer = weight_quantizer(QuantConfig(weight_granularity="per_tensor"), 8, get_target("onnxruntime"))
    layer = qnn.QuantConv2d(3, 4, 3, weight_quant=quantizer)
    assert layer.eval().quant_weight().scale.numel() == 1


@pytest.mark.parametrize(
    ("target", "signed", "codes", "zero_point_free"),
    [
        ("onnxruntime", False, (0, 15), False),
        ("onnxruntime", True, (0, 15), True),
        ("tensorrt", False, (0, 15), False),
        ("tensorrt", True, (-8, 7), False),
    ],
)
@pytest.mark.parametrize("way", ["percentile", "mse"])
def test_activations_follow_the_target(
    target: str, signed: bool, codes: tuple[int, int], zero_point_free: bool, way: str
) -> None:
    config = QuantConfig(activation_range=way)  # type: ignore[arg-type]
    kind = activation_quantizer(config, 4, get_target(target), signed=signed, exact_scale=True)
    layer = qnn.QuantIdentity(act_quant=kind, return_quant_tensor=True)
    x = torch.linspace(-3.0 if signed else 0.0, 5.0, 1001)
    layer.train()
    layer(x)
    layer.eval()
    found = layer(x)
    integers = found.int(float_datatype=False)
    assert codes[0] <= int(integers.min())
    assert int(integers.max()) <= codes[1]
    assert (float(found.zero_point) != 0) == zero_point_free
    exponent = torch.log2(found.scale)
    assert torch.equal(exponent, exponent.round())


def test_float_scales_are_not_rounded() -> None:
    config = QuantConfig(scales="float", activation_range="percentile", percentile=100)
    kind = activation_quantizer(config, 8, get_target("onnxruntime"), signed=False, exact_scale=True)
    layer = qnn.QuantIdentity(act_quant=kind)
    layer.train()
    layer(torch.linspace(0, 5, 100))
    layer.eval()
    assert float(layer.act_quant.scale()) == pytest.approx(5 / 255, rel=1e-5)
