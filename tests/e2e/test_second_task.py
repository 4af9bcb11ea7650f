"""A task that no line of the packages knows goes from recipe to gate: two outputs, no classes, nothing to compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dfqkit_export.images.stored import StoredBank
from dfqkit_export.report import Report
from tests._shared import once
from tests._toy_task import NAME, SCENE_ERROR

ROOT = Path(__file__).parents[2]
OUTPUTS = {"map": (1, 12, 12), "pose": (4,)}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(path: Path) -> None:
        path.mkdir()
        places = [str(ROOT), str(ROOT / "export"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        command = [sys.executable, "-m", "tests._toy_flow", str(path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "second_task", make)


@pytest.fixture(scope="module")
def said(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "said.json").read_text(encoding="utf-8"))
    return found


def test_every_command_ends_as_it_should(said: dict[str, Any]) -> None:
    codes = {name: code for name, (code, _, _) in said.items()}
    expected = dict.fromkeys(codes, 0) | {"classes": 2, "worse": 1}
    assert codes == expected, {name: said[name] for name in codes if codes[name] != expected[name]}


def test_a_method_that_makes_images_of_classes_is_refused_with_those_that_would_do(said: dict[str, Any]) -> None:
    _, _, message = said["classes"]
    assert all(word in message for word in ("'dfq'", "classes", "zeroq", "noise"))
    facts = json.loads(said["inspect"][1])
    assert facts["provides"] == ["batchnorm"]
    assert "classes" in facts["synthesizers"]["dfq"]
    assert facts["synthesizers"]["zeroq"] == []


def test_both_outputs_are_in_the_files_by_name(out: Path) -> None:
    for name in ("model.onnx", "teacher.onnx"):
        model = onnx.load(out / "run" / name)
        sizes = {
            value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim[1:])
            for value in model.graph.output
        }
        assert sizes == OUTPUTS
        assert json.loads({entry.key: entry.value for entry in model.metadata_props}["dfqkit.task"]) == {"name": NAME}


def test_the_layers_in_front_of_both_outputs_are_compared_and_the_map_is_given_in_codes(out: Path) -> None:
    report = Report.from_json((out / "run" / "report.json").read_text(encoding="utf-8"))
    rows = {row.name: row for row in report.layers}
    assert set(rows) == {"first", "second", "pose", "depth"}
    assert all(row.sqnr_student_db is not None for row in rows.values())
    produced = {name: node for node in onnx.load(out / "run" / "model.onnx").graph.node for name in node.output}
    assert [produced[name].op_type for name in OUTPUTS] == ["DequantizeLinear", "Gemm"]


def test_a_stored_set_has_the_answers_by_name(out: Path, said: dict[str, Any]) -> None:
    stored = StoredBank.open(out / "run" / "images" / "grading.safetensors")
    assert (stored.task, stored.outputs) == ({"name": NAME}, OUTPUTS)
    assert {name: values.shape for name, values in stored.answers.items()} == {
        name: (48, *shape) for name, shape in OUTPUTS.items()
    }
    with np.load(out / "set.npz") as arrays:
        assert set(arrays) == {"images", "labels", *OUTPUTS}
    facts = json.loads(said["info"][1])
    assert facts["images"] == 48
    assert not any("class" in name for name in facts)


def test_the_report_tells_of_the_tasks_metrics_in_all_its_forms(out: Path, said: dict[str, Any]) -> None:
    report = Report.from_json((out / "run" / "report.json").read_text(encoding="utf-8"))
    assert report.verdict == "ok"
    for subject in ("student", "onnxruntime"):
        error = report.metric(SCENE_ERROR.name, subject)
        assert error is not None
        assert 0 < (error.value or 0) < 25
    assert not report.estimate["trusted"]
    assert report.selection["judged"][0].keys() == {"step", "agreement", "distance"}
    for text in (said["report"][1], (out / "run" / "report.html").read_text(encoding="utf-8")):
        assert SCENE_ERROR.title in text


def test_the_files_are_compared_by_the_tasks_answer(said: dict[str, Any]) -> None:
    found = json.loads(said["compare"][1])
    assert (found["n"], found["task"]) == (48, {"name": NAME})
    assert 0 < found["logit_max_abs"] < 1


def test_the_bundle_checks_itself(out: Path) -> None:
    bundle = out / "bundle"
    assert "network that sees scenes" in (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    program = [sys.executable, str(bundle / "samples" / "python" / "run.py")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert all(f"{name} " in done.stdout for name in OUTPUTS)


def test_the_gate_keeps_the_tasks_metrics_and_sees_a_worse_file(out: Path, said: dict[str, Any]) -> None:
    case = json.loads((out / "baseline.json").read_text(encoding="utf-8"))["cases"]["toy/scene"]
    assert {SCENE_ERROR.name, "agreement", "flips", "plain_agreement"} <= set(case["metrics"])
    _, text, _ = said["worse"]
    row = next(line for line in text.splitlines() if SCENE_ERROR.name in line)
    assert "regressed" in row
