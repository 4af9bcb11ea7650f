"""The gate against sixteen faults in a file that ONNX Runtime's own quantizer made, and against good files."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import RuntimeUnavailableError
from dfqkit_export.gate import (
    Baseline,
    Options,
    Outcome,
    check,
    measure_subject,
    open_subject,
)
from tests._faults import FAULTS, VARIANTS, inject, seal
from tests._gate_toy import make_bundle
from tests._messages import names
from tests._qdqfile import File

#: What the message about a fault must say, beside the layer.
WORDS = {
    "swapped_channels": "channels swapped",
    "scale_doubled": "the weight scale of conv3 is 2 times",
    "scale_halved": "the weight scale of conv3 is 0.5 times",
    "uncalibrated_layer": "left uncalibrated",
    "noise_calibration": "random noise",
    "per_tensor_weights": "were per_channel and are per_tensor",
    "batchnorm_misfolded": "BatchNorm folding",
    "bias_dropped": "conv3 has lost its bias",
    "swapped_classes": "answers 3 for 5",
    "floor_rounding": "rounding changed",
    "other_checkpoint": "other weights",
    "signedness_mixed_up": "uint8 8 per_tensor and are int8",
    "two_bits_first_layer": "weights of conv1 used 8 bits and use 2",
    "wrong_mean_std": "preprocessing",
    "stale_sentinel": "is stale",
    "truncated_file": "not a complete ONNX file",
    "activation_scale_doubled": "the scale of conv3's output is 2 times",
    "activation_scale_halved": "the scale of conv3's output is 0.5 times",
    "noise_calibration_unmarked": "calibration changed",
    "bias_zeroed": "bias of conv3 is zero",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("gate") / "good")


@pytest.fixture(scope="module")
def baseline(bundle: Path) -> Baseline:
    outcome = check([bundle], Baseline(), Options(update=True, threads=1))
    assert outcome.exit_code == 0
    assert outcome.baseline is not None
    return outcome.baseline


def said(outcome: Outcome) -> str:
    case = outcome.cases[0]
    return " ".join([case.error, *case.causes])


def test_the_faults_are_the_sixteen() -> None:
    assert len(FAULTS) == 16
    assert set(WORDS) == {*FAULTS, *VARIANTS}


@pytest.mark.parametrize("fault", WORDS)
def test_a_fault_fails_the_check_and_is_named(fault: str, bundle: Path, baseline: Baseline, tmp_path: Path) -> None:
    layer = inject(fault, bundle, tmp_path / "faulty")
    outcome = check([tmp_path / "faulty"], baseline, Options(threads=1))
    assert outcome.exit_code == (2 if fault in ("stale_sentinel", "truncated_file") else 1)
    assert WORDS[fault] in said(outcome)
    assert layer in said(outcome)


@pytest.mark.parametrize("calibrated_on", [1, 2])
def test_files_of_other_calibration_images_pass(calibrated_on: int, baseline: Baseline, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", calibrated_on=calibrated_on)
    for options in (Options(threads=1), Options(threads=2), Options(optimized=False)):
        outcome = check([other], baseline, options)
        assert outcome.exit_code == 0, outcome.cases[0].rows
        assert any("another one than the recorded" in note for note in outcome.cases[0].notes)


def test_without_optimizations_integer_layers_are_unmeasured_and_strict_minds(bundle: Path, baseline: Baseline) -> None:
    outcome = check([bundle], baseline, Options(optimized=False, strict=True))
    (row,) = [row for row in outcome.cases[0].rows if row.verdict != "ok"]
    assert (row.metric, row.verdict, outcome.exit_code) == ("integer_ops", "unmeasured", 1)


def test_preprocessing_written_into_the_file_a_second_time(bundle: Path, baseline: Baseline, tmp_path: Path) -> None:
    inject("bias_zeroed", bundle, tmp_path / "faulty")  # a copy; its model is replaced
    model = onnx.load(str(bundle / "model.onnx"))
    model.graph.initializer.append(helper.make_tensor("shift", onnx.TensorProto.FLOAT, [1], [0.5]))
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "image":
                node.input[index] = "shifted"
    model.graph.node.insert(0, helper.make_node("Sub", ["image", "shift"], ["shifted"], name="shift_image"))
    onnx.save(model, str(tmp_path / "faulty" / "model.onnx"))
    seal(tmp_path / "faulty")
    outcome = check([tmp_path / "faulty"], baseline, Options(threads=1))
    assert outcome.exit_code == 1
    assert "were [none] and are [Sub]" in said(outcome)


def test_a_changed_model_that_the_manifest_does_not_list_is_told_and_still_measured(
    bundle: Path, baseline: Baseline, tmp_path: Path
) -> None:
    inject("bias_dropped", bundle, tmp_path / "faulty")
    (tmp_path / "faulty" / "manifest.json").write_text((bundle / "manifest.json").read_text())
    outcome = check([tmp_path / "faulty"], baseline, Options(threads=1))
    rows = {row.metric: row for row in outcome.cases[0].rows}
    assert rows["files"].verdict == "regressed"
    assert "model.onnx" in rows["files"].reason
    assert "conv3 has lost its bias" in said(outcome)


def test_a_damaged_sentinel_set_measures_nothing(bundle: Path, baseline: Baseline, tmp_path: Path) -> None:
    inject("stale_sentinel", bundle, tmp_path / "faulty")
    (tmp_path / "faulty" / "manifest.json").write_text((bundle / "manifest.json").read_text())
    outcome = check([tmp_path / "faulty"], baseline, Options(threads=1))
    assert outcome.exit_code == 2
    assert "another sha256" in outcome.cases[0].error
    assert not outcome.cases[0].rows
    assert outcome.unused == ()  # it may be the one that could not be read


def test_a_file_that_gives_no_numbers_is_an_error_of_its_case(bundle: Path, baseline: Baseline, tmp_path: Path) -> None:
    inject("bias_zeroed", bundle, tmp_path / "faulty")
    file = File(onnx.load(str(bundle / "model.onnx")))
    last = file.producer(file.graph.output[0].name)
    assert last is not None
    file.put_scale([last], float("nan"))
    onnx.save(file.model, str(tmp_path / "faulty" / "model.onnx"))
    seal(tmp_path / "faulty")
    outcome = check([tmp_path / "faulty"], baseline, Options(threads=1))
    assert (outcome.exit_code, outcome.cases[0].name) == (2, "toy")
    assert "above 0" in outcome.cases[0].error  # no runtime sees such a scale


def test_another_sentinel_set_must_be_recorded(bundle: Path, baseline: Baseline, tmp_path: Path) -> None:
    from dfqkit_export.images.tensors import read_tensors, write_tensors

    inject("bias_dropped", bundle, tmp_path / "other")
    for name in ("model.onnx", "sentinel.safetensors"):
        (tmp_path / "other" / name).write_bytes((bundle / name).read_bytes())
    tensors, metadata = read_tensors(tmp_path / "other" / "sentinel.safetensors")
    kept = {name: values[:-8] for name, values in tensors.items()}
    write_tensors(tmp_path / "other" / "sentinel.safetensors", kept, metadata)
    seal(tmp_path / "other")
    outcome = check([tmp_path / "other"], baseline, Options(threads=1))
    assert outcome.exit_code == 2
    assert "record them with --update" in outcome.cases[0].error
    updated = check([tmp_path / "other"], baseline, Options(threads=1, update=True))
    assert updated.exit_code == 0
    assert any("sentinel" in line for line in updated.changes)


def test_without_the_runtime_nothing_is_said_of_the_file(
    bundle: Path, baseline: Baseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailableError) as caught:
        check([bundle], baseline)
    assert caught.value.exit_code == 3


def test_a_file_of_unknown_origin_is_not_recorded_but_with_a_reason(bundle: Path, tmp_path: Path) -> None:
    inject("bias_dropped", bundle, tmp_path / "plain")
    model = onnx.load(str(bundle / "model.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "plain" / "model.onnx"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["synthesis"]["method"] = ""
    (tmp_path / "plain" / "manifest.json").write_text(json.dumps(manifest))
    seal(tmp_path / "plain")
    refused = check([tmp_path / "plain"], Baseline(), Options(update=True))
    assert refused.exit_code == 1
    assert refused.baseline == Baseline(environment=refused.baseline.environment if refused.baseline else {})
    taken = check([tmp_path / "plain"], Baseline(), Options(update=True, allow="made by the vendor's tool"))
    assert taken.exit_code == 0
    assert taken.baseline is not None
    later = check([tmp_path / "plain"], taken.baseline)
    assert later.exit_code == 0
    assert any("made by the vendor's tool" in note for note in later.cases[0].notes)


def test_the_recipes_floor_on_integer_layers_is_recorded(bundle: Path, tmp_path: Path) -> None:
    inject("bias_zeroed", bundle, tmp_path / "copy")
    floors = "floors:\n- {metric: integer_ops, subject: onnxruntime, value: 101}\n- {metric: top1, value: 3}\n"
    (tmp_path / "copy" / "recipe.yaml").write_text(floors)
    outcome = check([tmp_path / "copy"], Baseline(), Options(update=True, threads=1))
    assert outcome.exit_code == 1
    assert outcome.cases[0].rows[0].floor == 101
    (tmp_path / "copy" / "recipe.yaml").write_text("floors: !!python/object/apply:os.system [false]")
    taken = Options(update=True, threads=1, reason="a floor is tried")
    assert check([tmp_path / "copy"], Baseline(), taken).exit_code == 0
    left = "floors:\n- {metric: integer_ops, subject: onnxruntime, value: 101, unless_kept: true}\n"
    (tmp_path / "copy" / "recipe.yaml").write_text(left)
    (case,) = check([tmp_path / "copy"], Baseline(), taken).cases
    assert case.entry is not None
    assert case.entry.floors == {}


def test_an_update_does_not_wash_away_a_floor(bundle: Path, baseline: Baseline, tmp_path: Path) -> None:
    floored = check([bundle], Baseline(), Options(update=True, floors={"agreement": 95.0})).baseline
    assert floored is not None
    inject("bias_dropped", bundle, tmp_path / "faulty")
    taken = Options(update=True, reason="a floor is tried")
    without = check([tmp_path / "faulty"], baseline, taken)
    assert without.exit_code == 0
    outcome = check([tmp_path / "faulty"], floored, taken)
    assert outcome.exit_code == 1
    assert outcome.baseline is not None
    assert outcome.baseline.cases == floored.cases
    assert outcome.cases[0].rows[0].metric == "agreement"
    assert "floor of 95" in outcome.cases[0].rows[0].reason


def for_openvino(bundle: Path, out: Path) -> Path:
    """A copy in the form of a target that wants float biases."""
    inject("bias_zeroed", bundle, out)  # a copy; its model is replaced
    model = onnx.load(str(bundle / "model.onnx"))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for layer in [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]:
        source = made[layer.input[2]]
        codes, scale = (values[name] for name in source.input[:2])
        # Off the grid that ONNX Runtime would put it on.
        bias = ((codes + 0.4) * scale * 1.01).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(bias, layer.input[2]))
        model.graph.node.remove(source)
    onnx.save(model, str(out / "model.onnx"))
    facts = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**facts, "target": "openvino"}))
    seal(out)
    return out


def test_a_file_of_another_runtimes_form_is_run_as_it_is_written(bundle: Path, tmp_path: Path) -> None:
    out = for_openvino(bundle, tmp_path / "openvino")
    with open_subject(out) as subject:
        images = subject.sentinel.normalized()
        found = measure_subject(subject, threads=1)
        written = OrtSession(subject.bundle.model, threads=1, optimized=False).predict(images)
        requantized = OrtSession(subject.bundle.model, threads=1).predict(images)
    assert found.outputs is not None
    (values,) = found.outputs.values()
    assert np.array_equal(values, written)
    assert not np.array_equal(values, requantized)
    made = check([out], Baseline(), Options(update=True, threads=1))
    assert made.baseline is not None
    assert "Made for openvino: run as written" in made.cases[0].notes[0]
    for options in (Options(strict=True, threads=1), Options(strict=True, threads=1, optimized=False)):
        outcome = check([out], made.baseline, options)
        assert outcome.exit_code == 0
        assert "integer_ops" not in {row.metric for row in outcome.cases[0].rows}
        assert "float biases" in outcome.cases[0].notes[0]


def test_a_bias_whose_scale_is_no_number_reaches_no_runtime(bundle: Path, baseline: Baseline, tmp_path: Path) -> None:
    inject("bias_zeroed", bundle, tmp_path / "faulty")
    file = File(onnx.load(str(bundle / "model.onnx")))
    bias = file.bias(file.layers[-1])
    assert bias is not None
    file.put(bias, 1, np.full_like(file.value(bias.input[1]), np.nan))
    onnx.save(file.model, str(tmp_path / "faulty" / "model.onnx"))
    seal(tmp_path / "faulty")
    outcome = check([tmp_path / "faulty"], baseline, Options(threads=1))
    assert outcome.exit_code == 2
    names(outcome.cases[0].error, "linear.bias", "above 0")
    made = check([tmp_path / "faulty"], Baseline(), Options(update=True, threads=1)).baseline
    assert made is not None
    assert not made.cases


@pytest.mark.parametrize(
    ("field", "value"),
    [("codes", ""), ("scales", ""), ("codes_sketch", "AAAA"), ("scales", "/////w=="), ("bias_rms", "inf")],
)
def test_facts_of_a_layer_that_do_not_fit_together_are_refused(
    bundle: Path, baseline: Baseline, field: str, value: str
) -> None:
    (case,) = baseline.cases.values()
    layers = dict(case.facts["layers"])
    # Other hashes, so that the numbers beside them are looked at.
    layers["conv3"] = {**layers["conv3"], "codes_sha256": "0", "scales_sha256": "0", field: value}
    changed = Baseline(cases={"toy": replace(case, facts={**case.facts, "layers": layers})})
    outcome = check([bundle], changed, Options(threads=1))
    assert outcome.exit_code == 2
    names(outcome.cases[0].error, "conv3", "damaged")


def test_one_layer_rewritten_fails_where_no_image_answers_for_it(
    bundle: Path, baseline: Baseline, tmp_path: Path
) -> None:
    inject("swapped_classes", bundle, tmp_path / "faulty")
    loose = Options(threads=1, tolerances=dict.fromkeys(("agreement", "plain_agreement", "flips", "kl"), 1e9))
    outcome = check([tmp_path / "faulty"], baseline, loose)
    rows = {row.metric: row for row in outcome.cases[0].rows}
    assert rows["kl"].verdict == "ok"
    assert rows["structure"].verdict == "regressed"
    assert "linear" in rows["structure"].reason
    assert "no other layer changed" in rows["structure"].reason
