"""The whole path on the digits teacher, as a user runs it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import dfqkit
from dfqkit.cli import main
from dfqkit.config.files import list_recipes
from dfqkit.config.reading import load_recipe
from dfqkit.images import ImageBank
from dfqkit.run.folder import RunFolder
from dfqkit_export.report import Report
from tests._shared import TINY, continued, finished_run, new_run, run, tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory)


def test_the_folder_holds_what_the_design_promises(finished: Path) -> None:
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    assert {
        "recipe.yaml", "manifest.json", "model.onnx", "teacher.onnx", "student.safetensors", "report.json",
        "report.html", "sentinel.safetensors", "images/calibration.safetensors", "images/grading.safetensors",
    } <= names  # fmt: skip
    manifest = json.loads((finished / "manifest.json").read_text())
    listed = manifest["stages"]["export"]["files"]
    digest = hashlib.sha256((finished / "model.onnx").read_bytes()).hexdigest()
    assert digest in json.dumps(listed)


@pytest.mark.slow
def test_a_run_without_bias_correction_reaches_its_file(finished: Path, tmp_path: Path) -> None:
    wanted = tiny("quant.bias_correction=false", "distill.steps=2")
    continued(finished, tmp_path / "out", wanted, until="synthesize")
    new_run(tmp_path / "out", wanted)
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    gap = next(metric for metric in document["metrics"] if metric["name"] == "student_agreement")
    assert gap["value"] > 90
    assert (document["synthesis"]["data_free"], document["synthesis"]["real_data"]) == (True, None)


def test_report_has_every_subject_and_metric(finished: Path) -> None:
    document = json.loads((finished / "report.json").read_text())
    assert document["schema"] == 2
    assert document["verdict"] == "ok"
    found = {(metric["subject"], metric["name"]) for metric in document["metrics"]}
    for subject in ("student", "onnxruntime", "calibrated"):
        for name in ("top1", "top1_drop", "agreement", "kl", "logit_sqnr_db"):
            assert (subject, name) in found
    assert {
        ("teacher", "top1"), ("onnxruntime", "student_agreement"), ("onnxruntime", "integer_ops"),
        ("onnxruntime", "latency"), ("teacher", "latency"), ("onnxruntime", "size"),
    } <= found  # fmt: skip
    keys = {"name", "subject", "data", "value", "unit", "n", "stderr", "higher_is_better", "low", "high"}
    assert all(set(metric) == keys for metric in document["metrics"])
    assert any(row["sqnr_student_db"] for row in document["layers"])


def test_every_layer_runs_in_integers_and_the_student_is_the_file(finished: Path) -> None:
    report = Report.from_json((finished / "report.json").read_text())
    integer, same = report.metric("integer_ops", "onnxruntime"), report.metric("student_agreement", "onnxruntime")
    assert integer is not None
    assert integer.value == 100
    assert same is not None
    assert same.value == 100


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_the_student_is_the_file_with_float_scales_too(finished: Path, tmp_path: Path, bits: str) -> None:
    wanted = tiny("quant.scales=float", f"quant.bits={bits}", "distill=null", "validate.limit=null")
    continued(finished, tmp_path / "out", wanted, until="synthesize")
    new_run(tmp_path / "out", wanted)
    report = Report.from_json((tmp_path / "out" / "report.json").read_text())
    assert report.layers
    assert all(row.precision == "int8" and row.sqnr_runtime_db is None for row in report.layers)  # no noise at all
    values = {(m.data, m.name, m.subject): m.value for m in report.metrics}
    for data in {data for data, name, _ in values if name == "kl"}:
        for name in ("kl", "logit_sqnr_db"):  # sums over all logits: the same to the last bit
            assert values[data, name, "student"] == values[data, name, "onnxruntime"]


def test_the_file_is_plain_onnx_with_provenance(finished: Path) -> None:
    model = onnx.load(finished / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {item.domain for item in model.opset_import} <= {"", "ai.onnx"}
    metadata = {item.key: item.value for item in model.metadata_props}
    assert metadata["dfqkit.recipe"] == "digits/dfq-w4a4-ort"
    assert metadata["dfqkit.synthesizer"] == "dfq"
    assert len(metadata["dfqkit.teacher_sha256"]) == 64
    session = onnxruntime.InferenceSession(str(finished / "model.onnx"))
    for batch in (1, 3):
        assert session.run(None, {"image": np.zeros((batch, 1, 16, 16), np.float32)})[0].shape == (batch, 10)


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes_another_seed_does_not(finished: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "again") == 0
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (finished / "model.onnx").read_bytes()
    other = new_run(tmp_path / "other", tiny("seed=1"), until="distill")
    first, second = (load_file(folder / "student.safetensors") for folder in (finished, other.path))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_images_that_choose_or_grade_are_not_among_those_that_train(finished: Path) -> None:
    def images(name: str) -> list[bytes]:
        return [image.numpy().tobytes() for image in ImageBank.load(finished / "images" / f"{name}.safetensors").images]

    calibration, held_out, grading = images("calibration"), images("held_out"), images("grading")
    assert len(set(calibration)) == len(calibration)
    assert not set(held_out) & set(calibration)
    assert not set(grading) & {*calibration, *held_out}
    state = load_file(finished / "state" / "synthesizer.safetensors")
    assert not len(state["memory"]), "nothing drawn for a stored set may come back in training"


def test_ensemble_members_differ(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report["synthesis"]["disagreement"]["before"] > 0


def test_without_labels_the_synthetic_images_grade(finished: Path, tmp_path: Path) -> None:
    wanted = tiny("validate.data=null", "validate.limit=null")
    folder = continued(finished, tmp_path / "out", wanted, until="export")
    assert main(["run", "--resume", str(folder.path), "-q", "--device", "cpu"]) == 0
    report = Report.from_json((folder.path / "report.json").read_text())
    assert {metric.data for metric in report.metrics if metric.name == "agreement"} == {"synthetic:dfq:grading"}
    assert report.metric("top1", "onnxruntime") is None


def test_floors_decide_verdict_and_exit_code(finished: Path, tmp_path: Path) -> None:
    wanted = tiny("floors=[{metric: agreement, value: 100.1}]")
    folder = continued(finished, tmp_path / "out", wanted, until="export")
    assert main(["run", "--resume", str(folder.path), "-q", "--device", "cpu"]) == 1
    report = Report.from_json((folder.path / "report.json").read_text())
    assert report.verdict == "failed"
    assert report.findings[0].metric == "agreement"


def test_a_floor_can_ask_for_the_bits_of_other_processors(finished: Path, tmp_path: Path) -> None:
    floor = "floors=[{metric: portable, value: 100}]"
    wanted = tiny("validate.prove=[avx-vnni,avx512-vnni]", "validate.limit=16", floor)
    folder = continued(finished, tmp_path / "out", wanted, until="export")
    code = main(["run", "--resume", str(folder.path), "-q", "--device", "cpu"])
    report = Report.from_json((folder.path / "report.json").read_text())
    (table,) = (each for each in report.breakdowns if each.title == "Kernels of other processors")
    assert [row[0] for row in table.rows] == ["x86, AVX-VNNI", "x86, AVX-512 VNNI"]
    share = report.metric("portable", "onnxruntime")
    assert share is not None
    assert share.value == 50 * sum("equal" in str(row[1]).split(",")[0].split(";")[0] for row in table.rows)
    assert (code == 1) == (share.value < 100) == any(each.metric == "portable" for each in report.findings)


WRECK = ("quant.bits=w2a2", "quant.first_last=null", "quant.elementwise=null", "distill=null")


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ((*WRECK,), "failed"),
        pytest.param((*WRECK, "validate.data=null"), "failed", marks=pytest.mark.slow),
    ],
    ids=["labelled", "unlabelled"],
)
def test_a_wreck_without_floors_fails_all_the_same(
    finished: Path, tmp_path: Path, settings: tuple[str, ...], verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = continued(finished, tmp_path / "out", tiny(*settings), until="synthesize")
    assert main(["run", "--resume", str(folder.path), "-q", "--device", "cpu"]) == 1
    report = Report.from_json((folder.path / "report.json").read_text())
    assert (report.verdict, report.floors) == (verdict, ())
    said = capsys.readouterr()
    assert "All checks hold" not in said.out
    assert said.err.splitlines()[-1].startswith("failed | ")


def test_a_run_that_nothing_can_judge_ends_well_and_does_not_say_ok(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dfqkit.teacher.load import Teacher

    monkeypatch.setattr(Teacher, "untrained", True)
    folder = continued(finished, tmp_path / "out", tiny("validate.data=null"), until="export")
    assert main(["run", "--resume", str(folder.path), "-q", "--device", "cpu"]) == 0
    report = Report.from_json((folder.path / "report.json").read_text())
    assert report.verdict == "not judged"
    assert "random weights" in report.reasons[0]
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("not judged | ")
    assert "OK" not in said.out


@pytest.mark.slow
def test_python_interface(tmp_path: Path) -> None:
    recipe = load_recipe("digits/dfq-w4a4-ort")
    teacher = dfqkit.load_teacher(
        recipe.teacher.factory, recipe.image.spec(), recipe.directory / recipe.teacher.weights  # type: ignore[operator]
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    result = dfqkit.quantize(
        teacher.model, image=recipe.image.spec(), bits="w8a8", target="onnxruntime", out=tmp_path / "out",
        options={
            "synthesis": {"method": "dfq", "width": 8, "warmup": 3, "batch": 16, "memory": 0},
            "bank": {"calibration": 32, "held_out": 16, "grading": 16},
        },
    )  # fmt: skip
    assert result.ok
    assert {floor.metric for floor in load_recipe(tmp_path / "out" / "recipe.yaml").floors} == {
        "student_agreement", "integer_ops",
    }  # fmt: skip
    assert result.report.metric("student_agreement", "onnxruntime").value == 100  # type: ignore[union-attr]
    assert result.model.is_file()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.model.state_dict().items())


@pytest.mark.slow
def test_tensorrt_target_writes_its_own_form(finished: Path, tmp_path: Path) -> None:
    continued(finished, tmp_path / "out", tiny("target=tensorrt", "distill=null"), until="synthesize")
    new_run(tmp_path / "out", tiny("target=tensorrt", "distill=null"))
    model = onnx.load(tmp_path / "out" / "model.onnx")
    types = {item.name: item.data_type for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert types[node.input[2]] == onnx.TensorProto.INT8
        if node.op_type == "DequantizeLinear":
            assert types.get(node.input[0], onnx.TensorProto.INT8) == onnx.TensorProto.INT8


@pytest.mark.slow
def test_several_targets_share_a_synthesis_and_each_gets_the_file_of_its_own_run(
    finished: Path, tmp_path: Path
) -> None:
    both = continued(finished, tmp_path / "both", tiny("target=[onnxruntime, tensorrt]"), until="synthesize")
    alone = continued(finished, tmp_path / "alone", tiny("target=tensorrt"), until="synthesize")
    assert main(["run", "--resume", str(both.path), "-q", "--device", "cpu"]) == 0
    new_run(alone.path, tiny("target=tensorrt"), until="export")
    assert (both.path / "model.onnx").read_bytes() == (finished / "model.onnx").read_bytes()
    assert (both.path / "model.tensorrt.onnx").read_bytes() == (alone.path / "model.onnx").read_bytes()
    for name, target in (("report.json", "onnxruntime"), ("report.tensorrt.json", "tensorrt")):
        report = Report.from_json((both.path / name).read_text())
        assert report.provenance["target"] == target
        assert report.selection["judged"]
    assert RunFolder.open(both.path).facts("distill")["tensorrt"]["judged"]


@pytest.mark.parametrize("name", list(list_recipes()))
def test_every_shipped_recipe_is_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    again = load_recipe(name).to_yaml()
    assert again == recipe.to_yaml()


@pytest.mark.slow
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    overrides = [*TINY, "synthesis.warmup=40", "distill.steps=60", "distill.judge_every=20"]
    overrides += ["distill.replay={images: 96}"]
    assert run(tmp_path / "whole", "--threads", "1", overrides=overrides) == 0
    settings = [part for item in overrides for part in ("--set", item)]
    command = [sys.executable, "-m", "dfqkit", "run", "digits/dfq-w4a4-ort", "-q", "--threads", "1", *settings]
    environment = os.environ | {
        "DFQKIT_CHECKPOINT_SECONDS": "0.2",
        "PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[2] / part) for part in (".", "export")),
    }
    moments = random.Random(0)
    out, kills, finished = tmp_path / "killed", 0, False
    for _ in range(40):
        process = subprocess.Popen(
            [*command, "--out", str(out), "--device", "cpu"], env=environment, stdout=subprocess.DEVNULL
        )  # fmt: skip
        time.sleep(moments.uniform(2, 9))
        if process.poll() is not None:
            finished = process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        if kills == 5:  # `tests/benchmarks/kill_resume.py` does it more often
            finished = (
                subprocess.run(
                    [*command, "--out", str(out), "--device", "cpu"], env=environment, check=False
                ).returncode
                == 0
            )
            break
    assert finished
    assert kills
    assert (out / "model.onnx").read_bytes() == (tmp_path / "whole" / "model.onnx").read_bytes()
