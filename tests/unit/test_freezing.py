"""A frozen student holds only numbers that the integer file can hold."""

from __future__ import annotations

import math

import brevitas.nn as qnn
import pytest
import torch
from torch import Tensor, fx

from dfqkit.students.freezing import even_zero_points, freeze
from dfqkit.students.onnx_nodes import input_scales
from dfqkit.students.quantizers import activation_internals
from dfqkit.students.weight_scales import CODE_AND_SCALE_BITS, LARGEST_BIAS, MOST_BITS
from tests._toys import Depthwise, Residual, images, randomise, student


def layers(graph: fx.GraphModule) -> dict[str, qnn.QuantConv2d | qnn.QuantLinear]:
    return {n: m for n, m in graph.named_modules() if isinstance(m, qnn.QuantConv2d | qnn.QuantLinear)}


def tensors(graph: fx.GraphModule) -> dict[str, Tensor]:
    return {**dict(graph.named_parameters()), **dict(graph.named_buffers())}


@pytest.mark.parametrize("bits", ["w8a8", "w2a4"])
@pytest.mark.parametrize("name", ["residual", "squeeze_excite"])
def test_numbers_are_on_their_grids(name: str, bits: str) -> None:
    graph = student(name, bits)
    scales = input_scales(graph)
    for layer_name, layer in layers(graph).items():
        weight_scale = layer.quant_weight().scale.reshape(-1)
        bits = max(MOST_BITS, CODE_AND_SCALE_BITS - int(layer.weight_quant.bit_width()))
        mantissa = torch.frexp(weight_scale).mantissa * 2**bits
        assert torch.equal(mantissa, mantissa.round())
        codes = layer.bias.double() / (scales[layer_name].double() * weight_scale.double())
        assert float((codes - codes.round()).abs().max()) < 1e-6 * float(codes.abs().max() + 1)
        assert float(codes.abs().max()) <= LARGEST_BIAS
    for module in graph.modules():
        if activation_internals(module) is not None:
            assert float(module.act_quant.zero_point()) % 2 == 0
    assert not any(p.requires_grad for p in graph.parameters())
    assert not graph.training


@pytest.mark.parametrize(
    ("name", "scales"),
    [("depthwise", "power_of_two"), ("squeeze_excite", "power_of_two"), ("residual", "float")],
)
def test_freezing_again_changes_nothing(name: str, scales: str) -> None:
    graph = student(name, "w4a4", scales=scales)
    before = {n: v.clone() for n, v in tensors(graph).items()}
    logits = graph(images(4))
    freeze(graph)
    assert all(torch.equal(before[n], v) for n, v in tensors(graph).items())
    assert torch.equal(logits, graph(images(4)))


def test_freezing_changes_little() -> None:
    graph = student("residual", frozen=False)
    x = images(16)
    before = graph(x).detach()
    weights = {n: layer.weight.clone() for n, layer in layers(graph).items()}
    freeze(graph)
    assert float((graph(x) - before).norm() / before.norm()) < 0.005  # biases are rounded, no scale
    assert all(torch.equal(weights[n], layer.weight) for n, layer in layers(graph).items())


def test_trained_weight_scales_stay_where_nothing_is_exact() -> None:
    graph = student("residual", "w4a4", scales="float", frozen=False)
    within = [layer for layer in layers(graph).values() if int(layer.weight_quant.bit_width()) == 4]
    with torch.no_grad():
        for layer in within:
            layer.weight_quant.tensor_quant.scaling_impl.value.mul_(1.0123)  # as training leaves it
    before = [layer.quant_weight().value.clone() for layer in within]
    freeze(graph)
    assert within
    assert all(torch.equal(values, layer.quant_weight().value) for values, layer in zip(before, within, strict=True))


def test_zero_points_move_by_one_code_at_most() -> None:
    graph = student("squeeze_excite", frozen=False)
    quantizer = graph.get_submodule("quant.down").act_quant
    internals = activation_internals(graph.get_submodule("quant.down"))
    scale = float(quantizer.scale())
    for code in (0, 1, 2, 3, 5, 254, 255):
        with torch.no_grad():
            internals.zero_point_impl.value.fill_(code * scale)  # type: ignore[union-attr]
        even_zero_points(graph)
        found = float(quantizer.zero_point())
        assert found % 2 == 0
        assert abs(found - code) <= 1
        assert 0 <= found <= 254


def test_dead_channels_keep_a_bias_that_fits() -> None:
    model = randomise(Residual())
    with torch.no_grad():
        model.a1[1].weight[:4] = torch.tensor([0.0, 1e-30, 1e-9, 1e-5])
    graph = student(model)
    x = images(8)
    with torch.no_grad():
        assert float((graph(x) - model(x)).norm() / model(x).norm()) < 0.03
    layer = graph.get_submodule("a1.0")
    codes = layer.bias / (input_scales(graph)["a1.0"] * layer.quant_weight().scale.reshape(-1))
    assert float(codes.abs().max()) <= LARGEST_BIAS
    assert math.isfinite(float(codes.abs().max()))


def test_scales_divide_without_rounding_behind_relu6() -> None:
    model = randomise(Depthwise())
    with torch.no_grad():
        model.expand[1].bias += 6  # many values at 6
    graph = student(model, "w4a4")
    scale = float(graph.get_submodule("quant.relu6_1").act_quant.scale())
    assert math.frexp(scale)[0] == 0.75
    quotients = graph.get_submodule("expand.0").quant_weight().scale / scale
    mantissa = torch.frexp(quotients).mantissa * 2**MOST_BITS
    assert torch.equal(mantissa, mantissa.round())
    assert torch.equal(quotients * scale, graph.get_submodule("expand.0").quant_weight().scale)
