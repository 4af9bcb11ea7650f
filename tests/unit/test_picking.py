"""Files that end in the suppression of boxes: cut in front of it, quantized, and whole again, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import dfqkit
from dfqkit.cli import main
from dfqkit.students.capture import float_graph
from dfqkit.students.onnx_file import float_model
from dfqkit.students.onnx_tail import joined
from dfqkit.teacher.load import load_teacher
from dfqkit.teacher.onnx_graph.importing import import_onnx
from dfqkit_export.errors import TeacherError
from dfqkit_export.sentinel import normalized
from dfqkit_export.tasks.detection import Detection
from tests import _detector_toy
from tests._detector_toy import SPEC
from tests._messages import raises_naming
from tests._onnx_files import op

_STORED: dict[str, Any] = {
    "most": np.array([20], np.int64), "overlap": np.array([0.55], np.float32), "least": np.array([0.4], np.float32),
    "image_box": np.array([0, 2], np.int64), "image_class_box": np.array([0, 1, 2], np.int64),
    "the_class": np.array([1], np.int64), "the_box": np.array([2], np.int64), "last": np.array([1], np.int64),
    "first": np.array([0], np.int64),
}  # fmt: skip
_SUPPRESS = op("NonMaxSuppression", "boxes by_class most overlap least", "selected", name="nms")
#: By name: nodes behind boxes (n, 80, 4) and scores (n, 80, 3), outputs in order, and whether it is for one image.
TAILS: dict[str, tuple[list[onnx.NodeProto], tuple[str, ...], bool]] = {
    "indices": ([op("Transpose", "scores", "by_class", perm=[0, 2, 1]), _SUPPRESS], ("selected", "boxes"), False),
    "gathered": (
        [
            op("Transpose", "scores", "by_class", perm=[0, 2, 1]),
            _SUPPRESS,
            op("Gather", "selected image_box", "at", axis=1),
            op("GatherND", "boxes at", "found_boxes"),
            op("GatherND", "by_class selected", "found_scores"),
            op("Gather", "selected the_class", "kinds", axis=1),
            op("Squeeze", "kinds last", "found_kinds"),
        ],
        ("found_boxes", "found_scores", "found_kinds"),
        False,
    ),
    "of one image": (
        [
            op("ReduceMax", "scores", "best", axes=[2], keepdims=0),
            op("ArgMax", "scores", "kind", axis=2, keepdims=0),
            op("Unsqueeze", "best last", "by_class"),
            _SUPPRESS,
            op("Gather", "selected the_box", "column", axis=1),
            op("Squeeze", "column last", "at"),
            op("Squeeze", "boxes first", "of_one_boxes"),
            op("Squeeze", "kind first", "of_one_kinds"),
            op("Gather", "of_one_boxes at", "found_boxes"),
            op("Gather", "of_one_kinds at", "found_kinds"),
        ],
        ("found_boxes", "found_kinds"),
        True,
    ),
    "scores by class": ([_SUPPRESS], ("selected",), False),
}


def ending_in(name: str, path: Path) -> Path:
    nodes, outputs, alone = TAILS[name]
    _detector_toy.write_float(path)
    model = onnx.load(path)
    if name == "scores by class":
        last = next(node for node in model.graph.node if "scores" in node.output)
        last.output[0] = "by_position"
        model.graph.node.append(op("Transpose", "by_position", "turned", perm=[0, 2, 1]))
        model.graph.node.append(op("Relu", "turned", "by_class"))
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in _STORED.items())
    known = {value.name: value for value in model.graph.output}
    whole = {"selected": 3}
    kinds = {"selected": TensorProto.INT64, "found_kinds": TensorProto.INT64}
    del model.graph.output[:]
    for each in outputs:
        sizes = ["found", whole[each]] if each in whole else ["found", 4] if each == "found_boxes" else ["found"]
        made = helper.make_tensor_value_info(each, kinds.get(each, TensorProto.FLOAT), sizes)
        model.graph.output.append(known.get(each, made))
    if alone:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def run(model: Path | onnx.ModelProto, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))


def images(n: int) -> NDArray[np.float32]:
    return normalized(_detector_toy.scenes(n, 11)[0], SPEC)


@pytest.mark.parametrize("name", ["indices", "of one image", "scores by class"])
def test_a_file_is_cut_in_front_of_its_suppression_and_whole_again_behind_the_network(
    name: str, tmp_path: Path
) -> None:
    path = ending_in(name, tmp_path / "whole.onnx")
    outputs, alone = TAILS[name][1:]
    teacher = load_teacher(f"onnx:{path}", SPEC)
    assert isinstance(teacher.task, Detection)
    assert teacher.task.names == ("raw_boxes", "raw_scores")
    assert (teacher.task.form, teacher.task.unit, round(teacher.task.nms, 4)) == ("corners", "pixels", 0.55)
    assert (teacher.task.scores_are, teacher.task.count) == ("probabilities", 3)
    model = float_model(float_graph(teacher.model, SPEC, teacher.task, teacher.names))
    extra = [each for each in teacher.task.names if each not in outputs]
    assert [value.name for value in model.graph.output] == [*outputs, *extra], "the file's own first, in its order"
    for one in images(6)[:, None]:
        wanted, found = run(path, one), run(model, one)
        for each in outputs:
            assert wanted[each].dtype == found[each].dtype
            np.testing.assert_allclose(found[each], wanted[each], rtol=1e-4, atol=1e-3)
    several = run(model, images(3))
    assert len(several["raw_boxes"]) == 3
    if alone:  # the first image's, as far as the file's tail goes
        np.testing.assert_array_equal(several["found_boxes"], run(model, images(3)[:1])["found_boxes"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gathered", "of one image"])
def test_the_int8_file_gives_what_the_same_suppression_makes_of_its_boxes(name: str, tmp_path: Path) -> None:
    path = ending_in(name, tmp_path / "whole.onnx")
    counts = {"calibration": 48, "held_out": 16, "grading": 32, "batch": 16}
    options = {"bank": counts, "validate": {"latency_repeats": 0}}
    done = dfqkit.quantize(
        f"onnx:{path}", image=SPEC, method="procedural", out=tmp_path / "run", options=options, task="detection"
    )
    outputs, model = TAILS[name][1], onnx.load(done.model)
    assert [value.name for value in model.graph.output] == [*outputs, "raw_boxes", "raw_scores"]
    tail = import_onnx(path, SPEC).names.tail
    assert tail is not None
    empty = helper.make_graph(
        [op("Identity", f"{x}_in", x) for x in ("raw_boxes", "raw_scores")], "empty",
        [helper.make_tensor_value_info(f"raw_{x}_in", 1, ["N", 80, c]) for x, c in (("boxes", 4), ("scores", 3))],
        [helper.make_tensor_value_info(f"raw_{x}", 1, ["N", 80, c]) for x, c in (("boxes", 4), ("scores", 3))],
    )  # fmt: skip
    alone = joined(helper.make_model(empty, opset_imports=model.opset_import, ir_version=8), tail)
    session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    same, boxes = [], 0
    for one in images(12)[:, None]:
        found = run(done.model, one)
        given = {f"{each}_in": found[each] for each in ("raw_boxes", "raw_scores")}
        for each, value in zip(outputs, session.run(list(outputs), given), strict=True):
            np.testing.assert_array_equal(found[each], value)
        wanted = run(path, one)
        boxes += len(found["found_boxes"])
        same.append(wanted["found_boxes"].shape == found["found_boxes"].shape)
    assert boxes > 6
    assert np.mean(same) > 0.5
    (ap50,) = [m.value for m in done.report.metrics if (m.name, m.subject) == ("ap50", "onnxruntime")]
    assert ap50 is not None
    assert ap50 > 80
    bundle, baseline = tmp_path / "bundle", tmp_path / "baseline.json"
    assert main(["bundle", str(tmp_path / "run"), "--out", str(bundle)]) == 0
    assert main(["check", str(bundle), "--baseline", str(baseline), "--update", "--reason", "a toy"]) in (0, 1)
    assert main(["check", str(bundle), "--baseline", str(baseline), "--allow-not-judged"]) == 0


def test_what_cannot_be_cut_is_refused_by_name(tmp_path: Path) -> None:
    path = ending_in("gathered", tmp_path / "whole.onnx")
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 2), np.float32), "w"))
    model.graph.node.append(op("Gemm", "found_boxes w", "late", name="late"))
    model.graph.output.append(helper.make_tensor_value_info("late", 1, None))
    onnx.save(model, tmp_path / "layer.onnx")
    with raises_naming(TeacherError, "nms", "late", "extract_model"):
        load_teacher(f"onnx:{tmp_path / 'layer.onnx'}", SPEC)
    with raises_naming(TeacherError, "raw_boxes", "NonMaxSuppression"):
        teacher = load_teacher(f"onnx:{path}", SPEC, task=dfqkit_task("raw_scores"))
        float_model(float_graph(teacher.model, SPEC, teacher.task, teacher.names))


def dfqkit_task(name: str) -> Any:
    from dfqkit_export.tasks import task_of

    return task_of({"name": "generic", "names": [name]})
