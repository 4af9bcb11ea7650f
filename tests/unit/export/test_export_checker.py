"""Every rule finds what it is about and nothing else, and ONNX Runtime agrees where it can be asked."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfqkit_export.backends import all_targets
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.checker import all_rules, check_file, check_model, rules_for
from dfqkit_export.errors import ArtefactError, TargetError
from tests._toys import TOYS
from tests.unit.export._qdq_fixtures import FIXTURES, Fixture, norm, one_conv
from tests.unit.export._qdq_models import ort, trt

U8 = np.uint8

SLOW = pytest.mark.slow
CASES = [pytest.param(item, id=f"{item.rule}-{item.name}") for item in FIXTURES]


def found(model: onnx.ModelProto, target: str) -> set[str]:
    return {problem.rule for problem in check_model(model, target).problems}


def test_every_rule_has_a_fixture() -> None:
    ids = [rule.id for rule in all_rules()]
    assert len(set(ids)) == len(ids)
    assert {item.rule for item in FIXTURES} == set(ids)
    numbers = {prefix: sum(name[0] == prefix for name in ids) for prefix in "EW"}
    assert numbers["E"] == 11
    assert {f"W{number}" for number in range(1, 17)} <= set(ids)


@pytest.mark.parametrize("case", CASES)
def test_a_rule_finds_its_fixture_and_passes_the_neighbour(case: Fixture) -> None:
    assert found(case.make(True), case.target) == {case.rule}
    assert found(case.make(False), case.target) == set()


@pytest.mark.parametrize("case", CASES)
def test_a_problem_names_place_reason_and_repair(case: Fixture) -> None:
    model = case.make(True)
    names = {node.name for node in model.graph.node} | {""}
    result = check_model(model, case.target)
    severity = {"E": "error"}.get(case.rule[0], "warning")
    for problem in result.problems:
        assert problem.node in names
        assert problem.severity == severity
        assert len(problem.message) > 20
        assert len(problem.repair) > 5
    assert result.ok == (severity == "warning")
    assert json.loads(json.dumps(result.to_dict()))["problems"][0]["rule"] == case.rule


def test_rules_belong_to_backends() -> None:
    assert {rule.id[0] for rule in rules_for("onnxruntime-tensorrt")} == {"E", "W"}
    assert {rule.id for rule in rules_for("tensorrt")} == {rule.id for rule in rules_for("tensorrt-rtx")}
    assert "O5" in {rule.id for rule in rules_for("onnxruntime-avx2")}
    assert not {"E4", "O5"} & {rule.id for rule in rules_for("openvino")}
    for name in all_targets():
        assert {"E3", "E6", "E7", "E8"} <= {rule.id for rule in rules_for(name)}


def test_errors_come_first() -> None:
    n = trt()
    x = n.qdq("x", "in", scale=[0.02])
    n.style = "ort"
    result = check_model(n.model(n.conv(x)), "tensorrt")
    assert [problem.rule for problem in result.problems] == ["E4", "W3", "W3"]
    assert (len(result.errors), len(result.warnings), result.ok) == (1, 2, False)


def test_nodes_without_names_are_named_by_their_place() -> None:
    n = trt()
    model = one_conv(n, n.qdq("x", "in", scale=[0.02]))
    for node in model.graph.node:
        node.name = ""
    assert [p.node for p in check_model(model, "tensorrt").problems] == ["QuantizeLinear[0]", "DequantizeLinear[1]"]


def test_uint8_is_an_error_where_tensorrt_10_must_read_the_file() -> None:
    model = next(item for item in FIXTURES if item.rule == "W2").make(True)
    assert found(model, "tensorrt-rtx") == {"W2"}
    assert found(model, "tensorrt") == {"E1"}
    assert found(model, "onnxruntime-tensorrt") == {"E1"}


def test_scales_of_every_channel_are_looked_at() -> None:
    n = trt()
    scale = np.array([0.01, -0.5, np.nan, np.inf])
    (problem,) = check_model(one_conv(n, n.qdq("x", "in"), weights={"scale": scale}), "tensorrt").problems
    assert (problem.rule, problem.node) == ("E3", "conv.w.DQ")
    assert "-0.5 in channel 1 (3 of 4 channels)" in problem.message


@pytest.mark.parametrize(
    ("op", "shape", "trans", "axis", "right"),
    [
        ("Gemm", (5, 4), 1, 0, True),
        ("Gemm", (4, 5), 0, 1, True),
        ("Gemm", (4, 5), 0, 0, False),
        ("MatMul", (4, 5), 0, 1, True),
        ("MatMul", (4, 5), 0, 0, False),
    ],
)
def test_the_output_axis_of_linear_layers(op: str, shape: tuple[int, int], trans: int, axis: int, right: bool) -> None:
    n = trt(shape=(4,))
    inputs = [n.qdq("x", "in"), n.weight("w", shape, axis=axis)]
    h = n.node(op, inputs, "fc", **({"transB": trans} if op == "Gemm" else {}))
    assert found(n.model(h, rank=2), "tensorrt") == (set() if right else {"W5"})


def test_a_transposed_weight_moves_its_axis() -> None:
    for axis, right in ((0, True), (1, False)):
        n = trt(shape=(4,))
        x = n.qdq("x", "in")
        weight = n.node("Transpose", [n.weight("w", (5, 4), axis=axis)], "turn", perm=[1, 0])
        assert found(n.model(n.node("MatMul", [x, weight], "fc"), rank=2), "tensorrt") == (set() if right else {"W5"})


def test_a_norm_in_front_of_a_convolution_is_no_problem() -> None:
    n = trt(shape=(4, 8, 8))
    h = n.relu(norm(n, n.qdq("x", "in")))
    assert found(n.model(n.conv(n.qdq(h, "a"), ins=4)), "tensorrt") == set()


def test_shapes_may_be_64_bit() -> None:
    n = trt()
    x = n.qdq("x", "in")
    shape = n.const("shape", np.array([0, 3, 64], np.int64))
    assert found(n.model(n.node("Reshape", [x, shape], "reshape"), rank=3), "tensorrt") == set()


def test_large_initializers_and_unknown_domains_do_not_disturb() -> None:
    n = ort()
    x = n.node("Anything", ["x"], "extra", domain="some.where")
    model = one_conv(n, n.qdq(x, "in", dtype=np.int8, zero=0), outs=64)
    assert found(model, "onnxruntime") == {"E6"}


@pytest.mark.parametrize(
    ("text", "message"), [(b"", "onnx|ONNX"), (b"not a model at all", "onnx|ONNX")], ids=["empty", "text"]
)
def test_what_is_no_model_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "m.onnx").write_bytes(text)
    with pytest.raises(ArtefactError, match=message):
        check_file(tmp_path / "m.onnx", "tensorrt")


def test_unknown_targets_are_said_before_the_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="Did you mean 'tensorrt'"):
        check_file(tmp_path / "absent.onnx", "tensort")


def test_a_float_model_has_no_errors() -> None:
    n = trt()
    weight = n.const("w", n.rng.normal(size=(4, 3, 3, 3)).astype(np.float32))
    model = n.model(n.relu(n.conv("x", weight=weight)))
    assert check_model(model, "onnxruntime").ok
    assert found(model, "onnxruntime") == {"O1", "W19"}


# --- ONNX Runtime's own word ------------------------------------------------------------------------------------------

# Rules about something else than whether a layer is in float, with what they are about instead.
OTHER_EFFECT = {
    "O9": "the pooling, which is no layer, is float",
    "O10": "the pooling, which is no layer, is float",
    "O15": "integer, but with uint8 weights",
    "O16": "the operator, which is no layer, is float",
    "O17": "integer; sums saturate on processors that are not at hand",
    "O18": "integer; additions round otherwise on processors that are not at hand",
}
ORT_CASES = [
    pytest.param(item, id=f"{item.rule}-{item.name}")
    for item in FIXTURES
    if item.rule.startswith("O") and item.rule not in ("O17", "O18")
]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the rules are those of x86 kernels")
@pytest.mark.parametrize("case", ORT_CASES)
def test_onnxruntime_agrees(case: Fixture, tmp_path: Path) -> None:
    for bad in (True, False):
        onnx.save(case.make(bad), str(tmp_path / f"{bad}.onnx"))
    neighbour = realised_precision(tmp_path / "False.onnx")
    # Split itself only copies; a pool on the graph's own Q/DQ pair has no layer at all.
    assert neighbour.float_layers == 0
    assert {op for op, _ in neighbour.float_ops} <= {"Split"}
    broken = realised_precision(tmp_path / "True.onnx")
    if case.rule == "O15":
        assert broken.float_layers == 0
        assert _stored_types(case.make(True)) - _stored_types(case.make(False)) == {TensorProto.UINT8}
    elif case.rule in OTHER_EFFECT:
        assert broken.float_layers == 0
        assert broken.float_ops
    else:
        assert broken.float_layers > 0
        named = {p.node for p in check_file(tmp_path / "True.onnx", case.target).problems}
        assert named == {layer.name for layer in broken.layers if layer.precision == "float"}


def _stored_types(model: onnx.ModelProto) -> set[int]:
    return {tensor.data_type for tensor in model.graph.initializer if numpy_helper.to_array(tensor).ndim == 4}


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime-avx2", "onnxruntime-arm"])
def test_bias_scales_that_nodes_make_are_read_and_rounding_is_none(target: str, tmp_path: Path) -> None:
    n = ort()
    rounded = np.float32(0.02) * np.float32(1 + 2e-7)
    codes = {"weights": {"range": (-63, 63)}}
    model = one_conv(n, n.qdq("x", "in", scale=rounded), **codes)
    assert found(model, target) == set()
    n = ort()
    model = one_conv(n, n.qdq("x", "in"), bias=n.bias("conv", 4, input_scale=0.05), **codes)
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name.endswith("scale")]:
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], f"made {tensor.name}", value=tensor))
    assert found(model, target) == {"E11", "W18"}
    problem = next(problem for problem in check_model(model, target).errors)
    assert problem.node == "conv"
    assert "1.28" in problem.message
    onnx.save(model, tmp_path / "model.onnx")
    (layer,) = realised_precision(tmp_path / "model.onnx").layers
    assert layer.precision == "float"
    assert "bias" in layer.detail


# --- this project's own files -----------------------------------------------------------------------------------------

# What a network's own construction leaves behind, whoever exports it.
KNOWN = {
    ("hard_gate", "onnxruntime"): {"O16"},  # HardSigmoid has no integer kernel.
    ("channels_last", "onnxruntime"): {"O16"},  # Neither has GELU.
    ("input_transform", "onnxruntime"): {"W17"},  # The exporter drops an addition of 0 and keeps the pair behind it.
}
CLEAN = [
    pytest.param(name, target, bits, marks=() if fast and bits == "w4a4" else SLOW)
    for name in TOYS
    for target in ("onnxruntime", "tensorrt")
    for fast in ((name, target) == ("residual", "onnxruntime"),)
    for bits in ("w8a8", "w4a4")
]


@pytest.mark.parametrize(("name", "target", "bits"), CLEAN)
def test_exported_files_are_clean(
    exported: Callable[..., tuple[object, Path]], name: str, target: str, bits: str
) -> None:
    problems = check_file(exported(name, bits, target)[1], target).problems
    assert {problem.rule for problem in problems} <= KNOWN.get((name, target), set()), problems


# --- files of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize("parameter", ["in.scale", "in.zero"])
def test_parameters_that_the_caller_gives_are_errors_everywhere(parameter: str, target: str) -> None:
    n = trt()
    model = one_conv(n, n.qdq("x", "in"))
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == parameter)
    model.graph.input.append(helper.make_tensor_value_info(parameter, stored.data_type, []))
    model.graph.initializer.remove(stored)
    said = " ".join(problem.message for problem in check_model(model, target).errors)
    assert repr(parameter) in said


def test_operators_that_onnx_does_not_have() -> None:
    n = trt()
    model = n.model(n.node("Fooly", [n.conv(n.qdq("x", "in"))], "foo"))
    assert [p.message for p in check_model(model, "onnxruntime").errors] == ["ONNX has no operator Fooly in opset 17"]


def test_openvino_lacks_operators_of_quantize_static() -> None:
    n = ort()
    model = n.model(n.node("QLinearGlobalAveragePool", [n.conv(n.qdq("x", "in"))], "pool", domain="com.microsoft"))
    assert "E7" in found(model, "openvino")
    assert "E7" not in found(model, "onnxruntime")


def test_a_scale_that_holds_text() -> None:
    n = trt()
    model = one_conv(n, n.qdq("x", "in"))
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "in.scale")
    scale.CopyFrom(helper.make_tensor("in.scale", TensorProto.STRING, [], [b"a"]))
    assert "its scale is string" in " ".join(p.message for p in check_model(model, "onnxruntime").errors)


def test_pairs_of_its_own_for_each_reader_are_one_to_onnxruntime(tmp_path: Path) -> None:
    n = ort()
    h = n.relu(n.conv(n.qdq("x", "in"), "c1"))
    first = n.qdq(h, "a")
    params = ["a.scale", "a.zero"]
    second = n.node("DequantizeLinear", [n.node("QuantizeLinear", [h, *params], "b.Q"), *params], "b.DQ")
    pair = n.node("Add", [n.qdq(n.conv(first, "c2", 4, 4), "c"), second], "add")
    onnx.save(n.model(n.qdq(pair, "out")), str(tmp_path / "m.onnx"))
    assert realised_precision(tmp_path / "m.onnx").float_layers == 0
    assert check_file(tmp_path / "m.onnx", "onnxruntime").problems == ()


def test_weights_with_a_zero_point_are_float_in_convolutions_of_openvino_alone(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install 'dfqkit[openvino]'")
    n = ort()
    h = n.qdq(n.relu(n.conv(n.qdq("x", "in"), weights={"dtype": U8, "axis": None})), "a")
    h = n.qdq(n.node("Flatten", [n.node("GlobalAveragePool", [h], "pool")], "flat"), "b")
    model = n.model(n.gemm(h, weights={"dtype": U8, "axis": None}), rank=2)
    onnx.save(model, str(tmp_path / "m.onnx"))
    layers = realised_precision(tmp_path / "m.onnx", "openvino").layers
    in_float = {layer.name for layer in layers if layer.precision == "float"}
    assert in_float == {"conv"}
    assert {problem.node for problem in check_model(model, "openvino").problems} == in_float


def test_a_reshaped_weight_has_no_axis_to_judge() -> None:
    n = trt()
    weight = n.weight("w", (4, 3, 3, 3), axis=1)
    shape = n.const("shape", np.array([4, 3, 3, 3], np.int64))
    model = n.model(n.conv(n.qdq("x", "in"), weight=n.node("Reshape", [weight, shape], "reshape")))
    assert "W5" not in found(model, "tensorrt")


def test_the_reason_is_told_where_initializers_are_inputs(tmp_path: Path) -> None:
    n = ort()
    model = n.model(n.qdq(n.relu(n.conv(n.qdq("x", "in"))), "out"))
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, str(tmp_path / "m.onnx"))
    (layer,) = realised_precision(tmp_path / "m.onnx").layers
    assert layer.precision == "float"
    assert "is listed as an input of the graph too" in layer.detail


@pytest.mark.parametrize(("opset", "expected"), [(10, False), (12, True)])
def test_codes_are_clipped_from_opset_12_on(opset: int, expected: bool) -> None:
    n = trt()
    weight = n.weight("w", (4, 3, 3, 3), axis=None)
    h = n.relu(n.conv(n.qdq("x", "in", zero=0), weight=weight))
    problems = check_model(n.model(n.qdq(h, "out", zero=0), opset=opset, ir=5), "onnxruntime").problems
    assert {(p.rule, p.fixable) for p in problems} == {("O5", expected)}
