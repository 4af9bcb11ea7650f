"""Tensors that 8 bits do not hold: none gets a quantizer, and what a file computes stays near the float network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import brevitas.nn as qnn
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from dfqkit.config.quant import QuantConfig
from dfqkit.students.calibration import calibrate
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.nodes import op_name
from dfqkit.students.onnx_file import write_qdq
from dfqkit.students.placement import Plan, plan, quantized_graph
from dfqkit_export.backends import get_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.metrics import sqnr_db
from tests._islands import KINDS, PLAIN, Between, network
from tests._toys import images, randomise

QUICK = QuantConfig(weight_range="max", activation_range="percentile")
LEAST_DB = 27.0
IN_FILES = ("layer_norm", "linear_attention", "pad -1", "maximum over -inf")


def planned(model: nn.Module, image: ImageSpec = PLAIN, target: str = "onnxruntime") -> tuple[fx.GraphModule, Plan]:
    graph = float_graph(model, image)
    return graph, plan(graph, QUICK, get_target(target), image)


def middle(function: Callable[[Between, Tensor], Tensor], channels: int = 12) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return randomise(Between(function, channels))


def operators(graph: fx.GraphModule, names: set[str]) -> set[str]:
    return {op_name(n.target) for n in graph.graph.nodes if n.name in names and n.op == "call_function"}


def calibrated(model: nn.Module, image: ImageSpec = PLAIN, target: str = "onnxruntime") -> fx.GraphModule:
    student = quantized_graph(float_graph(model, image), QUICK, get_target(target), image)
    calibrate(student, [images(32, 7, image)], image, learnable=False)
    return student


@pytest.mark.parametrize("name", KINDS)
def test_a_student_stays_near_its_float_network(name: str) -> None:
    model, unseen = network(name), images(32, 3, PLAIN)
    student = calibrated(model)
    with torch.no_grad():
        left = sqnr_db(model(unseen).numpy(), student(unseen).numpy())
    assert left is not None
    assert left > LEAST_DB


@pytest.mark.parametrize(
    "name", [name if name in IN_FILES else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_so_does_the_file_in_its_runtime(name: str, tmp_path: Path) -> None:
    model, unseen, target = network(name), images(32, 3, PLAIN), get_target("onnxruntime")
    student = calibrated(model)
    freeze(student)
    write_qdq(student, target, tmp_path / "model.onnx", metadata={})
    found = OrtSession(tmp_path / "model.onnx").run(unseen.numpy())
    with torch.no_grad():
        left = sqnr_db(model(unseen).numpy(), found)
    assert left is not None
    assert left > LEAST_DB


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "openvino"])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "generalised_mean", "pooled_exponentials"])
def test_nothing_spread_by_an_operator_is_quantized_before_a_layer_reads_it(name: str, target: str) -> None:
    graph, decided = planned(network(name), target=target)
    assert not operators(graph, set(decided.activations)) & {"sqrt", "rsqrt", "mean", "sub", "exp", "add", "log"} or (
        name == "pooled_exponentials"
    )
    pooled = [n.name for n in graph.graph.nodes if "avg_pool" in n.name]
    assert not set(pooled) & set(decided.activations)
    layers = [n for n in graph.graph.nodes if n.target == "second"]
    assert layers[0].args[0].name in decided.activations


def test_what_the_target_could_compute_in_integers_is_named_with_its_reason() -> None:
    graph, decided = planned(network("generalised_mean"))
    (pool,) = (n.name for n in graph.graph.nodes if "avg_pool" in n.name)
    assert "pow" in decided.floats[pool]
    assert not planned(middle(lambda net, x: x + net.one(x)))[1].floats


def test_a_divisor_is_exact_where_it_is_small() -> None:
    graph, decided = planned(network("linear_attention"))
    products = [n for n in graph.graph.nodes if op_name(n.target) == "matmul"]
    assert len(products) == 3
    (divisor,) = (p for p in products if any(op_name(u.target) == "add" for u in p.users))
    assert "divisor" in decided.floats[divisor.name]
    (total,) = (n for n in graph.graph.nodes if op_name(n.target) == "sum")
    assert total.name not in decided.activations
    assert sum(p.name in decided.activations for p in products) == 1  # what another product multiplies


def test_a_gate_that_something_bounds_is_quantized_again() -> None:
    graph, decided = planned(network("mish"))
    assert operators(graph, set(decided.activations)) == {"mul", "tanh"}
    graph, decided = planned(network("hard_swish"))
    assert operators(graph, set(decided.activations)) <= {"mul", "div"}


@pytest.mark.parametrize("fill", [-1e9, -1e4, -float("inf")])
@pytest.mark.parametrize("way", ["fill", "where", "add"])
def test_no_range_covers_a_mask(fill: float, way: str) -> None:
    mask = torch.zeros(64, 64)
    mask[:, 50:] = fill

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.last = nn.Conv2d(1, 8, 2, stride=2), nn.Conv2d(8, 8, 1), nn.Linear(8, 6)
            self.register_buffer("mask", mask)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).flatten(2)
            logits = x.transpose(1, 2) @ x / 3
            if way == "fill":
                logits = logits.masked_fill(self.mask < 0, fill)
            elif way == "where":
                logits = torch.where(self.mask < 0, fill, logits)
            else:
                logits = logits + self.mask
            return self.last((x @ logits.softmax(-1)).mean(-1))

    with torch.random.fork_rng(devices=[]):
        student = calibrated(randomise(Attention()))
    ranges = [float(m.act_quant.scale()) * 255 for m in student.modules() if isinstance(m, qnn.QuantIdentity)]
    assert max(ranges) < 200


def test_a_pad_lies_within_the_range_and_the_sign_of_its_own_quantizer() -> None:
    for value in (-1.0, -4.0, 40.0):
        model = middle(lambda net, x, value=value: functional.pad(x, (1, 1, 1, 1), value=value))  # type: ignore[misc]
        student = calibrated(model)
        (pad,) = (n for n in student.graph.nodes if n.op == "call_function" and n.name.startswith("pad"))
        quantizer = student.get_submodule(f"quant.{pad.name}")
        assert float(quantizer(torch.tensor(value))) == pytest.approx(value, abs=0.1)
        relu = student.get_submodule("quant.relu")
        assert float(relu(torch.tensor(-1.0))) == 0
        assert float(relu(torch.tensor(1e6))) < 30


@pytest.mark.parametrize("value", [-1.0, -100.0, -1e4, -65504.0, -float("inf")])
def test_a_pad_that_only_loses_in_maxima_stays_out_of_the_range(value: float) -> None:
    student = calibrated(
        middle(lambda net, x: functional.max_pool2d(functional.pad(net.one(x), (0, 1, 0, 1), value=value), 3, 2))
    )
    names = [n for n, _ in student.quant.named_children()]
    assert "one" in names
    assert not any("pad" in name or "max_pool" in name for name in names)
    assert float(student.quant.one(torch.tensor(-1e6))) > -60
    shared = [n for n in student.graph.nodes if n.target == "quant.one"]
    assert len(shared) == 2  # behind the layer, and behind the maximum


def test_a_window_that_lies_in_the_pad_altogether_sees_its_value() -> None:
    model = middle(lambda net, x: functional.max_pool2d(functional.pad(net.one(x), (3, 3, 3, 3), value=-2.0), 2))
    graph, decided = planned(model)
    (pad,) = (n.name for n in graph.graph.nodes if n.name.startswith("pad"))
    assert decided.activations[pad].shares is None


@pytest.mark.parametrize(
    ("function", "signed"),
    [
        (lambda net, x: net.one(x).abs() + 0.5, False),
        (lambda net, x: net.one(x) ** 2, False),
        (lambda net, x: net.one(x) ** 3, True),
        (lambda net, x: (lambda y: y * y)(net.one(x)), False),
        (lambda net, x: net.one(x).clamp(min=0), False),
        (lambda net, x: net.one(x).clamp(-1, 2), True),
        (lambda net, x: torch.sqrt(x + 1), False),
        (lambda net, x: x - 1, True),
        (lambda net, x: x + (-1.0), True),
        (lambda net, x: x * -2.0 + functional.relu(net.one(x)), True),
        (lambda net, x: x * 2.0 + 1, False),
        (lambda net, x: functional.softplus(net.one(x)), False),
        (lambda net, x: torch.maximum(net.one(x), x), False),
        (lambda net, x: functional.pad(x, (1, 1, 1, 1), value=-0.5), True),
        (lambda net, x: functional.pad(x, (1, 1, 1, 1), value=0.5), False),
    ],
)
def test_signs_of_what_operators_compute(function: Callable[[Between, Tensor], Tensor], signed: bool) -> None:
    graph, decided = planned(middle(function))
    (layer,) = (n for n in graph.graph.nodes if n.target == "second")
    assert decided.activations[layer.args[0].name].signed is signed


BANDS = (0.32, 0.32, 0.32 * 0.02)


def bands(low: float) -> ImageSpec:
    return ImageSpec(shape=(3, 16, 16), mean=(0.3, 0.7, 0.5), std=(0.32, 0.32, low), classes=6)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "openvino"])
def test_a_band_of_low_contrast_keeps_the_input_in_float(target: str) -> None:
    spec = bands(0.0064)
    with torch.random.fork_rng(devices=[]):
        model = randomise(Between(lambda net, x: net.one(x), image=spec))
    _, decided = planned(model, spec, target)
    assert "image" not in decided.activations
    assert "channel 2" in decided.kept["image"]
    student = quantized_graph(float_graph(model, spec), QUICK, get_target(target), spec)
    seen, unseen = torch.randn((2, 32, 3, 16, 16), generator=torch.Generator().manual_seed(3)).clamp(-2, 2)
    calibrate(student, [seen], spec, learnable=False)
    with torch.no_grad():
        left = sqnr_db(model(unseen).numpy(), student(unseen).numpy())
    assert left is not None
    assert left > LEAST_DB


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_usual_images_are_quantized(target: str) -> None:
    for mean, std in (
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.5,) * 3, (0.5,) * 3),
        ((0.0,) * 3, (1.0,) * 3),
    ):
        spec = ImageSpec(shape=(3, 16, 16), mean=mean, std=std, classes=6)
        assert not planned(Between(lambda net, x: x, image=spec), spec, target)[1].kept
    assert not planned(Between(lambda net, x: x, image=bands(0.12)), bands(0.12), "onnxruntime")[1].kept
