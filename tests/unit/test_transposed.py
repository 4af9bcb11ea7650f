"""Transposed convolutions: on codes where the target's table says so, and the file computes what the student does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.onnx_file import write_qdq
from dfqkit.students.onnx_nodes import float_layers
from dfqkit.students.placement import plan
from dfqkit.students.student import build_student, calibrate_student, load_student, save_student
from dfqkit_export.backends import get_backend, get_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.checker.check import check_file
from dfqkit_export.measure.metrics import sqnr_db
from tests._toys import IMAGE, images, randomise

QUICK = QuantConfig(weight_range="max", activation_range="percentile")
TURNED, FLOAT = {"up", "odd"}, {"grouped", "signed"}


class Decoder(nn.Module):
    """Down by a convolution, up by transposed ones: plain, with a padded output, in groups, and of negative values."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.up, self.norm = nn.ConvTranspose2d(8, 12, 2, stride=2, bias=False), nn.BatchNorm2d(12)
        self.odd, self.odd_norm = nn.ConvTranspose2d(12, 8, 3, 2, 1, output_padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.narrow, self.signed = nn.Conv2d(8, 8, 3, stride=4, padding=1), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Linear(6, IMAGE.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.up(self.down(x))))
        x = torch.relu(self.grouped(torch.relu(self.odd_norm(self.odd(x)))))
        return self.head(torch.relu(self.signed(self.narrow(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> fx.GraphModule:
    return float_graph(randomise(Decoder()), IMAGE)


def made(graph: fx.GraphModule, target: str, config: QuantConfig = QUICK) -> fx.GraphModule:
    student = build_student(graph, config, get_target(target), IMAGE)
    calibrate_student(student, [images(32)], config, IMAGE)
    freeze(student)
    return student


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "openvino"])
def test_only_where_the_target_has_integer_kernels_for_them(target: str, graph: fx.GraphModule) -> None:
    weights = plan(graph, QUICK, get_target(target), IMAGE).weights
    assert weights.keys() & (TURNED | FLOAT) == (TURNED if target == "openvino" else set())
    student = made(graph, target)  # what has no integer kernel breaks no floor for integer layers
    left = student.meta["kept"] | student.meta["floats"]
    left |= float_layers(student, left)
    assert left.keys() & (TURNED | FLOAT) == (FLOAT if target == "openvino" else TURNED | FLOAT)


@pytest.mark.parametrize("scales", ["power_of_two", pytest.param("float", marks=pytest.mark.slow)])
def test_the_file_is_the_student(scales: str, graph: fx.GraphModule, tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"scales": scales})
    student, path, x = made(graph, "openvino", config), tmp_path / "m.onnx", images(16, seed=9)
    write_qdq(student, get_target("openvino"), path, metadata={})
    stored = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    nodes = {node.output[0]: node for node in onnx.load(path).graph.node}
    for layer in [node for node in nodes.values() if node.op_type == "ConvTranspose" and node.input[1] in nodes]:
        quantizer = nodes[layer.input[1]]
        (axis,) = [item.i for item in quantizer.attribute if item.name == "axis"]
        assert (axis, list(stored[quantizer.input[1]].dims)) == (1, [stored[quantizer.input[0]].dims[1]])
    assert sum(node.op_type == "ConvTranspose" and node.input[1] in nodes for node in nodes.values()) == len(TURNED)
    with torch.no_grad():
        ours, teacher = student(x).numpy(), graph(x).numpy()
    np.testing.assert_allclose(OrtSession(path, optimized=False).run(x.numpy()), ours, atol=1e-4 * np.abs(ours).max())
    assert (sqnr_db(teacher, ours) or 0) > 20
    assert {(each.severity, each.node) for each in check_file(path, "openvino").problems} == {
        ("warning", name) for name in FLOAT
    }


def test_a_stored_student_is_the_same(graph: fx.GraphModule, tmp_path: Path) -> None:
    student, x = made(graph, "openvino"), images(4)
    save_student(student, tmp_path / "s.safetensors")
    again = build_student(graph, QUICK, get_target("openvino"), IMAGE)
    load_student(again, tmp_path / "s.safetensors", QUICK)
    with torch.no_grad():
        assert torch.equal(again(x), student(x))


@pytest.mark.slow
@pytest.mark.skipif(bool(get_backend("openvino").missing()), reason="OpenVINO is not installed")
def test_openvino_runs_them_on_codes(graph: fx.GraphModule, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_qdq(made(graph, "openvino"), get_target("openvino"), path, metadata={})
    found = {layer.name: layer.precision for layer in realised_precision(path, "openvino").layers}
    assert {name: found[name] for name in TURNED | FLOAT} == dict.fromkeys(TURNED, "int8") | dict.fromkeys(
        FLOAT, "float"
    )
