"""Scales and zero points that no runtime may see, wherever a file keeps them; large tensors that stay in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfqkit.cli import main
from dfqkit_export.backends.onnxruntime import session
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import ArtefactError
from dfqkit_export.measure.activations import layer_outputs
from dfqkit_export.onnxfile import skeleton
from dfqkit_export.onnxfile.model import load_onnx
from dfqkit_export.onnxfile.parameters import check_parameters
from dfqkit_export.onnxfile.skeleton import values_of
from tests._messages import names
from tests.unit.export._bundles import codes, write_net
from tests.unit.export.conftest import QdqBuilder

BAD = [0.0, -0.5, np.inf, np.nan]
Edit = Callable[[onnx.ModelProto, np.ndarray], None]


def net(path: Path) -> onnx.ModelProto:
    return onnx.load(write_net(QdqBuilder, path))


def as_initializer(model: onnx.ModelProto, scale: np.ndarray) -> None:
    put(model, numpy_helper.from_array(scale, "act1.scale"))


def put(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    old = next(item for item in model.graph.initializer if item.name == tensor.name)
    old.CopyFrom(tensor)


def out_of(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Let nodes make the scale of act1."""
    kept = [item for item in model.graph.initializer if item.name != "act1.scale"]
    old = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend([*nodes, *old])


def as_constant(model: onnx.ModelProto, scale: np.ndarray) -> None:
    out_of(model, [helper.make_node("Constant", [], ["act1.scale"], value=numpy_helper.from_array(scale))])


def as_float(model: onnx.ModelProto, scale: np.ndarray) -> None:
    out_of(model, [helper.make_node("Constant", [], ["act1.scale"], value_float=float(scale))])


def behind_moves(model: onnx.ModelProto, scale: np.ndarray) -> None:
    stored = numpy_helper.from_array(scale.astype(np.float64).reshape(1, 1))
    out_of(
        model,
        [
            helper.make_node("Constant", [], ["far"], value=stored),
            helper.make_node("Cast", ["far"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Squeeze", ["cast"], ["act1.scale"]),
        ],
    )


def in_a_function(model: onnx.ModelProto, scale: np.ndarray) -> None:
    """Let a function make the scale of an attribute of its call, and another one quantize with it."""
    maker = helper.make_node("Constant", [], ["s"])
    maker.attribute.add(name="value", ref_attr_name="scale", type=onnx.AttributeProto.TENSOR)
    opset = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Identity", ["s"], ["t"], name="i")]
    model.functions.append(helper.make_function("own", "Scale", [], ["t"], [maker, *body], opset, ["scale"]))
    quantize = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="inside")
    model.functions.append(helper.make_function("own", "Quantize", ["x", "s", "z"], ["q"], [quantize], opset))
    model.opset_import.append(helper.make_opsetid("own", 1))
    out_of(
        model,
        [helper.make_node("Scale", [], ["act1.scale"], domain="own", scale=numpy_helper.from_array(scale))],
    )
    node = next(item for item in model.graph.node if item.name == "act1.Q")
    node.op_type, node.domain = "Quantize", "own"
    del node.attribute[:]


def in_a_branch(model: onnx.ModelProto, scale: np.ndarray) -> None:
    inner = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "input.zero_point"], ["q"], name="inside"),
            helper.make_node("DequantizeLinear", ["q", "s", "input.zero_point"], ["d"], name="behind"),
        ],
        "branch", [], [helper.make_tensor_value_info("d", 1, None)], [numpy_helper.from_array(scale, "s")],
    )  # fmt: skip
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    node = helper.make_node("If", ["yes"], ["unused"], then_branch=inner, else_branch=inner, name="if")
    model.graph.node.insert(0, node)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("edit", [as_initializer, as_constant, as_float, behind_moves, in_a_function, in_a_branch])
def test_a_scale_that_is_none_is_refused_before_a_runtime_sees_it(
    edit: Edit, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"
    model = net(path)
    edit(model, np.array(0.1, np.float32))
    onnx.save(model, path)
    assert OrtSession(path).predict(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 10)  # the same form with a scale
    model = net(path)
    edit(model, np.array(value, np.float32))
    onnx.save(model, path)
    monkeypatch.setattr(session, "_inference_session", lambda *_: pytest.fail("the runtime has seen it"))
    with pytest.raises(ArtefactError) as caught:
        OrtSession(path)
    names(str(caught.value), "scale", f"{value:g}", "above 0")


OPERATORS: dict[str, tuple[int, str]] = {
    "QLinearConv": (9, ""), "QLinearMatMul": (8, ""), "QLinearAdd": (8, "com.microsoft"),
    "QLinearMul": (8, "com.microsoft"), "QGemm": (9, "com.microsoft"), "QLinearSigmoid": (5, "com.microsoft"),
    "QLinearConcat": (8, "com.microsoft"), "MatMulIntegerToFloat": (7, "com.microsoft"),
    "DynamicQuantizeMatMul": (5, "com.microsoft"), "QLinearGlobalAveragePool": (5, "com.microsoft"),
    "QuantizeLinear": (3, "com.microsoft"), "DequantizeLinear": (3, "com.microsoft"),
    "QLinearWhere": (9, "com.microsoft"),
}  # fmt: skip
SCALES = {
    "QLinearConv": (1, 4, 6), "QLinearMatMul": (1, 4, 6), "QLinearAdd": (1, 4, 6), "QLinearMul": (1, 4, 6),
    "QGemm": (1, 4, 7), "QLinearSigmoid": (1, 3), "QLinearConcat": (0, 3, 6), "MatMulIntegerToFloat": (2, 3),
    "DynamicQuantizeMatMul": (2,), "QLinearGlobalAveragePool": (1, 3), "QuantizeLinear": (1,),
    "DequantizeLinear": (1,), "QLinearWhere": (2, 5, 7),
}  # fmt: skip


@pytest.mark.parametrize(("op", "place"), [(op, place) for op, places in SCALES.items() for place in places])
def test_the_scales_of_every_operator_are_looked_at(op: str, place: int) -> None:
    count, domain = OPERATORS[op]
    scales = {f"i{at}": np.array(0.5, np.float32) for at in SCALES[op]}
    others = [helper.make_tensor_value_info(f"i{at}", 1, None) for at in range(count) if f"i{at}" not in scales]
    node = helper.make_node(op, [f"i{at}" for at in range(count)], ["y"], name="it", domain=domain)

    def model(values: dict[str, np.ndarray]) -> onnx.ModelProto:
        stored = [numpy_helper.from_array(value, name) for name, value in values.items()]
        output = helper.make_tensor_value_info("y", 1, None)
        return helper.make_model(helper.make_graph([node], "g", others, [output], stored))

    check_parameters(model(scales), Path("m.onnx"))
    for wrong in (np.array(0.0, np.float32), np.zeros(0, np.float32), np.array(1, np.int32)):
        with pytest.raises(ArtefactError, match=r"m\.onnx.*'it'"):
            check_parameters(model(scales | {f"i{place}": wrong}), Path("m.onnx"))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("conv1.weight_scale", np.full(7, 0.1, np.float32), "7 scale"),
        ("conv1.weight_zero_point", np.zeros(3, np.int8), "3 zero point"),
        ("conv1.weight_scale", np.array([*np.full(7, 0.1), 0], np.float32), "number 7 of 8"),
        ("act1.scale", np.zeros((0,), np.float32), "no number"),
        ("act1.zero_point", np.zeros((2,), np.uint8), "2 zero point"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, value: Any, told: str, tmp_path: Path) -> None:
    model = net(tmp_path / "net.onnx")
    put(model, numpy_helper.from_array(value, name))
    with pytest.raises(ArtefactError, match=told):
        check_parameters(model, tmp_path / "net.onnx")


def test_functions_that_call_themselves_end() -> None:
    node = helper.make_node("Own", ["x"], ["y"], domain="own")
    opset = [helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Own", ["x"], ["y"], [node], opset)
    ends = [helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]), functions=[function])
    with pytest.raises(ArtefactError, match="call themselves"):
        check_parameters(model, Path("m.onnx"))


def test_functions_that_multiply_end() -> None:
    opset = [helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function(
            "own", f"F{n}", ["x"], ["y"], [helper.make_node(f"F{n + 1}", ["x"], ["y"], domain="own")] * 30, opset
        )
        for n in range(12)
    ]
    ends = [helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    node = helper.make_node("F0", ["x"], ["y"], domain="own")
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]), functions=functions)
    with pytest.raises(ArtefactError, match="more than"):
        check_parameters(model, Path("m.onnx"))


@pytest.mark.parametrize("command", ["compare {0} {1}", "profile {0}", "inspect {0} --runtime openvino"])
def test_commands_say_what_is_wrong(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = net(tmp_path / "good.onnx")
    as_constant(model, np.array(0, np.float32))
    onnx.save(model, tmp_path / "bad.onnx")
    assert main(command.format(tmp_path / "bad.onnx", tmp_path / "good.onnx").split()) == 2
    names(capsys.readouterr().err, "bad.onnx", "scale 0")


class TestSkeleton:
    def test_tensors_that_stay_in_the_file_have_the_same_values(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = net(tmp_path / "net.onnx")
        halves = np.arange(64).astype(np.float16)
        model.graph.node.insert(0, helper.make_node("Constant", [], ["u"], value=numpy_helper.from_array(halves)))
        model.graph.initializer.append(helper.make_tensor("four", TensorProto.INT4, [33], list(range(-8, 8)) * 2 + [1]))
        onnx.save(model, tmp_path / "net.onnx")
        monkeypatch.setattr(skeleton, "LARGE", 17)
        lean = load_onnx(tmp_path / "net.onnx", weights=False)
        left = 0
        pairs = [(lean.graph.node[0].attribute[0].t, model.graph.node[0].attribute[0].t)]
        for ours, theirs in [*zip(lean.graph.initializer, model.graph.initializer, strict=True), *pairs]:
            left += ours.data_location == TensorProto.EXTERNAL
            assert (ours.name, ours.dims) == (theirs.name, theirs.dims)
            np.testing.assert_array_equal(values_of(ours), numpy_helper.to_array(theirs))
        assert left > 5
        assert lean.graph.node[3] == model.graph.node[3]

    def test_a_lean_session_computes_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_net(QdqBuilder, tmp_path / "net.onnx")
        images = codes(4).astype(np.float32) / 255
        expected = OrtSession(path).predict(images)
        monkeypatch.setattr(session, "_LARGE_FILE", 0)
        monkeypatch.setattr(skeleton, "LARGE", 200)
        np.testing.assert_array_equal(OrtSession(path, lean=True).predict(images), expected)

    def test_layers_seen_without_a_second_copy_of_the_file_are_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_net(QdqBuilder, tmp_path / "net.onnx")
        images = codes(4).astype(np.float32) / 255
        expected = {optimized: layer_outputs(path, images, optimized=optimized) for optimized in (True, False)}
        monkeypatch.setattr(session, "_LARGE_FILE", 0)
        monkeypatch.setattr(skeleton, "LARGE", 200)
        monkeypatch.setattr(onnx, "save", None)  # which would need the whole model
        for optimized, outputs in expected.items():
            found = layer_outputs(path, images, optimized=optimized, lean=True)
            assert list(found) == list(outputs)
            for name, values in outputs.items():
                np.testing.assert_array_equal(found[name], values)

    @pytest.mark.parametrize("keep", [1, 100, -100, -1])
    def test_what_is_cut_off_is_refused(self, keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(skeleton, "LARGE", 17)
        path = write_net(QdqBuilder, tmp_path / "net.onnx")
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ArtefactError, match="complete"):
            load_onnx(path, weights=False)
