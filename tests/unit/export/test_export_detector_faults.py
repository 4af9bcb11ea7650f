"""The gate and the checker against what goes wrong in a detector's file: caught, and the cause named."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import pytest
from onnx import helper

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.checker import check_file
from dfqkit_export.gate import Baseline, Options, check_path, open_subject
from dfqkit_export.gate.measurement import measure_subject
from dfqkit_export.images.labelled import load_images
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.sentinel import normalized
from dfqkit_export.tasks import task_of
from tests import _detector_toy
from tests._detector_faults import FAULTS, LEVEL_FAULTS, inject, inject_levels
from tests._faults import VARIANTS, seal
from tests._faults import inject as inject_other
from tests._messages import names

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


def test_a_file_that_says_of_its_boxes_other_than_was_measured_or_recorded_fails(
    bundle: Path, baseline: Baseline, tmp_path: Path
) -> None:
    """What decodes boxes takes the parameters from the file: the outputs are the same, and the boxes are not."""
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    model = onnx.load(other / "model.onnx")
    said = {entry.key: entry.value for entry in model.metadata_props}
    task = json.loads(said["dfqkit.task"])
    helper.set_model_props(model, said | {"dfqkit.task": json.dumps(task | {"nms": 0.9, "unit": "image"})})
    onnx.save(model, other / "model.onnx")
    seal(other)
    case = check_path(other, baseline, ONE_THREAD)
    assert case.failed()
    names(" ".join(case.causes), "nms 0.5", "metadata state 0.9", "unit")
    helper.set_model_props(model, said | {"dfqkit.task": "{"})
    onnx.save(model, other / "model.onnx")
    seal(other)
    case = check_path(other, baseline, ONE_THREAD)
    assert case.failed()
    (entry,) = baseline.cases.values()
    kept = entry.facts["deployed"]
    older = replace(entry, facts=entry.facts | {"deployed": kept | {"parameters": kept["parameters"] | {"floor": 0.1}}})
    case = check_path(bundle, Baseline(cases=dict.fromkeys(baseline.cases, older)), ONE_THREAD)
    assert case.failed()
    names(" ".join(case.causes), "floor 0.3", "baseline has 0.1")
    before = {name: value for name, value in kept.items() if name != "parameters"}
    older = replace(entry, facts=entry.facts | {"deployed": before})
    assert not check_path(bundle, Baseline(cases=dict.fromkeys(baseline.cases, older)), ONE_THREAD).failed()


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
    far = {name: values + 1 for name, values in wanted.items()}
    (text,) = task.signs(far, {**far, "b8": 1.1 * far["b8"]})
    assert "'b8' they are 1.1 times as wide and 1.1 times as high" in text
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
def test_the_faults_of_an_object_detector_of_80_classes_are_caught_and_named(tmp_path: Path) -> None:
    """NanoDet-m, by ONNX Runtime's own quantizer from 12 real images."""
    assets = Path(os.environ.get("DFQKIT_ASSETS", "."))
    if not all((assets / name).is_file() for name in ("nanodet_m.onnx", "imagenet_val1300_227.zip")):
        pytest.skip("nanodet_m.onnx or imagenet_val1300_227.zip is not in DFQKIT_ASSETS")
    spec = ImageSpec(
        shape=(3, 416, 416),
        mean=(103.53, 116.28, 123.675),
        std=(57.375, 57.12, 58.395),
        pixel_range=255,
        channels="BGR",
    )
    source = load_images(assets / "imagenet_val1300_227.zip", spec, resize=416, crop=416, limit=36)
    pixels = np.ascontiguousarray(source.images.transpose(0, 3, 1, 2))
    float_file, bundle = tmp_path / "float.onnx", tmp_path / "good"
    bundle.mkdir()
    model = onnx.load(assets / "nanodet_m.onnx")
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save(onnx.version_converter.convert_version(model, 13), float_file)
    session = OrtSession(float_file, threads=1)
    answered = [session.run_all(normalized(pixels[place : place + 1], spec)) for place in range(len(pixels))]
    outputs = {name: np.concatenate([one[name] for one in answered]) for name in answered[0]}
    task = task_of({"name": "detection", "threshold": 0.35, "floor": 0.2, "nms": 0.6}).fitted(outputs, spec)
    given = [normalized(pixels[place : place + 1], spec) for place in range(12)]
    _detector_toy.quantize(float_file, bundle / "model.onnx", given=given, op_types_to_quantize=["Conv", "LeakyRelu"])
    _detector_toy.bundled(bundle, pixels[12:], {name: each[12:] for name, each in outputs.items()}, task, spec)
    baseline = recorded(bundle)
    assert not check_path(bundle, baseline, ONE_THREAD).failed()
    assert not told(bundle)
    for name, (_, words) in LEVEL_FAULTS.items():
        inject_levels(name, bundle, tmp_path / name)
        case = check_path(tmp_path / name, baseline, ONE_THREAD)
        assert case.failed()
        assert not case.error
        assert not [word for word in words if word not in case.causes[0]], (name, case.causes)


@pytest.mark.slow
def test_the_faults_of_a_real_face_detector_are_caught_and_named(tmp_path: Path) -> None:
    import dfqkit
    from dfqkit.cli import main

    file = Path(os.environ.get("DFQKIT_ASSETS", ".")) / "rfb320.onnx"
    if not file.is_file():
        pytest.skip("rfb320.onnx is not in DFQKIT_ASSETS")
    image = dfqkit.ImageSpec(shape=(3, 240, 320), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    counts = {"calibration": 48, "held_out": 16, "grading": 64, "batch": 16}
    quant = {"activation_range": "percentile", "percentile": 100, "costly_in_float": 1}  # quick, and good enough
    options = {"bank": counts, "quant": quant, "validate": {"latency_repeats": 0}}
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    dfqkit.quantize(f"onnx:{file}", image=image, task="detection", method="procedural", out=run, options=options)
    assert main(["bundle", str(run), "--out", str(bundle)]) == 0
    baseline = recorded(bundle)
    for name in FAULTS:
        require_named(name, bundle, baseline, tmp_path / name)
