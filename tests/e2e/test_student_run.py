"""A run whose recipe asks for a smaller float student: train it, quantize it, and grade both against the teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file

from dfqkit.config.reading import load_recipe
from dfqkit.config.recipe import Recipe
from dfqkit.progress import silent
from dfqkit.run.answering import real_images
from dfqkit.run.context import FLOAT_STUDENT, Context
from dfqkit.run.folder import RunFolder
from dfqkit.run.synthesize import require_trainable
from dfqkit_export.errors import ArtefactError, DfqkitError, RecipeError
from dfqkit_export.report import Report
from tests._shared import RECIPE, TINY, continued, new_run, once, tiny

STUDENT = (
    "student={factory: 'dfqkit.models:digits_cnn', args: {width: 0.5}, steps: 8, batch: 8, round_every: 2, "
    "judge_every: 4, weights: {response: 1, feature: 1}, layers: [stage1, stage2]}"
)
#: Every method that can play against a student while it learns, made tiny.
ONLINE = {
    "dfq": "warmup: 2, batch: 8, width: 4, latent: 8, memory: 16",
    "dafl": "warmup: 2, batch: 8, width: 4, latent: 8, memory: 16",
    "zskt": "warmup: 2, batch: 8, width: 4, latent: 8, memory: 16",
    "cmi": "batch: 8, steps: 2, width: 4, latent: 8, projection: 8, bank: 16, negatives: 8, memory: 64",
    "fastdfkd": "batch: 8, steps: 2, width: 4, latent: 8, warmup_batches: 1, memory: 64",
    "deepinversion-adaptive": "batch: 8, steps: 2, memory: 64",
}


def context(folder: RunFolder, wanted: Recipe) -> Context:
    return Context(folder=folder, recipe=wanted, device=torch.device("cpu"), progress=silent())


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = once(tmp_path_factory, "student-run", lambda path: new_run(path, tiny(STUDENT)))
    return RunFolder.open(run)


@pytest.mark.slow
def test_the_report_grades_the_float_student_beside_the_rest(finished: RunFolder) -> None:
    report = Report.from_json((finished.path / "report.json").read_text())
    found = {(metric.subject, metric.name) for metric in report.metrics}
    for subject in ("float_student", "calibrated", "student", "onnxruntime"):
        assert {(subject, name) for name in ("top1", "top1_drop", "agreement", "kl", "logit_sqnr_db")} <= found
    assert report.metric("student_agreement", "onnxruntime").value == 100  # type: ignore[union-attr]
    assert report.provenance["float_student"] == "dfqkit.models:digits_cnn"
    assert report.provenance["seconds"]["train"] > 0
    assert report.selection["float_student_judged"][0]["step"] == 0
    assert report.synthesis["cost"]["train_image_passes"] > 0
    assert any(row.sqnr_student_db is not None for row in report.layers)
    assert "float_student" in (finished.path / "report.html").read_text()


@pytest.mark.slow
def test_the_teacher_stays_the_teacher_and_the_student_is_what_ships(finished: RunFolder) -> None:
    def channels(name: str) -> list[int]:
        model = onnx.load(finished.path / name)
        weights = {item.name: list(item.dims) for item in model.graph.initializer}
        return sorted({dims[0] for dims in weights.values() if len(dims) == 4})

    assert channels("teacher.onnx") == [16, 24, 40]
    assert channels("model.onnx") == [8, 12, 20]
    student = load_file(finished.path / FLOAT_STUDENT)
    assert student["fc.weight"].shape == (10, 20)
    metadata = {item.key: item.value for item in onnx.load(finished.path / "model.onnx").metadata_props}
    assert metadata["dfqkit.student"] == "dfqkit.models:digits_cnn"


@pytest.mark.slow
def test_the_game_goes_on_where_training_left_it(finished: RunFolder) -> None:
    states = [load_file(finished.path / "state" / f"{name}.safetensors") for name in ("synthesizer",)]
    after = load_file(finished.path / "state" / "synthesizer_after_train.safetensors")
    assert states[0].keys() == after.keys()
    assert len(after["memory"]) == 64  # 4 rounds of 16 images; the warm-up leaves none
    assert len(states[0]["memory"]) == 0
    wanted = tiny(STUDENT)
    assert context(finished, wanted).new_synthesizer().demand.game_rounds == 4 + 3


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_bytes(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dfqkit.run import playing as module
    from dfqkit.training.float_student import FloatStudentTrainer

    class Killed(Exception):  # noqa: N818
        pass

    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    whole, wanted = FloatStudentTrainer.run_step, tiny(STUDENT)

    def step(self: FloatStudentTrainer) -> dict[str, float]:
        if self.step == 5:
            raise Killed
        return whole(self)

    continued(finished.path, tmp_path / "r", wanted, until="synthesize")
    with monkeypatch.context() as patch:
        patch.setattr(FloatStudentTrainer, "run_step", step)
        with pytest.raises(Killed):
            new_run(tmp_path / "r", wanted, until="train")
    torch.manual_seed(1234)
    folder = RunFolder.open(tmp_path / "r")
    assert folder.load_state("train") is not None
    folder = new_run(tmp_path / "r", wanted, until="train")
    for name in (FLOAT_STUDENT, "state/synthesizer_after_train.safetensors"):
        first, second = load_file(finished.path / name), load_file(tmp_path / "r" / name)
        assert all(torch.equal(first[key], second[key]) for key in first | second), name
    assert folder.facts("train")["judged"] == finished.facts("train")["judged"]


@pytest.mark.slow
def test_without_the_section_training_is_over_at_once(finished: RunFolder, tmp_path: Path) -> None:
    wanted = tiny("distill=null")
    continued(finished.path, tmp_path / "r", wanted, until="synthesize")
    folder = new_run(tmp_path / "r", wanted, until="quantize")
    assert folder.facts("train") == {}
    assert not (folder.path / FLOAT_STUDENT).exists()
    assert context(folder, wanted).graph is not None


def test_later_stages_say_that_the_student_is_missing(tmp_path: Path) -> None:
    wanted = tiny(STUDENT)
    folder = RunFolder.create(tmp_path / "r", recipe_text=wanted.to_yaml(), digest=wanted.digest(), facts={})
    with pytest.raises(ArtefactError, match=r"Cannot read the float student.*dfqkit run --resume"):
        _ = context(folder, wanted).graph


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["student.layers=[stage9]"], r"student.layers names 'stage9', but the teacher.*Did you mean "),
        (["student.factory=dfqkit.models:digits_cn"], r"The recipe's student section: Factory .* does not exist"),
        (["distill.layers=[stage1]"], r"distill.layers names 'stage1', but the quantized graph.*There are: "),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_compute(changes: list[str], message: str, tmp_path: Path) -> None:
    wanted = tiny(STUDENT, *changes)
    folder = RunFolder.create(tmp_path / "r", recipe_text=wanted.to_yaml(), digest=wanted.digest(), facts={})
    with pytest.raises(RecipeError, match=message):
        require_trainable(context(folder, wanted))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.weigth_decay=1", r"student.weigth_decay: unknown key. Did you mean 'weight_decay'\?"),
        ("student.weights.relationn=1", r"student.weights.relationn: unknown key. Did you mean 'relation'\?"),
        ("student.weights={response: -1}", r"student.weights.response: must be greater than or equal to 0"),
        ("distill.weights={response: 0, feature: 0}", r"distill.weights: all are 0, which trains nothing"),
        ("distill.weights.hint=1", r"distill.weights.hint: unknown key.*Allowed here: response, feature, relation"),
    ],
)
def test_a_wrong_section_says_where(override: str, message: str) -> None:
    with pytest.raises(DfqkitError, match=message):
        tiny(STUDENT, override)


@pytest.mark.slow
@pytest.mark.parametrize("method", ONLINE)
def test_every_online_method_trains_one_from_a_recipe(method: str, tmp_path: Path) -> None:
    base = [item for item in TINY if not item.startswith("synthesis.")]
    sizes = ["bank.calibration=8", "bank.held_out=8", "bank.grading=8", "bank.batch=8"]
    source = f"synthesis={{method: {method}, {ONLINE[method]}}}"
    wanted = load_recipe(RECIPE, [*base, source, *sizes, STUDENT, "student.steps=4"])
    folder = new_run(tmp_path / "r", wanted, until="train")
    facts: dict[str, Any] = folder.facts("train")
    assert len(facts["curve"]) == 2
    assert set(facts["curve"][0]) > {"step", "response", "feature"}, "no term of a round"
    assert facts["cost"] > 0
    json.dumps(facts, allow_nan=False)


@pytest.mark.slow
def test_half_the_digits_teacher_learns_real_digits_from_synthetic_images(tmp_path: Path) -> None:
    """A student of half the width, from random weights; 98.3 percent of real digits (teacher: 99.3) as measured."""
    overrides = [
        "bank.calibration=256", "bank.held_out=256", "bank.grading=0", "distill=null", "floors=[]",
        "student={factory: 'dfqkit.models:digits_cnn', args: {width: 0.5}, steps: 600, batch: 64, shift: 1, "
        "judge_every: 100}",
    ]  # fmt: skip
    wanted = load_recipe(RECIPE, overrides)
    folder = new_run(tmp_path / "r", wanted, until="train")
    graph, spec = context(folder, wanted).graph, wanted.image.spec()
    real = real_images(wanted)
    assert real is not None
    assert real.labels is not None
    with torch.no_grad():
        answers = torch.cat([graph(torch.from_numpy(batch)).argmax(1) for batch in real.batches(spec, 256)])
    right = 100 * float((answers.numpy() == real.labels).mean())
    assert right > 95
