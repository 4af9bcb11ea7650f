"""The gate and the checker against what goes wrong in a detector's file: caught, and the cause named."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dfqkit_export.checker import check_file
from dfqkit_export.gate import Baseline, Options, check_path, open_subject
from dfqkit_export.gate.measurement import measure_subject
from tests import _detector_toy
from tests._detector_faults import FAULTS, inject
from tests._faults import VARIANTS
from tests._faults import inject as inject_other

ONE_THREAD = Options(threads=1)


def recorded(bundle: Path) -> Baseline:
    made = check_path(bundle, Baseline(), Options(update=True, threads=1, reason="a toy"))
    assert made.entry is not None, made.error
    return Baseline(cases={made.name: made.entry})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _detector_toy.make_bundle(tmp_path_factory.mktemp("detector") / "good")


@pytest.fixture(scope="module")
def baseline(bundle: Path) -> Baseline:
    return recorded(bundle)


def require_named(name: str, bundle: Path, baseline: Baseline, out: Path) -> None:
    inject(name, bundle, out)
    case = check_path(out, baseline, ONE_THREAD)
    assert case.failed()
    assert not case.error
    for word in FAULTS[name][1]:
        assert word in case.causes[0], case.causes


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_detector_is_caught_and_the_first_cause_names_it(
    name: str, bundle: Path, baseline: Baseline, tmp_path: Path
) -> None:
    require_named(name, bundle, baseline, tmp_path / "faulty")


def told(path: Path) -> list[str]:
    with open_subject(path) as subject:
        found = measure_subject(subject, threads=1)
        assert found.outputs is not None
        return subject.sentinel.task.signs(subject.sentinel.answers, found.outputs)


@pytest.mark.parametrize("seed", [8, 9, 10])
def test_a_file_that_is_as_good_passes_and_nothing_is_told_of_it(seed: int, baseline: Baseline, tmp_path: Path) -> None:
    other = _detector_toy.make_bundle(tmp_path / "other", seed=seed)
    assert not check_path(other, baseline, ONE_THREAD).failed()
    assert not told(other)


@pytest.mark.parametrize("name", VARIANTS)
def test_other_faults_are_not_taken_for_those_of_detectors(name: str, bundle: Path, tmp_path: Path) -> None:
    inject_other(name, bundle, tmp_path / "faulty")
    words = ("swapped", "one grid", "pyramid")
    assert not [text for text in told(tmp_path / "faulty") if any(word in text for word in words)]


def test_one_level_of_several_outputs_is_named_and_rows_in_no_order_tell_nothing() -> None:
    from dfqkit_export.tasks.detection import Detection

    rng = np.random.default_rng(0)
    sizes = {"b8": (16, 4), "b16": (4, 4), "s8": (16, 3), "s16": (4, 3)}
    task = Detection(
        boxes=("b8", "b16"), scores=("s8", "s16"), shapes=tuple(sizes.values()), size=(32, 32), form="distances",
        strides=(8.0, 16.0),
    )  # fmt: skip
    wanted = {name: rng.random((40, *shape)).astype(np.float32) for name, shape in sizes.items()}
    assert not task.signs(wanted, wanted)
    (text,) = task.signs(wanted, {**wanted, "s16": np.full_like(wanted["s16"], 0.3)})
    assert "positions 0 to 3 of 4 in 's16'" in text
    (text,) = task.signs(wanted, {**wanted, "b8": wanted["b8"][..., [0, 3, 2, 1]]})
    assert "'b8' gives top for bottom" in text
    bins = replace(task, form="distributions", shapes=((16, 32), (4, 32), (16, 3), (4, 3)))
    raw = {**wanted, "b8": rng.normal(size=(40, 16, 32)), "b16": rng.normal(size=(40, 4, 32))}
    exchanged = raw["b16"].reshape(40, 4, 4, 8)[:, :, [1, 0, 2, 3]].reshape(40, 4, 32)
    (text,) = bins.signs(raw, {**raw, "b16": exchanged})
    assert "'b16' gives left for top" in text
    assert bins.marks({name: np.zeros_like(values) for name, values in raw.items()})[0].boxes == ()
    rows = Detection(boxes=("rows",), form="rows", shapes=((5, 6),), size=(32, 32))
    assert not rows.signs({"rows": rng.random((9, 5, 6))}, {"rows": rng.random((9, 5, 6))})


def test_boxes_and_scores_that_quantize_static_joins_on_one_grid_are_a_problem(tmp_path: Path) -> None:
    _detector_toy.write_float(tmp_path / "float.onnx", joined=True)
    _detector_toy.quantize(tmp_path / "float.onnx", tmp_path / "all.onnx")
    (problem,) = [each for each in check_file(tmp_path / "all.onnx", "onnxruntime").problems if each.rule == "W20"]
    assert problem.node == "rows_node"
    for word in ("'scores", "256 codes", "boxes in pixels"):
        assert word in problem.message
    _detector_toy.quantize(tmp_path / "float.onnx", tmp_path / "apart.onnx", nodes_to_exclude=["rows_node"])
    assert "W20" not in {each.rule for each in check_file(tmp_path / "apart.onnx", "onnxruntime").problems}


@pytest.mark.slow
def test_the_faults_of_a_real_face_detector_are_caught_and_named(tmp_path: Path) -> None:
    import dfqkit
    from dfqkit.cli import main

    file = Path(os.environ.get("DFQKIT_ASSETS", ".")) / "rfb320.onnx"
    if not file.is_file():
        pytest.skip("rfb320.onnx is not in DFQKIT_ASSETS")
    image = dfqkit.ImageSpec(shape=(3, 240, 320), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    counts = {"calibration": 48, "held_out": 16, "grading": 64, "batch": 16}
    options = {"bank": counts, "validate": {"latency_repeats": 0}}
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    dfqkit.quantize(f"onnx:{file}", image=image, task="detection", method="procedural", out=run, options=options)
    assert main(["bundle", str(run), "--out", str(bundle)]) == 0
    baseline = recorded(bundle)
    for name in FAULTS:
        require_named(name, bundle, baseline, tmp_path / name)
