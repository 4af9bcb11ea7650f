"""Names are one mapping: a layer has one in torch and in both files, and what is compared by it is one and the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from dfqkit import models
from dfqkit.config.quant import QuantConfig
from dfqkit.run.measuring import compare_layers, student_layers
from dfqkit.students.calibration import calibrate
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.naming import layer_names, tensor_names, unique
from dfqkit.students.onnx_file import write_float, write_qdq
from dfqkit.students.student import build_student
from dfqkit_export.backends import get_target
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.activations import layer_outputs
from dfqkit_export.report import LayerRow
from tests._toys import IMAGE, Head, images, randomise, student, toy_graph

#: Its students have scales with which fake quantization and the file, run as written, give the same bits.
EXACT = "onnxruntime-vnni"


def conv(channels: int = 6, out: int = 6) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


class Traps(nn.Module):
    """Modules named like the file's input, its output, functions, operators and each other's calls; shared layers."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.output, self.add, self.quant = conv(3), conv(), nn.Sequential(conv()), conv()
        self.parts = nn.ModuleDict({"a-b": conv(), "é 1": conv(), "add/output": conv()})
        self.shared, self.shared_2 = conv(), conv()
        self.weight, self.offset = nn.Parameter(torch.ones(6, 6, 3, 3)), nn.Parameter(torch.zeros(6))
        self.logits = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.add(torch.relu(self.output(torch.relu(self.image(x))))))
        for part in self.parts.values():
            x = torch.relu(part(x)) + x
        x = torch.relu(self.shared(x)) + torch.relu(self.shared(torch.relu(self.quant(x))))
        x = torch.relu(self.shared_2(x)) + x
        same, half = (functional.conv2d(x, self.weight, self.offset, stride=step, padding=1) for step in (1, 2))
        return self.logits(torch.relu(self.shared(functional.max_pool2d(same, 2)) + half))


class Tokens(nn.Module):
    """A projection of tokens that is used twice, for attention by hand and for torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 24)
        self.fc = nn.Linear(8, IMAGE.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + (0.3 * q @ k.transpose(1, 2)).softmax(-1) @ v
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.fc(x.mean(1))


class Deep(nn.Module):
    """So many additions that a number which the exporter counts up to is another addition's name in torch."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = y = functional.avg_pool2d(x, 2)
            for _ in range(28):
                x = torch.relu(x + y)
        return x.mean((2, 3))


def rows_of(model: nn.Module, folder: Path) -> tuple[fx.GraphModule, tuple[LayerRow, ...]]:
    """Both files of a model, written into ``folder``; its student and its rows."""
    quantized, target = student(randomise(model), target=EXACT), get_target(EXACT)
    write_qdq(quantized, target, folder / "model.onnx", metadata={})
    write_float(float_graph(model, IMAGE), folder / "teacher.onnx", metadata={}, opset=target.opset)
    return quantized, compare_layers(quantized, folder / "model.onnx", folder / "teacher.onnx", images(8).numpy())


def test_every_row_has_its_name_and_its_figures(tmp_path: Path) -> None:
    model = Traps()
    quantized, rows = rows_of(model, tmp_path)
    assert list(layer_names(float_graph(model, IMAGE)).values()) == list(layer_names(quantized).values())
    found = [row.name for row in rows]
    assert len(set(found)) == len(found)
    assert {"image", "output", "add.0", "parts.a-b", "parts.é 1", "parts.add/output", "shared", "shared_2"} < set(found)
    assert {"shared_3", "shared_4", "model_quant", "weight", "weight_1", "logits.fc"} < set(found)
    assert sum(row.op == "Add" for row in rows) == 6
    for row in rows:
        assert row.sqnr_student_db is not None
        assert row.sqnr_student_db > 20, row
        assert row.sqnr_runtime_db is None or row.sqnr_runtime_db > 60, row
        assert row.precision == "int8", row
    x = images(8)
    ours, runtime = student_layers(quantized, tmp_path / "model.onnx", x), layer_outputs(
        tmp_path / "model.onnx", x.numpy(), optimized=False
    )  # fmt: skip
    assert list(ours) == list(runtime) == found
    assert all(np.array_equal(ours[name], runtime[name]) for name in found)


@pytest.mark.slow
def test_a_layer_inside_of_an_operator_and_one_with_its_bias_apart(tmp_path: Path) -> None:
    quantized, rows = rows_of(Tokens(), tmp_path)
    attention = "scaled_dot_product_attention_default"
    assert {"qkv", "qkv_2", "matmul_default", "matmul_default_1", attention, f"{attention}/MatMul"} < {
        row.name for row in rows
    }
    for row in rows:
        assert row.sqnr_student_db is not None
        assert row.sqnr_student_db > 20, row
        assert row.sqnr_runtime_db is None or row.sqnr_runtime_db > 40, row
    node = next(n for n in quantized.graph.nodes if n.target == "qkv_2")
    tensors = {name for node in onnx.load(tmp_path / "model.onnx").graph.node for name in node.output}
    assert tensor_names(quantized)[node] in tensors


def test_additions_are_not_told_by_the_numbers_of_the_exporter(tmp_path: Path) -> None:
    graph = float_graph(Deep(), IMAGE)
    write_float(graph, tmp_path / "deep.onnx", metadata={})
    x, values = images(2), dict[str, Tensor]()

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            values[n.name] = value
            return value

    Recorder(graph).run(x)
    found = layer_outputs(tmp_path / "deep.onnx", x.numpy())
    assert len(found) == 56
    readers = {n.name: next(iter(n.users)).name for n in graph.graph.nodes if n.target is torch.add}
    for name, value in found.items():
        torch.testing.assert_close(torch.from_numpy(value), values[readers[name]])


def test_a_value_of_another_shape_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = toy_graph("residual")
    monkeypatch.setattr("dfqkit.students.onnx_names._Names.has_shape", lambda *_: False)
    write_float(graph, tmp_path / "a.onnx", metadata={})
    assert not {n for node in onnx.load(tmp_path / "a.onnx").graph.node for n in node.output if n.endswith("/output")}


class Tied(nn.Module):
    """Three layers with one weight; the first and the last share their bias, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.three, self.head = conv(3), conv(), conv(), conv(), Head(6)
        self.two.weight = self.three.weight = self.one.weight
        self.three.bias = self.one.bias

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.stem, self.one, self.two, self.three, self.one):
            x = torch.relu(layer(x))
        return self.head(x)


def test_layers_with_one_weight_keep_their_own_names() -> None:
    names = layer_names(float_graph(randomise(Tied()), IMAGE)).values()
    layers = ["stem", "one", "two", "three", "one_2", "head.fc"]
    assert [name for name in names if name in layers] == layers
    assert not {"three_2", "one_3"}.intersection(names)


@pytest.mark.slow
def test_every_layer_of_a_deep_network_has_its_figures(tmp_path: Path) -> None:
    """CIFAR ResNet-56: its first additions have the numbers of its last ones in the exporter's count."""
    model, target = randomise(models.cifar_resnet56()), get_target("onnxruntime")
    config = QuantConfig(bits="w8a8", weight_range="max", activation_range="percentile")
    image = ImageSpec(shape=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), classes=10)
    graph, x = float_graph(model, image), images(8, image=image)
    quantized = build_student(graph, config, target, image)
    calibrate(quantized, [x], image, learnable=False)
    freeze(quantized)
    write_qdq(quantized, target, tmp_path / "model.onnx", metadata={})
    write_float(graph, tmp_path / "teacher.onnx", metadata={}, opset=target.opset)
    rows = compare_layers(quantized, tmp_path / "model.onnx", tmp_path / "teacher.onnx", x.numpy())
    assert sum(row.op == "Add" for row in rows) == 27
    assert len(rows) == 27 + 56
    for row in rows:
        assert row.sqnr_student_db is not None
        assert row.sqnr_runtime_db is None or row.sqnr_runtime_db > 60, row


def test_unique() -> None:
    assert [unique("a", used) for used in (set(), {"a"}, {"a", "a_2"})] == ["a", "a_2", "a_3"]
