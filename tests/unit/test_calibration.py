"""Ranges and biases of a fresh student."""

from __future__ import annotations

import math

import brevitas.nn as qnn
import pytest
import torch
from torch import Tensor, fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.calibration import calibrate, correct_bias
from dfqkit.students.capture import float_graph
from dfqkit.students.placement import quantized_graph
from dfqkit_export.backends import get_target
from dfqkit_export.images.spec import ImageSpec
from tests._toys import IMAGE, Depthwise, Head, images, randomise, student, toy, toy_graph

BLUE = ImageSpec(shape=(3, 16, 16), mean=(0.1, 0.2, 0.9), std=(0.3, 0.2, 0.25), classes=5)
BRIGHT = ImageSpec(shape=(3, 16, 16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), classes=5)
DARK = ImageSpec(shape=(3, 16, 16), mean=(1.0, 1.0, 1.0), std=(0.5, 0.5, 0.5), classes=5)


def fresh(name: str = "residual", target: str = "onnxruntime", **options: object) -> fx.GraphModule:
    # The searches for the least error take most of the time, and few tests are about them.
    quick = {"weight_range": "max", "activation_range": "percentile"}
    config = QuantConfig(**(quick | options))  # type: ignore[arg-type]
    return quantized_graph(toy_graph(name), config, get_target(target), IMAGE)


def quantizers(graph: fx.GraphModule) -> dict[str, nn.Module]:
    return {n.removeprefix("quant."): m for n, m in graph.named_modules() if isinstance(m, qnn.QuantIdentity)}


def ends(quantizer: nn.Module) -> tuple[float, float]:
    """The smallest and the largest value that a quantizer passes."""
    with torch.no_grad():
        return float(quantizer(torch.tensor(-1e6))), float(quantizer(torch.tensor(1e6)))


def mantissa_bits(x: float) -> int:
    numerator = int(math.frexp(x)[0] * 2**53)
    return 53 - (numerator & -numerator).bit_length() + 1


@pytest.mark.parametrize("image", [IMAGE, BLUE, BRIGHT, DARK], ids=["usual", "blue", "bright", "dark"])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("options", [{}, {"bits": "w4a4", "first_last": None}, {"scales": "float"}], ids=str)
def test_the_input_range_comes_from_the_image_not_from_data(
    image: ImageSpec, target: str, options: dict[str, object]
) -> None:
    found = []
    for seed, size in ((1, 0.01), (2, 3.0)):
        graph = fresh(target=target, **options)
        calibrate(graph, [images(2, seed) * size], image, learnable=False)
        found.append(ends(quantizers(graph)["image"]))
    low, high = image.bounds()
    assert found[0] == found[1]
    assert found[0][0] <= low
    assert found[0][1] >= high
    codes = 15 if "bits" in options else 255
    wasted = (found[0][1] - found[0][0]) / (max(-low, high, 0) * 2 if target == "tensorrt" else high - min(low, 0))
    assert wasted < 1 + 2 / 32 + 5 / codes
    scale = float(quantizers(graph)["image"].act_quant.scale())
    assert mantissa_bits(scale) <= 5


@pytest.mark.parametrize("way", ["mse", "percentile"])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_powers_of_two_and_even_zero_points(way: str, target: str) -> None:
    graph = fresh("squeeze_excite", target, bits="w4a4", activation_range=way)
    calibrate(graph, [images(8)], IMAGE, learnable=False)
    for name, quantizer in quantizers(graph).items():
        scale, zero_point = float(quantizer.act_quant.scale()), float(quantizer.act_quant.zero_point())
        assert zero_point % 2 == 0
        assert 0 <= zero_point < 2 ** int(quantizer.act_quant.bit_width())
        assert name == "image" or math.log2(scale) == int(math.log2(scale))


def test_ranges_follow_the_data() -> None:
    graph = fresh(activation_range="percentile", percentile=100, scales="float")
    x = images(8)
    calibrate(graph, [x], IMAGE, learnable=True)
    stem = toy("residual").stem(x).relu().detach()
    assert ends(quantizers(graph)["relu"]) == (0.0, pytest.approx(float(stem.max()), rel=1e-4))


@pytest.mark.parametrize("learnable", [True, False])
def test_which_ranges_may_learn(learnable: bool) -> None:
    graph = fresh(scales="float" if learnable else "power_of_two")
    calibrate(graph, [images(4)], IMAGE, learnable=learnable)
    assert not graph.training
    for name, quantizer in quantizers(graph).items():
        wants = {p.requires_grad for p in quantizer.parameters()}
        assert wants == {learnable and name != "image"}
    assert all(m.weight.requires_grad for m in graph.modules() if isinstance(m, qnn.QuantConv2d))


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_relu6_becomes_a_relu_whose_quantizer_ends_at_six(target: str, bits: str) -> None:
    graph = fresh("depthwise", target, bits=bits)
    assert any(isinstance(m, nn.ReLU6) for m in graph.modules())
    calibrate(graph, [images(4) * 20], IMAGE, learnable=False)
    assert not any(isinstance(m, nn.ReLU6) for m in graph.modules())
    for name in ("relu6", "relu6_1", "relu6_2"):
        assert ends(quantizers(graph)[name])[1] <= 6


def test_a_zero_point_never_leaves_the_codes() -> None:
    model = randomise(Depthwise())
    model.project[1].bias.data -= 100  # all values of the sum below zero
    for bits in ("w8a8", "w4a4"):
        graph = student(model, bits, elementwise=None)
        for quantizer in quantizers(graph).values():
            zero_point = float(quantizer.act_quant.zero_point())
            assert zero_point % 2 == 0
            assert zero_point < 2 ** int(quantizer.act_quant.bit_width())


def layer_error(graph: fx.GraphModule, name: str, inputs: Tensor, expected: Tensor) -> Tensor:
    """Mean error a channel of one layer of the student, against the same layer of the float graph."""
    kept = []
    handle = graph.get_submodule(name).register_forward_hook(lambda m, i, o: kept.append(o))
    with torch.no_grad():
        graph(inputs)
    handle.remove()
    return (kept[0] - expected).mean((0, 2, 3)).abs()


def test_bias_correction_removes_the_mean_error() -> None:
    graph = fresh(bits="w3a8")
    x = images(32)
    calibrate(graph, [x], IMAGE, learnable=False)
    model = toy("residual")
    with torch.no_grad():
        expected = model.a1(model.pool(model.relu(model.stem(x))))
    before = layer_error(graph, "a1.0", x, expected)
    weights = {n: p.clone() for n, p in graph.named_parameters() if "bias" not in n}
    correct_bias(graph, [x])
    after = layer_error(graph, "a1.0", x, expected)
    assert float(before.max()) > 0.01
    assert float(after.max()) < 0.2 * float(before.max())
    assert all(torch.equal(weights[n], p) for n, p in graph.named_parameters() if n in weights)
    assert not graph.training


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("scales", ["power_of_two", "float"])
def test_a_tensor_on_one_side_of_zero_fits_its_range(sign: float, scales: str) -> None:
    graph = fresh(scales=scales)
    name, layer = next(
        (n.name, graph.get_submodule(str(n.target)))
        for n in graph.graph.nodes
        if n.op == "call_module"
        and n.name in quantizers(graph)
        and isinstance(graph.get_submodule(str(n.target)), qnn.QuantConv2d)
    )
    with torch.no_grad():
        layer.bias.fill_(sign * 50)  # type: ignore[operator, union-attr]
        layer.weight.mul_(0.1)  # type: ignore[operator]
    calibrate(graph, [images(8)], IMAGE, learnable=scales == "float")
    low, high = ends(graph.get_submodule(f"quant.{name}"))
    assert low <= -48 if sign < 0 else high >= 48


@pytest.mark.parametrize(("alike", "wider"), [(0.1, True), (1.0, False)])
def test_images_whose_positions_are_unlike_cut_no_average_of_natural_ones(alike: float, wider: bool) -> None:
    config = QuantConfig(weight_range="max", activation_range="percentile", percentile=100, scales="float")
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Head(4)))
    graph = quantized_graph(float_graph(model, IMAGE), config, get_target("onnxruntime"), IMAGE)
    rng = torch.Generator().manual_seed(0)
    shared, own = torch.randn((64, 3, 1, 1), generator=rng), torch.randn((64, 3, 16, 16), generator=rng)
    x = alike * shared + (1 - alike**2) ** 0.5 * own
    calibrate(graph, [x], IMAGE, learnable=True)
    with torch.no_grad():
        largest = float(model[:2](x).mean((2, 3)).max())
    reached = ends(quantizers(graph)["global_pool"])[1]
    assert reached > 1.3 * largest if wider else reached == pytest.approx(largest, rel=1e-3)
