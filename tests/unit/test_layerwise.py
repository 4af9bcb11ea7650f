"""Weights rounded layer by layer: nearer to the float network than by nearest codes, and the file is the student."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as Layer
from torch import Tensor, fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.integer_student import IntegerStudent
from dfqkit.students.layerwise import _columns, _drawn, round_by_layers
from dfqkit.students.onnx_file import write_qdq
from dfqkit.students.onnx_nodes import input_codes, weight_codes
from dfqkit.students.placement import quantized_graph
from dfqkit.students.sensitivity import Imitated
from dfqkit.students.student import LAYER_BITS, calibrate_student, load_student, rounded_layers, save_student
from dfqkit_export.backends import get_target
from dfqkit_export.backends.opening import open_session
from dfqkit_export.backends.saturation import bound
from dfqkit_export.errors import ArtefactError
from tests._messages import raises_naming
from tests._toys import IMAGE, images, toy_graph, toy_teacher

TARGET = get_target("onnxruntime")
SCHEME: dict[str, Any] = {"bits": "w4a8", "scales": "float", "activation_range": "percentile"}
TOYS = ("residual", "depthwise", "option_a")


def fresh(graph: fx.GraphModule, **more: Any) -> tuple[fx.GraphModule, QuantConfig]:
    config = QuantConfig(**{**SCHEME, **more})
    return quantized_graph(graph, config, TARGET, IMAGE), config


def rounded(graph: fx.GraphModule, *, weight_rounding: str = "gptq", **more: Any) -> fx.GraphModule:
    student, config = fresh(graph, weight_rounding=weight_rounding, **more)
    task = toy_teacher().torch_task
    judged = {"held_out": [images(16, seed=9)], "imitated": Imitated(graph=graph, task=task)}
    calibrate_student(student, list(images(32).split(8)), config, IMAGE, reference=graph, **judged)
    return student


def apart(student: Any, graph: fx.GraphModule) -> float:
    """Error over signal of the answers for images that calibrated nothing."""
    x = images(64, seed=5)
    with torch.no_grad():
        wanted = graph(x)
        return float((student(x) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("scales", ["float", "power_of_two"])
def test_answers_are_nearer_than_with_nearest_codes(name: str, scales: str) -> None:
    graph = toy_graph(name)
    more: dict[str, Any] = {"scales": scales, "first_last": None, "bits": "w3a8"}
    ours, nearest = rounded(graph, **more), rounded(graph, weight_rounding="nearest", **more)
    assert apart(ours, graph) < 0.7 * apart(nearest, graph)
    for layer in (module for module in ours.modules() if isinstance(module, Layer)):
        assert torch.equal(layer.quant_weight().value, layer.weight), "weights lie on their grid"


def test_the_file_is_the_student(tmp_path: Path) -> None:
    student = rounded(toy_graph("depthwise"), eight_bit_share=0.5)
    freeze(student)
    write_qdq(student, TARGET, tmp_path / "model.onnx", metadata={})
    x = images(16, seed=3)
    with torch.no_grad():
        ours = IntegerStudent(student).run(x)
    theirs = open_session("onnxruntime", tmp_path / "model.onnx", threads=1).run(x.numpy())
    assert torch.equal(torch.from_numpy(theirs), ours)


def test_a_channel_without_weights_keeps_a_bias_that_int32_holds_when_its_layer_gets_more_bits(tmp_path: Path) -> None:
    graph = copy.deepcopy(toy_graph("depthwise"))
    with torch.no_grad():
        for layer in (each for each in graph.modules() if isinstance(each, nn.Conv2d)):
            assert layer.bias is not None
            layer.weight[0] *= 1e-20
            layer.bias[0] = 0.5
    student = rounded(graph, eight_bit_share=0.9)
    assert any(each.bits == 8 for each in student.meta[LAYER_BITS])
    write_qdq(student, TARGET, tmp_path / "model.onnx", metadata={})
    assert apart(student, graph) < 0.1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 2), padding=(2, 0), dilation=2, groups=2),
        nn.Conv2d(4, 8, 3, padding="same", groups=4),
        nn.Linear(7, 3),
    ],
    ids=str,
)
def test_columns_times_weights_are_the_outputs(layer: nn.Module) -> None:
    x = torch.randn((3, 5, 7) if isinstance(layer, nn.Linear) else (3, 4, 9, 7))
    places = _drawn(layer, x, torch.Generator().manual_seed(0))
    columns, weight = _columns(layer, x, places), getattr(layer, "weight")  # noqa: B009
    groups = getattr(layer, "groups", 1)
    found = (weight.reshape(groups, len(weight) // groups, -1) @ columns).reshape(len(weight), -1)
    with torch.no_grad():
        wanted = layer(x).movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
    assert torch.allclose(found + getattr(layer, "bias")[:, None], wanted[:, places], atol=1e-5)  # noqa: B009


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])  # the first has transposed layers in float
def test_layers_that_are_called_twice_and_transposed_ones_get_their_means(target: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.again = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.up, self.fc = nn.ConvTranspose2d(6, 6, 2, stride=2), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.again(torch.relu(self.again(torch.relu(self.stem(x))))))
            return self.fc(torch.relu(self.up(x)).mean((2, 3)))

    torch.manual_seed(0)
    graph = float_graph(Net().eval(), IMAGE)
    config = QuantConfig(**{**SCHEME, "bits": "w3a8", "weight_rounding": "gptq", "bias_correction": False})
    student = quantized_graph(graph, config, get_target(target), IMAGE)
    calibrate_student(student, [images(16)], config, IMAGE)
    before = copy.deepcopy(student)
    calls: list[int] = []
    errors = round_by_layers(student, graph, [images(16)], scales=True, advance=lambda: calls.append(1))
    assert set(errors) == {"stem", "fc"}
    assert rounded_layers(graph, config) == 4
    assert len(calls) == (5 if target == "openvino" else 4)
    with torch.no_grad():
        means = [(each(images(16)) - graph(images(16))).mean(0).abs().max() for each in (student, before)]
    assert means[0] < 0.1 * means[1]
    found = {n: m.bias for n, m in student.named_modules() if isinstance(m, Layer)}
    moved = {n for n, m in before.named_modules() if isinstance(m, Layer) and not torch.equal(m.bias, found[n])}
    assert moved == set(found)


def test_layers_that_are_worth_it_get_more_bits_and_keep_them(tmp_path: Path) -> None:
    graph = toy_graph("residual")
    plain, wide = rounded(graph, bits="w3a8"), rounded(graph, bits="w3a8", eight_bit_share=0.4)
    told = wide.meta[LAYER_BITS]
    inner = {n for n, m in plain.named_modules() if isinstance(m, Layer) and int(m.weight_quant.bit_width()) == 3}
    assert {each.layer for each in told} == inner
    chosen = [each for each in told if each.bits == 8]
    assert 0 < sum(each.weights for each in chosen) <= 0.4 * sum(each.weights for each in told)
    worth = [each.distance / each.weights for each in told]
    assert worth == sorted(worth, reverse=True)
    assert min(each.distance for each in told) > 0
    assert apart(wide, graph) < apart(plain, graph)

    save_student(wide, tmp_path / "student.safetensors")
    again, config = fresh(graph, weight_rounding="gptq", bits="w3a8", eight_bit_share=0.4)
    load_student(again, tmp_path / "student.safetensors", config)
    assert again.meta[LAYER_BITS] == told
    with torch.no_grad():
        assert torch.equal(again(images(4)), wide(images(4)))
    other, _ = fresh(toy_graph("option_a"), weight_rounding="gptq", bits="w3a8", eight_bit_share=0.4)
    with raises_naming(ArtefactError, "no layer of the model", "dfqkit run --resume"):
        load_student(other, tmp_path / "student.safetensors", config)


def test_the_float_network_stays_as_it_is() -> None:
    graph = toy_graph("residual")
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    rounded(graph, bits="w3a8", eight_bit_share=0.4)
    assert all(torch.equal(before[name], value) for name, value in graph.state_dict().items())


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_codes_are_chosen_for_scales_at_which_two_products_fit_16_bits(granularity: str) -> None:
    graph = copy.deepcopy(toy_graph("residual"))
    with torch.no_grad():
        for layer in graph.modules():
            if isinstance(layer, nn.Conv2d):  # nearly all weights as large: their codes are the largest
                layer.weight.copy_(layer.weight.sign() * layer.weight.abs().mean() * (1 + 0.01 * layer.weight))
    student = rounded(graph, bits="w8a8", weight_granularity=granularity)
    read = input_codes(student)
    layers = {name: layer for name, layer in student.named_modules() if isinstance(layer, Layer)}
    for name, layer in layers.items():
        codes, scale = weight_codes(layer)
        assert not bound(codes.numpy(), *read[name]).channels.any(), name
        steps = layer.weight.flatten(1) / scale.reshape(-1, 1)
        torch.testing.assert_close(steps, codes.flatten(1).to(steps), rtol=0, atol=1e-3)
    assert any(int(weight_codes(layer)[0].abs().max()) < 100 for layer in layers.values())
