"""Rewrites keep the function, and leave layers that integer kernels find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from dfqkit.students.capture import float_graph
from dfqkit.students.nodes import op_name
from dfqkit.students.onnx_file import write_qdq
from dfqkit_export.backends import get_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from tests._toys import IMAGE, ChannelsLast, Head, conv_bn, images, randomise, student, toy


def operators(graph: fx.GraphModule) -> list[str]:
    return [op_name(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def check(model: nn.Module) -> fx.GraphModule:
    graph, x = float_graph(model, IMAGE), images(3)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=1e-5, atol=1e-5)
    return graph


def test_linear_layers_on_maps_become_convolutions_that_keep_their_names() -> None:
    model = toy("channels_last")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = check(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    wide, narrow = graph.get_submodule("wide"), graph.get_submodule("narrow")
    assert isinstance(wide, nn.Conv2d)
    assert torch.equal(wide.weight.flatten(1), before["wide.weight"])
    assert isinstance(narrow, nn.Conv2d)
    torch.testing.assert_close(narrow.bias, before["narrow.bias"] * before["scale"].flatten())
    assert operators(graph).count("permute") == 2  # around LayerNorm, which wants channels last
    assert "mul" not in operators(graph)


def test_a_linear_layer_on_vectors_stays_one_also_where_it_serves_maps_too() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 8), Head(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.mix(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return self.head(x * self.mix(x.mean((2, 3)))[:, :, None, None])

    kinds = [type(m) for n, m in check(randomise(Both())).named_modules() if n.startswith("mix")]
    assert sorted(kind.__name__ for kind in kinds) == ["Conv2d", "Linear"]


def test_permutations_that_do_not_undo_each_other_stay() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3, stride=2, padding=1), Head(8)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(self.stem(x).permute(0, 2, 3, 1)).permute(0, -1, 2, 1)
            return self.head(x)

    assert operators(check(randomise(Turned()))).count("permute") == 2


class Dense(nn.Module):
    """Max pooling that a dense block reads many times; its first layer joins a single tensor (DenseNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = conv_bn(3, 8), nn.MaxPool2d(2)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(12), nn.Conv2d(12, 4, 3, padding=1)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.pool(torch.relu(self.stem(x)))]
        parts.append(self.conv1(torch.relu(self.norm1(torch.cat(parts, 1)))))
        parts.append(self.conv2(torch.relu(self.norm2(torch.cat(parts, 1)))))
        return self.head(torch.cat(parts, 1))


def test_a_dense_block_runs_in_integers_altogether(tmp_path: Path) -> None:
    graph, x = student(randomise(Dense())), images(48, seed=5)
    write_qdq(graph, get_target("onnxruntime"), tmp_path / "m.onnx", metadata={})
    with torch.no_grad():
        assert np.array_equal(OrtSession(tmp_path / "m.onnx", threads=1).run(x.numpy()), graph(x).numpy())
    assert realised_precision(tmp_path / "m.onnx").float_ops == ()


@pytest.mark.parametrize(("name", "bits"), [("channels_last", "w4a4"), ("input_transform", "w8a8")])
def test_the_student_is_the_file(exported: Callable[..., tuple[fx.GraphModule, Path]], name: str, bits: str) -> None:
    (graph, path), x = exported(name, bits), images(48, seed=5)
    with torch.no_grad():
        expected = graph(x).numpy()
    assert expected.std() > 0.1
    found = OrtSession(path, threads=1).run(x.numpy())
    if name == "input_transform":
        assert np.array_equal(found, expected)
    else:
        # GELU and LayerNorm are rounded differently by each library, and a tie moves a code now and then.
        assert np.mean(found == expected) > 0.9
    realised = realised_precision(path)
    assert realised.float_layers == 0
    assert realised.integer_macs == 1.0


def test_every_layer_of_the_tensorrt_form_reads_quantized_values(tmp_path: Path) -> None:
    graph = student(randomise(ChannelsLast()), "w8a8", "tensorrt")
    assert {"image", "layer_norm_default", "gelu_default"} <= {name for name, _ in graph.quant.named_children()}
    write_qdq(graph, get_target("tensorrt"), tmp_path / "m.onnx", metadata={})
    x = images(48, seed=5)
    with torch.no_grad():
        expected = graph(x).numpy()
    assert np.mean(OrtSession(tmp_path / "m.onnx", threads=1, optimized=False).run(x.numpy()) == expected) > 0.9
