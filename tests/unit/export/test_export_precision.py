from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.backends.precision import LayerPrecision
from dfqkit_export.errors import ArtefactError, TargetError
from dfqkit_export.measure.metrics import integer_share
from dfqkit_export.onnxfile.macs import multiply_adds
from tests._messages import raises_naming

Write = Callable[..., Path]


def by_name(path: Path) -> dict[str, LayerPrecision]:
    return {layer.name: layer for layer in realised_precision(path).layers}


def test_a_residual_net_runs_in_integer_kernels(residual_net: Write) -> None:
    realised = realised_precision(residual_net())
    found = [(layer.name, layer.op, layer.precision, layer.executed_as) for layer in realised.layers]
    assert found == [
        ("conv1", "Conv", "int8", "QLinearConv"),
        ("conv2", "Conv", "int8", "QLinearConv"),
        ("add", "Add", "int8", "QLinearAdd"),
        ("fc", "Gemm", "int8", "QGemm"),
    ]
    assert (realised.integer_layers, realised.float_layers, realised.integer_ops) == (4, 0, 1.0)
    assert realised.float_ops == ()
    assert realised.nodes["QLinearGlobalAveragePool"] == 1
    metric = integer_share(realised, subject="x")
    assert (metric.value, metric.n, metric.unit) == (100.0, 4, "%")


def test_zero_point_128_after_relu_keeps_the_convolution_in_float(residual_net: Write) -> None:
    realised = realised_precision(residual_net(relu_zero_point=128))
    layer = realised.layers[0]
    assert (layer.name, layer.precision, layer.executed_as) == ("conv1", "float", "FusedConv")
    assert "uint8 zero point 128" in layer.detail
    assert "zero point 0" in layer.detail
    assert [other.precision for other in realised.layers[1:]] == ["int8"] * 3
    assert realised.float_ops == (("FusedConv", "conv1"),)
    assert realised.to_dict()["integer_ops"] == 0.75


def test_a_float_bias_keeps_the_classifier_in_float(residual_net: Write) -> None:
    layer = by_name(residual_net(float_bias=True))["fc"]
    assert layer.precision == "float"
    assert "int32" in layer.detail


def test_an_unquantized_input_is_named(tmp_path: Path, qdq: Any) -> None:
    b = qdq()
    path = b.save(tmp_path / "m.onnx", b.qdq(b.conv("x", "conv", (3, 4)), "out", zero_point=128))
    layer = by_name(path)["conv"]
    assert layer.precision == "float"
    assert "input 'x' has no DequantizeLinear" in layer.detail


def test_an_unquantized_output_is_named(tmp_path: Path, qdq: Any) -> None:
    b = qdq()
    output = b.node("Sigmoid", [b.conv(b.qdq("x", "input", zero_point=128), "conv", (3, 4))], "sigmoid")
    layer = by_name(b.save(tmp_path / "m.onnx", output))["conv"]
    assert layer.precision == "float"
    assert "reaches Sigmoid without QuantizeLinear" in layer.detail


def test_float_models_have_no_integer_layer(tmp_path: Path, qdq: Any) -> None:
    b = qdq()
    b.constant("w", np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32))
    b.constant("w2", np.random.default_rng(1).normal(size=(4, 4, 3, 3)).astype(np.float32))
    h = b.node("Relu", [b.node("Conv", ["x", "w"], "conv", pads=[1, 1, 1, 1])], "relu")
    add = b.node("Add", [h, b.node("Conv", [h, "w2"], "conv2", pads=[1, 1, 1, 1])], "add")
    realised = realised_precision(b.save(tmp_path / "m.onnx", b.node("Relu", [add], "relu2")))
    assert realised.integer_ops == 0.0
    # The runtime adds inside the second convolution and renames both, depending on the processor's vector width.
    assert {layer.name for layer in realised.layers if layer.executed_as in {"Conv", "FusedConv"}} >= {"conv", "conv2"}
    assert all(layer.executed_as for layer in realised.layers)
    assert {op for op, _ in realised.float_ops} & {"Conv", "FusedConv"}


def test_unnamed_nodes_are_matched(residual_net: Write, tmp_path: Path) -> None:
    model = onnx.load(str(residual_net()))
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, str(tmp_path / "unnamed.onnx"))
    realised = realised_precision(tmp_path / "unnamed.onnx")
    assert [(layer.op, layer.precision) for layer in realised.layers] == [
        ("Conv", "int8"),
        ("Conv", "int8"),
        ("Add", "int8"),
        ("Gemm", "int8"),
    ]


def test_matmul_with_float_output_is_an_integer_kernel(tmp_path: Path, qdq: Any) -> None:
    b = qdq((3, 2, 2))
    x = b.qdq(b.node("Flatten", ["x"], "flatten"), "input", zero_point=128)
    parameters = [
        b.constant("w_int8", np.random.default_rng(0).integers(-127, 128, (12, 5)).astype(np.int8)),
        b.constant("w_scale", np.array(0.01, np.float32)),
        b.constant("w_zero_point", np.array(0, np.int8)),
    ]
    weight = b.node("DequantizeLinear", parameters, "w_DQ")
    layer = by_name(b.save(tmp_path / "m.onnx", b.node("MatMul", [x, weight], "fc"), rank=2))["fc"]
    assert (layer.precision, layer.executed_as) == ("int8", "MatMulIntegerToFloat")


def test_additions_of_a_constant_are_not_layers(tmp_path: Path, qdq: Any) -> None:
    b = qdq()
    b.constant("bias", np.ones((1, 3, 1, 1), np.float32))
    path = b.save(tmp_path / "m.onnx", b.node("Add", ["x", "bias"], "shift"))
    realised = realised_precision(path)
    assert realised.layers == ()
    assert realised.integer_ops is None
    assert integer_share(realised, subject="x").value is None


@pytest.mark.parametrize("keep", [0, 20, -40])
def test_truncated_files_are_refused(residual_net: Write, keep: int) -> None:
    path = residual_net()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtefactError, match=r"complete|ONNX"):
        realised_precision(path)


def test_the_file_is_left_alone(residual_net: Write) -> None:
    path = residual_net()
    before = path.read_bytes()
    realised_precision(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_multiply_adds_are_those_of_the_shapes(residual_net: Write) -> None:
    layers = {layer.name: layer.macs for layer in realised_precision(residual_net()).layers}
    assert layers == {"conv1": 64 * 4 * 3 * 9, "conv2": 64 * 4 * 4 * 9, "add": None, "fc": 4 * 10}


def test_the_share_of_multiply_adds_weighs_layers_by_their_work(residual_net: Write) -> None:
    realised = realised_precision(residual_net(relu_zero_point=128))
    conv1, rest = 64 * 4 * 3 * 9, 64 * 4 * 4 * 9 + 40
    assert realised.integer_macs == pytest.approx(rest / (conv1 + rest))
    assert realised.to_dict()["integer_macs"] == realised.integer_macs


@pytest.mark.parametrize(
    ("op", "weight", "attributes", "expected"),
    [
        ("Conv", (6, 1, 3, 3), {"group": 3}, 6 * 6 * 6 * 9),
        ("Conv", (4, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, 4 * 4 * 4 * 27),
        ("ConvTranspose", (3, 5, 2, 2), {"strides": [2, 2]}, 3 * 64 * 5 * 4),
        ("MatMul", (8, 7), {}, 3 * 8 * 7 * 8),
    ],
)
def test_multiply_adds_of_each_operator(
    tmp_path: Path, qdq: Any, op: str, weight: tuple[int, ...], attributes: dict[str, Any], expected: int
) -> None:
    b = qdq()
    b.constant("w", np.ones(weight, np.float32))
    model = onnx.load(str(b.save(tmp_path / "m.onnx", b.node(op, ["x", "w"], "layer", **attributes))))
    assert multiply_adds(model) == {"layer": expected}


def test_open_sizes_must_be_given(tmp_path: Path, qdq: Any) -> None:
    b = qdq()
    b.constant("w", np.ones((4, 3, 1, 1), np.float32))
    model = onnx.load(str(b.save(tmp_path / "m.onnx", b.node("Conv", ["x", "w"], "layer"))))
    for size in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        size.dim_param = "side"
    before = model.SerializeToString()
    assert multiply_adds(model) == {}
    assert multiply_adds(model, (3, 5, 5)) == {"layer": 25 * 4 * 3}
    assert model.SerializeToString() == before
    onnx.save(model, str(tmp_path / "open.onnx"))
    assert realised_precision(tmp_path / "open.onnx").integer_macs is None


def test_layers_of_one_kernel_say_so(residual_net: Write) -> None:
    kernels = [layer.kernel for layer in realised_precision(residual_net()).layers]
    assert kernels[0] == "conv1"
    assert len(set(kernels)) == 4


def test_unknown_runtimes_are_refused(residual_net: Write) -> None:
    with raises_naming(TargetError, "Unknown runtime 'tvm'", "onnxruntime, ", "openvino, tensorrt"):
        realised_precision(residual_net(), "tvm")
