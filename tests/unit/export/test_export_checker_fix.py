"""Repairs keep every number, which is proved here with other inputs than the repair's own proof uses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.checker import check_file, check_model, fix, fix_file
from dfqkit_export.checker.editing import Editor
from dfqkit_export.errors import ArtefactError, TargetError
from tests.unit.export._qdq_fixtures import FIXTURES, norm, one_conv
from tests.unit.export._qdq_models import Net, ort, trt

F32, I8, U8 = np.float32, np.int8, np.uint8


def signed_twin(n: Net) -> onnx.ModelProto:
    """Codes around 128, weights too: int8 around 0 with other labels."""
    return n.model(n.conv(n.qdq("x", "in", dtype=U8, zero=128), weights={"dtype": U8}))


def clipped_half(n: Net) -> onnx.ModelProto:
    h = n.qdq(n.relu(n.conv(n.qdq("x", "in"))), "mid", dtype=U8, zero=0, clip=(0, 100))
    return n.model(n.conv(h, "conv2", 4, 4))


def padded_residual(n: Net) -> onnx.ModelProto:
    x = n.qdq(n.relu(n.conv(n.qdq("x", "in"), "stem")), "a")
    pads = n.const("pads", np.array([0, 0, 0, 0, 0, 4, 0, 0], np.int64))
    main = n.conv(x, "conv", 4, 8)
    return n.model(n.relu(n.node("Add", [main, n.node("Pad", [x, pads], "pad")], "add"), "last"))


def flat_mean(n: Net) -> onnx.ModelProto:
    h = n.node("ReduceMean", [n.qdq("x", "in")], "mean", axes=[2, 3], keepdims=0)
    return n.model(n.qdq(h, "out"), rank=2)


def float_norm(n: Net) -> onnx.ModelProto:
    """A float stem in front of nothing but a pair of its own beside it."""
    weight = n.const("w", n.rng.normal(size=(4, 3, 3, 3)).astype(F32))
    stem = norm(n, n.conv("x", weight=weight))
    return n.model(n.node("Concat", [stem, n.qdq("x", "in")], "both", axis=1))


def tensor_norm(n: Net) -> onnx.ModelProto:
    return n.model(norm(n, n.conv(n.qdq("x", "in"), weights={"axis": None})))


def tensorrt_form(n: Net) -> onnx.ModelProto:
    """Four bits as for TensorRT: float Clip, int8, shared between two layers."""
    x = n.node("Clip", ["x", n.const("low", -0.16, F32), n.const("high", 0.14, F32)], "clip_x")
    x = n.qdq(x, "in", zero=0, dtype=I8)
    h = n.relu(n.conv(x, "conv1"))
    h = n.qdq(n.node("Clip", [h, n.const("none", 0, F32), n.const("top", 0.3, F32)], "clip"), "a", zero=0, dtype=I8)
    a = n.qdq(n.conv(h, "conv2", 4, 4), "b", zero=0, dtype=I8)
    b = n.qdq(n.conv(h, "conv3", 4, 4), "c", zero=0, dtype=I8)
    return n.model(n.qdq(n.node("Add", [a, b], "add"), "out", zero=0, dtype=I8))


def onnxruntime_form(n: Net) -> onnx.ModelProto:
    """The same idea as for ONNX Runtime: uint8 around 128 and, behind Relu, from 0 to 127; int32 biases."""
    h = n.qdq(n.relu(n.conv(n.qdq("x", "in", zero=128))), "a", zero=0, clip=(0, 127))
    return n.model(n.conv(h, "conv2", 4, 4))


def two_readers_behind_relu(n: Net) -> onnx.ModelProto:
    h = n.qdq(n.relu(n.conv(n.qdq("x", "in"))), "mid", zero=0, dtype=I8)
    a, b = n.qdq(n.conv(h, "c2", 4, 4), "a"), n.qdq(n.conv(h, "c3", 4, 4), "b")
    return n.model(n.qdq(n.node("Add", [a, b], "add"), "out"))


MORE: list[tuple[str, Callable[[Net], onnx.ModelProto], Net, str, set[str]]] = [
    ("signed_twin", signed_twin, trt(), "tensorrt", {"E1"}),
    ("signed_twin_rtx", signed_twin, trt(), "tensorrt-rtx", {"E1", "E2"}),
    ("clipped_half", clipped_half, trt(), "tensorrt-rtx", {"W2", "W9"}),
    ("padded_residual", padded_residual, trt(), "tensorrt", {"W8"}),
    ("flat_mean", flat_mean, ort(), "onnxruntime", {"O9", "O10"}),
    ("float_norm", float_norm, trt(), "tensorrt", {"W11"}),
    ("tensor_norm", tensor_norm, trt(), "tensorrt", {"W11"}),
    ("tensorrt_form", tensorrt_form, ort(), "onnxruntime", {"O5", "O6", "O12"}),
    ("onnxruntime_form", onnxruntime_form, ort(), "tensorrt", {"E1", "E4", "W9"}),
    ("two_readers", two_readers_behind_relu, ort(), "onnxruntime", {"O5"}),
]
CASES = [
    pytest.param(item.make(True), item.target, {item.rule}, id=f"{item.rule}-{item.name}")
    for item in FIXTURES
    if any(problem.fixable for problem in check_model(item.make(True), item.target).problems)
] + [pytest.param(make(net), target, rules, id=name) for name, make, net, target, rules in MORE]
ROUNDED = {"O9", "W11"}
# Stating the type shows that it is one that TensorRT misreads: the next problem, which has no repair.
SHOWS = {"W1": {"W2"}}


def run(path: Path, images: NDArray[Any]) -> NDArray[Any]:
    return OrtSession(path, threads=1, optimized=False).run(images)


def inputs(path: Path) -> NDArray[Any]:
    shape = [size if isinstance(size, int) else 8 for size in OrtSession(path).input_shape]
    rng = np.random.default_rng(77)
    return (rng.standard_normal(shape) * rng.choice([0.1, 1.0, 10.0], (shape[0], 1, 1, 1)[: len(shape)])).astype(F32)


@pytest.mark.parametrize(("model", "target", "rules"), CASES)
def test_a_repair_keeps_the_numbers(model: onnx.ModelProto, target: str, rules: set[str], tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(model, str(before))
    result = fix_file(before, target, after)
    assert {repaired.rule for repaired in result.applied} <= rules | {"W3", "O6", "O7", "W9"}
    assert {repaired.rule for repaired in result.applied} & rules
    left = {problem.rule for problem in result.remaining}
    assert left == set().union(*(SHOWS.get(rule, set()) for rule in rules))
    assert {problem.rule for problem in check_file(after, target).problems} == left
    onnx.checker.check_model(onnx.load(str(after)), full_check=True)
    images = inputs(before)
    expected, found = run(before, images), run(after, images)
    assert expected.std() > 0
    if rules & ROUNDED:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    else:
        assert result.exact
        np.testing.assert_array_equal(found, expected)
    assert result.exact == (not result.reason)
    assert json.loads(json.dumps(result.to_dict()))["exact"] == result.exact


@pytest.mark.parametrize(("model", "target", "rules"), [case for case in CASES if case.values[1] == "onnxruntime"])
def test_onnxruntime_runs_a_repaired_file_in_integers(
    model: onnx.ModelProto, target: str, rules: set[str], tmp_path: Path
) -> None:
    onnx.save(model, str(tmp_path / "before.onnx"))
    fix_file(tmp_path / "before.onnx", target, tmp_path / "after.onnx")
    realised = realised_precision(tmp_path / "after.onnx")
    assert realised.float_layers == 0
    # Split copies; the Clip in front of a model's first pair has no layer that it could disappear into.
    assert {op for op, _ in realised.float_ops} <= {"Split", "Clip"}


def test_a_clean_file_is_copied(tmp_path: Path) -> None:
    n = trt()
    onnx.save(one_conv(n, n.qdq("x", "in")), str(tmp_path / "m.onnx"))
    result = fix_file(tmp_path / "m.onnx", "tensorrt", tmp_path / "out.onnx")
    assert (result.applied, result.remaining, result.images, result.ok) == ((), (), 0, True)
    assert onnx.load(str(tmp_path / "out.onnx")) == onnx.load(str(tmp_path / "m.onnx"))


def test_the_original_is_left_alone_and_shared_parameters_too(tmp_path: Path) -> None:
    # Two pairs share one scale of rank 1, of which only one is per tensor on an activation.
    n = trt(shape=(1, 8, 8))
    x = n.qdq("x", "in", scale=[0.02])
    weight = n.weight("w", (1, 1, 3, 3), scale=[0.02])
    n.nodes[-1].input[1] = "in.scale"
    onnx.save(n.model(n.conv(x, weight=weight, ins=1, outs=1)), str(tmp_path / "m.onnx"))
    bytes_before = (tmp_path / "m.onnx").read_bytes()
    result = fix_file(tmp_path / "m.onnx", "tensorrt", tmp_path / "out.onnx")
    assert result.remaining == ()
    assert [repaired.node for repaired in result.applied] == ["in.Q", "in.DQ"]
    assert (tmp_path / "m.onnx").read_bytes() == bytes_before


def test_what_cannot_be_repaired_is_listed(tmp_path: Path) -> None:
    n = trt()
    x = n.qdq("x", "in", zero=3)
    n.style = "ort"
    onnx.save(n.model(n.conv(x)), str(tmp_path / "m.onnx"))
    result = fix_file(tmp_path / "m.onnx", "tensorrt", tmp_path / "out.onnx")
    assert [repaired.rule for repaired in result.applied] == ["E4"]
    assert {problem.rule for problem in result.remaining} == {"E2"}
    assert not result.ok
    assert not any(problem.fixable for problem in result.remaining)


def test_a_norm_whose_fold_moves_codes_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = trt()
    h = n.qdq(norm(n, n.conv(n.qdq("x", "in"))), "mid")
    onnx.save(n.model(n.conv(h, "conv2", 4, 4)), str(tmp_path / "m.onnx"))
    monkeypatch.setattr(fix, "ULPS", -1)  # No difference is small enough, as if a code had moved.
    result = fix_file(tmp_path / "m.onnx", "tensorrt", tmp_path / "out.onnx")
    assert result.applied == ()
    assert {problem.rule for problem in result.remaining} == {"W11"}


def test_a_repair_that_changes_numbers_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(editor: Editor, node: str) -> str:
        found = editor.node(node)
        assert found is not None
        found.input[1] = editor.store("spoiled", np.array(0.5, F32))
        return "spoiled the scale"

    n = trt()
    onnx.save(one_conv(n, n.qdq("x", "in", scale=[0.02])), str(tmp_path / "m.onnx"))
    monkeypatch.setattr(fix, "EXACT", {"W3": spoil})
    with pytest.raises(ArtefactError, match=r"differ by up to .*W3.*nothing was written"):
        fix_file(tmp_path / "m.onnx", "tensorrt", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_what_cannot_run_cannot_be_proved(tmp_path: Path) -> None:
    n = trt()
    x = n.node("Quant", ["x"], "extra", domain="qonnx")
    onnx.save(one_conv(n, n.qdq(x, "in", scale=[0.02])), str(tmp_path / "m.onnx"))
    with pytest.raises(ArtefactError, match="not accepted by ONNX Runtime"):
        fix_file(tmp_path / "m.onnx", "tensorrt", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_unknown_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="Allowed"):
        fix_file(tmp_path / "absent.onnx", "tpu", tmp_path / "out.onnx")


def test_outputs_need_no_shape(tmp_path: Path) -> None:
    n = trt()
    model = one_conv(n, n.qdq("x", "in", scale=[0.02]))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, str(tmp_path / "m.onnx"))
    result = fix_file(tmp_path / "m.onnx", "tensorrt", tmp_path / "out.onnx")
    assert {repaired.rule for repaired in result.applied} == {"W3"}
    assert result.exact


def test_what_a_branch_reads_stays(tmp_path: Path) -> None:
    n = trt()
    conv = n.conv(n.qdq("x", "in"))
    last = norm(n, conv)
    n.const("above", np.float32(0.1))
    n.node("Greater", [n.node("ReduceMax", ["x"], "largest", keepdims=0), "above"], "cond", outputs=["cond"])
    branches = {}
    for key, op, tensor in (("then_branch", "Neg", conv), ("else_branch", "Abs", last)):
        value = onnx.helper.make_tensor_value_info(f"{op}_out", onnx.TensorProto.FLOAT, None)
        branches[key] = onnx.helper.make_graph([onnx.helper.make_node(op, [tensor], [value.name])], op, [], [value])
    onnx.save(n.model(n.node("If", ["cond"], "if", **branches)), str(tmp_path / "m.onnx"))
    result = fix_file(tmp_path / "m.onnx", "tensorrt", tmp_path / "out.onnx")
    assert "W11" not in {repaired.rule for repaired in result.applied}
    assert "W11" not in {problem.rule for problem in result.remaining}


@pytest.mark.parametrize(("batch", "images"), [("N", 4), (1, 4), (3, 3), (7, 7)])
def test_the_number_of_images_is_that_of_those_it_ran(batch: Any, images: int, tmp_path: Path) -> None:
    n = trt()
    n.batch = batch
    onnx.save(one_conv(n, n.qdq("x", "in", scale=[0.02])), str(tmp_path / "m.onnx"))
    assert fix_file(tmp_path / "m.onnx", "tensorrt", tmp_path / "out.onnx").images == images


def test_a_norm_with_a_negative_variance_stays(tmp_path: Path) -> None:
    n = trt()
    model = n.model(norm(n, n.conv(n.qdq("x", "in"))))
    (node,) = (node for node in model.graph.node if node.op_type == "BatchNormalization")
    variance = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[4])
    variance.CopyFrom(numpy_helper.from_array(np.full(4, -1, np.float32), variance.name))
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert fix_file(tmp_path / "m.onnx", "tensorrt", tmp_path / "out.onnx").applied == ()


def test_nothing_is_proved_with_scales_that_are_no_numbers(tmp_path: Path) -> None:
    n = trt()
    h = n.relu(n.conv(n.qdq("x", "in", zero=0), weights={"scale": [np.nan, 0.01, 0.01, 0.01]}))
    onnx.save(n.model(n.qdq(h, "out", zero=0)), str(tmp_path / "m.onnx"))
    with pytest.raises(ArtefactError, match=r"conv\.w\.DQ.*scale nan"):
        fix_file(tmp_path / "m.onnx", "onnxruntime", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_repair_that_makes_no_model_is_said_to_be_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(editor: Editor, node: str) -> str:
        editor.model.graph.node[0].op_type = "Fooly"
        return "broke it"

    n = trt()
    onnx.save(one_conv(n, n.qdq("x", "in", scale=[0.02])), str(tmp_path / "m.onnx"))
    monkeypatch.setitem(fix.EXACT, "W3", breaks)
    with pytest.raises(ArtefactError, match=r"The repaired file \(repairs: W3\) does not run; nothing was written"):
        fix_file(tmp_path / "m.onnx", "tensorrt", tmp_path / "out.onnx")
