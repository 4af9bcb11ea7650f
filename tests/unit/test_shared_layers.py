"""One layer applied twice: the weights are shared, each call has its own grid, bias codes, row and name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from dfqkit.students.capture import float_graph
from dfqkit.students.onnx_file import write_qdq
from dfqkit.students.student import snapshot
from dfqkit_export.backends import get_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.measure.metrics import sqnr_db
from tests._qdqfile import File
from tests._toys import IMAGE, Head, images, randomise, student


class Siamese(nn.Module):
    """A head on the maps of two sizes, or of two scales, with biases that count."""

    def __init__(self, *, halved: bool) -> None:
        super().__init__()
        self.stem, self.gate, self.head = (
            nn.Conv2d(3, 40, 3, padding=1),
            nn.Conv2d(40, 40, 1),
            nn.Conv2d(40, 40, 3, padding=1),
        )
        self.last, self.halved = Head(40), halved

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        other = torch.relu(20 * self.gate(x))
        other = torch.relu(self.head(functional.max_pool2d(other, 2) if self.halved else other))
        return self.last(
            torch.relu(self.head(x)) + (functional.interpolate(other, scale_factor=2) if self.halved else other)
        )


def siamese(*, halved: bool) -> nn.Module:
    model = randomise(Siamese(halved=halved))
    with torch.no_grad():
        model.head.bias.copy_(torch.linspace(-4, 4, 40))
    return model


@pytest.mark.parametrize("bits", ["w8a8", pytest.param("w4a4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("halved", [False, True])
def test_each_call_has_its_own_bias_on_its_own_grid(halved: bool, bits: str, tmp_path: Path) -> None:
    model, path, x = siamese(halved=halved), tmp_path / "model.onnx", images(16)
    quantized = student(model, bits)
    write_qdq(quantized, get_target("onnxruntime"), path, metadata={})
    with torch.no_grad():
        expected, floats = quantized(x).numpy(), model(x).numpy()
    for optimized in (True, False):
        assert np.array_equal(OrtSession(path, optimized=optimized).run(x.numpy()), expected)
    assert (sqnr_db(floats, expected) or 0) > (25 if bits == "w8a8" else 5)
    file = File(onnx.load(path))
    made = {output: node for node in file.graph.node for output in node.output}
    calls = [node for node in file.graph.node if node.name in ("head", "head_2")]
    assert len(calls) == 2
    scales = []
    for call in calls:
        data, weight, bias = (made[name] for name in call.input)
        while data.op_type != "DequantizeLinear":
            data = made[data.input[0]]
        scales.append(file.value(data.input[1]))
        np.testing.assert_array_equal(file.value(bias.input[1]), scales[-1] * file.value(weight.input[1]))
    assert scales[0] != scales[1]
    stored = [i for i in file.graph.initializer if numpy_helper.to_array(i).shape == (40, 40, 3, 3)]
    # Stored once for each call: what makes ONNX Runtime exact without VNNI fails on codes that are shared.
    assert [i.name for i in stored] == ["head.weight_codes", "head.weight_codes_2"]
    np.testing.assert_array_equal(*map(numpy_helper.to_array, stored))
    told = {layer.name: layer.precision for layer in realised_precision(path).layers}
    assert told["head"] == told["head_2"] == "int8"


def test_training_moves_one_set_of_weights(tmp_path: Path) -> None:
    quantized = student(siamese(halved=False), frozen=False)
    first, again = quantized.get_submodule("head"), quantized.get_submodule("head_2")
    assert first.weight is again.weight
    assert first.bias is not again.bias
    before = snapshot(quantized)
    quantized(images(4)).sum().backward()
    torch.optim.SGD(quantized.parameters(), 0.1).step()
    after = snapshot(quantized)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"head.weight", "head_2.weight"} <= moved
    assert torch.equal(after["head.weight"], after["head_2.weight"])


def test_the_float_graph_keeps_one_layer() -> None:
    graph = float_graph(siamese(halved=True), IMAGE)
    assert sum(node.target == "head" for node in graph.graph.nodes) == 2
