"""The file that ships is the student: the same numbers, in types the runtime multiplies as integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import fx, nn

from dfqkit.students.integer_student import IntegerStudent
from dfqkit.students.onnx_file import write_float, write_qdq
from dfqkit.students.onnx_nodes import integer_bias
from dfqkit_export.backends import get_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.errors import TargetError
from tests._messages import raises_naming
from tests._toys import (
    IMAGE,
    TOYS,
    Depthwise,
    Head,
    Residual,
    TinyTransformer,
    conv_bn,
    images,
    randomise,
    student,
    toy,
    toy_graph,
)  # fmt: skip

BITS = ("w8a8", "w4a8", "w4a4")
FAST = ("residual", "depthwise")
SLOW = pytest.mark.slow
CASES = [
    pytest.param(name, bits, marks=() if name == "residual" or (name in FAST and bits == "w4a4") else SLOW)
    for name in TOYS
    for bits in BITS
]
TOY = [pytest.param(name, marks=() if name in FAST else SLOW) for name in TOYS]
Case = tuple[fx.GraphModule, Path]


def torch_logits(graph: fx.GraphModule, x: torch.Tensor) -> NDArray[np.float32]:
    with torch.no_grad():
        return graph(x).numpy()


def integer_logits(graph: fx.GraphModule, x: torch.Tensor) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(IntegerStudent(graph).run(x))


def run(path: Path, x: torch.Tensor, *, optimized: bool = True) -> NDArray[np.float32]:
    return OrtSession(path, threads=1, optimized=optimized).run(x.numpy())


def initializers(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


INEXACT = {"squeeze_excite", "hard_gate", "channels_last"}


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_torch_and_onnxruntime_agree_bit_for_bit(exported: Callable[..., Case], name: str, bits: str) -> None:
    graph, path = exported(name, bits, "onnxruntime-vnni")
    x = images(48, seed=5)
    expected = torch_logits(graph, x)
    for optimized in (True, False):
        found = run(path, x, optimized=optimized)
        if name in INEXACT:
            # Sigmoid, GELU and LayerNorm are no products of short numbers: each library rounds them in its own way, and
            # a tie moves a code now and then.
            assert np.mean(found == expected) > 0.9
            assert np.abs(found - expected).max() < 0.1 * expected.std()
        else:
            assert np.array_equal(found, expected)
    assert expected.std() > 0.1


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_the_file_is_plain_and_complete(exported: Callable[..., Case], name: str, bits: str) -> None:
    _, path = exported(name, bits)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert {n.domain for n in model.graph.node} == {""}
    assert not model.functions
    assert {p.key: p.value for p in model.metadata_props} == {"recipe": path.stem}
    assert model.producer_name == "dfqkit"
    data = path.read_bytes()
    for trace in (b".py", b"/home", b"/root", b"site-packages", b"namespace", str(Path.cwd()).encode()):
        assert trace not in data
    assert not any(n.doc_string or n.metadata_props for n in model.graph.node)
    assert [p.name for p in path.parent.iterdir() if p.stem == path.stem] == [path.name]
    names = [n.name for n in model.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)


@pytest.mark.parametrize("name", ["residual", "shuffle"])
def test_any_batch_size_runs(exported: Callable[..., Case], name: str) -> None:
    graph, path = exported(name, "w4a4")
    for n in (1, 5):
        x = images(n, seed=n)
        assert np.array_equal(run(path, x), torch_logits(graph, x))


@pytest.mark.parametrize("name", TOY)
def test_weights_are_integers_in_range(exported: Callable[..., Case], name: str) -> None:
    _, path = exported(name, "w4a4")
    model = onnx.load(path)
    stored, made_by = initializers(model), producers(model)
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    assert layers
    narrow = 0
    for layer in layers:
        weight, bias = (made_by[i] for i in layer.input[1:3])
        assert {weight.op_type, bias.op_type} == {"DequantizeLinear"}
        codes, scale, zero_point = (stored[i] for i in weight.input)
        assert codes.dtype == np.int8
        assert scale.shape == (codes.shape[0],)
        assert int(np.abs(codes).max()) <= 127
        narrow += int(np.abs(codes).max()) <= 7
        assert not zero_point.any()
        assert stored[bias.input[0]].dtype == np.int32
        source = made_by.get(layer.input[0])
        while source is not None and source.op_type != "DequantizeLinear":
            source = made_by[source.input[0]]
        assert source is not None
        np.testing.assert_array_equal(stored[bias.input[1]], stored[source.input[1]] * scale)
    assert narrow >= 1
    assert not any(v.dtype == np.float32 and v.size > 64 for v in stored.values())


@pytest.mark.parametrize("bits", BITS)
def test_every_layer_of_the_residual_network_runs_in_integers(exported: Callable[..., Case], bits: str) -> None:
    realised = realised_precision(exported("residual", bits)[1])
    assert (realised.integer_layers, realised.float_layers) == (9, 0)
    assert realised.float_ops == ()
    assert realised.nodes["QLinearConv"] == 6
    assert realised.nodes["QLinearAdd"] == 2
    assert realised.nodes["QGemm"] == 1


@pytest.mark.parametrize(
    ("name", "left"),
    [
        pytest.param("option_a", {"Pad"}, marks=SLOW),  # no integer kernel in ONNX Runtime
        ("depthwise", set()),
        ("squeeze_excite", set()),
        pytest.param("hard_gate", {"HardSigmoid"}, marks=SLOW),  # no integer kernel in ONNX Runtime
        ("shuffle", set()),
        pytest.param("preactivation", set(), marks=SLOW),
        pytest.param("input_transform", {"Add", "Mul"}, marks=SLOW),  # constants that no quantizer holds
        # ONNX Runtime has no integer kernels for LayerNorm, and GELU is written as the other four.
        pytest.param("channels_last", {"LayerNormalization", "Add", "Div", "Erf", "Mul"}, marks=SLOW),
    ],
)
def test_what_is_left_in_float(exported: Callable[..., Case], name: str, left: set[str]) -> None:
    realised = realised_precision(exported(name, "w4a4")[1])
    assert realised.float_layers == 0
    assert {op for op, _ in realised.float_ops} == left


def test_the_same_student_gives_the_same_bytes(exported: Callable[..., Case], tmp_path: Path) -> None:
    graph, path = exported("residual", "w4a4")
    parameters = {n: v.clone() for n, v in graph.named_parameters()}
    write_qdq(graph, get_target("onnxruntime"), tmp_path / "again.onnx", metadata={"recipe": path.stem})
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert all(torch.equal(parameters[n], v) for n, v in graph.named_parameters())


def test_metadata_is_sorted(tmp_path: Path) -> None:
    write_float(toy_graph("depthwise"), tmp_path / "a.onnx", metadata={"b": "1", "a": "2"})
    assert [p.key for p in onnx.load(tmp_path / "a.onnx").metadata_props] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "bits"),
    [case if case.values == ("residual", "w8a8") else pytest.param(*case.values, marks=SLOW) for case in CASES],
)
def test_with_any_scales_integer_kernels_agree_bit_for_bit(exported: Callable[..., Case], name: str, bits: str) -> None:
    graph, path = exported(name, bits, scales="float")
    x = images(48, seed=5)
    found, expected = run(path, x), integer_logits(graph, x)
    if name in INEXACT:
        assert np.mean(found == expected) > 0.9
        assert np.abs(found - expected).max() < 0.1 * expected.std()
    else:
        assert np.array_equal(found, expected)
    fake = torch_logits(graph, x)
    assert not np.array_equal(found, fake)  # or this test would tell nothing
    assert np.linalg.norm(found - fake) < 0.01 * np.linalg.norm(fake)


@pytest.mark.parametrize("name", FAST)
def test_integer_kernels_change_nothing_where_scales_are_powers_of_two(
    exported: Callable[..., Case], name: str
) -> None:
    graph, x = exported(name, "w4a4", "onnxruntime-vnni")[0], images(48, seed=5)
    assert np.array_equal(integer_logits(graph, x), torch_logits(graph, x))


class Awkward(nn.Module):
    """A pool over 5x5 positions, whose mean no power of two divides, and a layer called twice on different scales."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = conv_bn(3, 8, stride=2), nn.Conv2d(8, 8, 3, padding=1)
        self.shrink = nn.Conv2d(8, 8, 4)
        self.head = Head(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.twice(torch.relu(self.stem(x))))
        x = torch.relu(self.twice(nn.functional.max_pool2d(x * 9.0, 3, 1, 1)))
        return self.head(torch.relu(self.shrink(x)))


@pytest.mark.parametrize("bits", [pytest.param("w8a8", marks=SLOW), "w4a4"])
def test_awkward_numbers_are_still_exact(tmp_path: Path, bits: str) -> None:
    graph = student(randomise(Awkward()), bits)
    write_qdq(graph, get_target("onnxruntime"), tmp_path / "m.onnx", metadata={})
    x = images(48, seed=5)
    assert np.array_equal(run(tmp_path / "m.onnx", x), torch_logits(graph, x))


class Mixed(nn.Module):
    """Averages at borders and of signed maps, sums and products with a gate, what is read twice, and what is float."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.last = conv_bn(3, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)
        self.head = Head(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.avg_pool2d(self.stem(x), 3, 1, 1, count_include_pad=False)
        gate = self.gate(nn.functional.adaptive_avg_pool2d(x, 1))
        y = (gate + x) * gate
        y = torch.cat([y, nn.functional.leaky_relu(y, 0.1)], 1)[:, 4:12]
        return self.head(torch.relu(self.last(y)) + torch.tanh(x[:, :, 2:, 2:]))


@pytest.mark.slow
@pytest.mark.parametrize("model", [Awkward, Mixed, TinyTransformer])
def test_other_operators_with_any_scales(tmp_path: Path, model: Callable[[], nn.Module]) -> None:
    graph = student(randomise(model()), scales="float", weight_range="max", activation_range="percentile")
    write_qdq(graph, get_target("onnxruntime"), tmp_path / "m.onnx", metadata={})
    x = images(48, seed=5)
    found, expected = run(tmp_path / "m.onnx", x), integer_logits(graph, x)
    assert np.array_equal(found, expected) or (model is not Awkward and np.mean(found == expected) > 0.9)


@pytest.mark.parametrize("bits", [pytest.param("w8a8", marks=SLOW), "w4a4"])
def test_relu6_at_its_limit_is_exact(tmp_path: Path, bits: str) -> None:
    model = randomise(Depthwise())
    with torch.no_grad():
        for norm in (model.stem[1], model.expand[1], model.depth[1]):
            norm.bias += 4
    graph = student(model, bits)
    write_qdq(graph, get_target("onnxruntime"), tmp_path / "m.onnx", metadata={})
    x = images(48, seed=5)
    assert np.array_equal(run(tmp_path / "m.onnx", x), torch_logits(graph, x))
    assert realised_precision(tmp_path / "m.onnx").float_ops == ()


def test_dead_channels_are_exact_too(tmp_path: Path) -> None:
    model = randomise(Residual())
    with torch.no_grad():
        model.a1[1].weight[:3] = torch.tensor([0.0, 1e-20, 1e-6])
    graph = student(model)
    write_qdq(graph, get_target("onnxruntime"), tmp_path / "m.onnx", metadata={})
    x = images(48, seed=5)
    assert np.array_equal(run(tmp_path / "m.onnx", x), torch_logits(graph, x))


@pytest.mark.parametrize(
    ("name", "bits"), [("residual", "w4a4"), ("residual", "w8a8"), pytest.param("depthwise", "w4a4", marks=SLOW)]
)
def test_tensorrt_files(exported: Callable[..., Case], name: str, bits: str) -> None:
    graph, path = exported(name, bits, "tensorrt")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    stored, made_by = initializers(model), producers(model)
    assert not any(v.dtype in (np.uint8, np.int32) for v in stored.values())
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        zero_point = stored[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        per_channel = any(a.name == "axis" for a in node.attribute)
        assert stored[node.input[1]].ndim == int(per_channel)
        assert per_channel == (node.input[0] in stored)
    clips = [n for n in model.graph.node if n.op_type == "Clip"]
    assert bool(clips) == (bits == "w4a4")
    for clip in clips:
        assert stored[clip.input[1]].dtype == np.float32
        (reader,) = (n for n in model.graph.node if clip.output[0] in n.input)
        assert reader.op_type == "QuantizeLinear"
    for layer in (n for n in model.graph.node if n.op_type in ("Conv", "Gemm")):
        assert stored[layer.input[2]].dtype == np.float32
    for addition in (n for n in model.graph.node if n.op_type == "Add"):
        main = [made_by[i] for i in addition.input if made_by[i].op_type == "Conv"]
        assert len(main) == 1
    x = images(48, seed=5)
    expected = torch_logits(graph, x)
    assert np.array_equal(run(path, x, optimized=False), expected)
    assert expected.std() > 0.1


def test_tensorrt_biases_on_the_integer_grid_are_exact_in_onnxruntime(tmp_path: Path) -> None:
    # ONNX Runtime's optimizer rounds a QDQ convolution's float bias to int32: free where it is on that grid already.
    graph = student("residual", "w4a4", "tensorrt")
    with torch.no_grad():
        for layer, bias in integer_bias(graph).items():
            graph.get_submodule(layer).bias.copy_(bias)
    write_qdq(graph, get_target("tensorrt"), tmp_path / "m.onnx", metadata={})
    x = images(48, seed=5)
    assert np.array_equal(run(tmp_path / "m.onnx", x), torch_logits(graph, x))


def test_a_student_for_another_target_is_refused(exported: Callable[..., Case], tmp_path: Path) -> None:
    graph, _ = exported("residual", "w4a4")
    with raises_naming(TargetError, "unsigned", "tensorrt"):
        write_qdq(graph, get_target("tensorrt"), tmp_path / "m.onnx", metadata={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TOY)
def test_the_float_file_computes_what_the_model_computes(tmp_path: Path, name: str) -> None:
    write_float(toy_graph(name), tmp_path / "teacher.onnx", metadata={"teacher": name})
    model = onnx.load(tmp_path / "teacher.onnx")
    assert not {n.op_type for n in model.graph.node} & {"BatchNormalization", "QuantizeLinear"}
    assert {i.data_type for i in model.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}
    for n in (1, 6):
        x = images(n)
        np.testing.assert_allclose(run(tmp_path / "teacher.onnx", x), torch_logits(toy(name), x), rtol=1e-4, atol=1e-5)
    assert IMAGE.classes == run(tmp_path / "teacher.onnx", images(1)).shape[1]
