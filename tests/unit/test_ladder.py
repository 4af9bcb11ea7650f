"""The ladder: the nearest of several schemes is kept, all of them are in the report, and a killed run goes on."""

from __future__ import annotations

import json
import pkgutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
import yaml
from torch import nn

import dfqkit
from dfqkit import api
from dfqkit.cli.options import Parser, add_recipe_options, add_steering
from dfqkit.config.ladder import FEW_BITS, USUAL, Candidate, LadderConfig
from dfqkit.config.quant import QuantConfig
from dfqkit.config.reading import load_recipe, parse_recipe, recipe_from
from dfqkit.config.recipe import Recipe, ValidateSection
from dfqkit.progress import silent
from dfqkit.run import ladder as climbing
from dfqkit.run.execution import execute, run_facts
from dfqkit.run.folder import RunFolder
from dfqkit.run.validate import steered
from dfqkit.synthesis.methods.noise import NoiseConfig
from dfqkit.synthesis.methods.procedural import ProceduralConfig
from dfqkit.synthesis.methods.zeroq import ZeroQConfig
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import RecipeError
from dfqkit_export.images.stored import StoredBank
from dfqkit_export.measure.kinds import SPEEDUP, TOP1_DROP
from dfqkit_export.report.judging import Judgement
from dfqkit_export.report.page import render_html
from dfqkit_export.report.verdict import FAILED, NOT_JUDGED, OK
from dfqkit_export.tasks import task_of
from tests._messages import raises_naming
from tests._task_nets import UNet
from tests._toys import IMAGE, toy

#: The middle one is the nearest: the others cut what a tenth, or nearly a half, of the values are.
CANDIDATES = [
    {"name": "cut", "percentile": 90},
    {"name": "whole", "percentile": 100},
    {"name": "halved", "percentile": 55},
]
OPTIONS: dict[str, Any] = {
    "synthesis": {"method": "procedural"},
    "bank": {"calibration": 16, "held_out": 8, "grading": 16, "batch": 8},
    "quant": {"scales": "float", "activation_range": "percentile"},
    "validate": {"latency_repeats": 0},
    "floors": [],
}


LADDER: dict[str, Any] = {
    "ladder": {"candidates": CANDIDATES, "images": 12}, "distill": {"steps": 2, "partners": ["w4a8"]},
}  # fmt: skip


def quantized(out: Path, **options: Any) -> RunFolder:
    """Do the stages up to the one that calibrates."""
    teacher = Teacher.from_module(toy("residual"), IMAGE)
    recipe = api._recipe(teacher, "w8a8", ["onnxruntime"], {**OPTIONS, **options})
    folder = RunFolder.create(out, recipe_text=recipe.to_yaml(), digest=recipe.digest(), facts=run_facts(recipe))
    with folder:
        execute(folder, recipe, ["synthesize", "quantize"], device="cpu", progress=silent(), teacher=teacher)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return quantized(tmp_path_factory.mktemp("ladder") / "whole", **LADDER)


def test_the_nearest_on_other_images_is_kept_and_is_what_it_is_without_a_ladder(
    whole: RunFolder, tmp_path: Path
) -> None:
    facts = whole.facts("quantize")
    assert [row["name"] for row in facts["tried"]] == ["cut", "whole", "halved"]
    assert min(facts["tried"], key=lambda row: row["distance"])["name"] == facts["chosen"] == "whole"
    judging = StoredBank.open(whole.path / "images" / "judging.safetensors")
    assert (len(judging), judging.source) == (12, "zeroq:judging")
    alone = quantized(tmp_path / "alone", quant={**OPTIONS["quant"], "percentile": 100}, distill=LADDER["distill"])
    for name in ("calibrated.safetensors", "partner1.safetensors"):
        assert (whole.path / name).read_bytes() == (alone.path / name).read_bytes(), name
    hurried = onnx.load(whole.path / "first.onnx")  # of the first candidate, for whoever does not wait
    assert any(node.op_type == "QuantizeLinear" for node in hurried.graph.node)
    quant = {entry.key: entry.value for entry in hurried.metadata_props}["dfqkit.quant"]
    assert json.loads(quant)["percentile"] == 90


@pytest.mark.parametrize(
    ("place", "call", "left"),
    [
        ("dfqkit.run.ladder._measured", 3, 1),  # inside of a rung, calibrated but not measured
        ("dfqkit.run.ladder.calibrate_student", 2, 2),  # inside of a rung, before it is calibrated
        ("dfqkit.run.folder.RunFolder.save_state", 3, 2),  # inside of a rung, measured but not stored
        ("dfqkit.students.student.save_student", 1, 0),  # behind the last rung
    ],
)
def test_killed_at_any_rung_it_ends_with_the_same_bytes(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, call: int, left: int
) -> None:
    class Killed(BaseException):
        pass

    module, _, name = place.rpartition(".")
    owner: Any = pkgutil.resolve_name(module)
    real, calls = getattr(owner, name), []

    def killing(*given: Any, **more: Any) -> Any:
        calls.append(given)
        if len(calls) == call:
            raise Killed
        return real(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing)
        with pytest.raises(Killed):
            quantized(tmp_path / "killed", **LADDER)
    (tmp_path / "killed" / "calibrated.safetensors").unlink(missing_ok=True)  # it is in the state, too
    measured, again = climbing._measured, []
    monkeypatch.setattr(climbing, "_measured", lambda *given: (again.append(given), measured(*given))[1])
    quantized(tmp_path / "killed", **LADDER)
    assert len(again) == left
    for file in ("calibrated.safetensors", "partner1.safetensors"):
        assert (tmp_path / "killed" / file).read_bytes() == (whole.path / file).read_bytes(), file


def test_the_report_has_a_row_for_each_and_the_file_is_of_the_nearest(tmp_path: Path) -> None:
    options = {**OPTIONS, "ladder": {"candidates": CANDIDATES[1:], "images": 8, "enough": 1}}
    done = dfqkit.quantize(toy("residual"), image=IMAGE, out=tmp_path / "out", options=options)
    facts = RunFolder.open(done.folder).facts("quantize")
    assert (facts["chosen"], len(facts["tried"])) == ("whole", 1)
    table = next(each for each in done.report.breakdowns if each.title == "Candidates")
    first, second = table.rows
    assert (first[:2], first[-1]) == (("whole", "percentile: 100.0"), "chosen")
    assert second == ("halved", "percentile: 55.0", *[None] * 5, "not tried")
    assert (float(str(first[2])), first[3]) == (
        pytest.approx(facts["tried"][0]["distance"], rel=1e-3),
        facts["tried"][0]["kept"],
    )
    assert table.data == "8 images of zeroq:judging"
    assert "'whole' keeps enough" in table.note
    page = render_html(done.report)
    assert all(text in page for text in ("Candidates", "percentile: 55.0", "chosen", "not tried"))
    quant = {entry.key: entry.value for entry in onnx.load(done.model).metadata_props}["dfqkit.quant"]
    assert json.loads(quant)["percentile"] == 100
    assert not (done.folder / "first.onnx").exists()
    assert done.report.metric("student_agreement", "onnxruntime").value == 100  # type: ignore[union-attr]


def test_a_candidate_that_is_another_again_is_not_made_again(tmp_path: Path) -> None:
    candidates = [{"name": "plain"}, {"name": "alike", "equalize": 20}, {"name": "cut", "percentile": 60}]
    torch.manual_seed(0)
    blocked = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    teacher = Teacher.from_module(blocked.eval(), IMAGE)
    ladder = {"candidates": candidates, "images": 8, "max_size": 1}
    done = dfqkit.quantize(
        teacher, out=tmp_path, options={**OPTIONS, "validate": {"latency_repeats": 3}, "ladder": ladder}
    )
    plain, alike, cut = RunFolder.open(done.folder).facts("quantize")["tried"]
    assert alike == {**plain, "name": "alike", "as": "plain", "seconds": 0.0}
    assert "as" not in cut
    table = next(each for each in done.report.breakdowns if each.title == "Candidates")
    assert [row[-1] for row in table.rows] == ["chosen", "as plain", ""]
    page = render_html(done.report)
    assert all(f"distance by {across}" in page for across in ("size, MB", "time of a call", "seconds"))
    assert plain["bytes"] == done.model.stat().st_size
    assert cut["call"] > 0, "in calls of the first candidate's file"
    assert all(row.ms is not None and row.ms > 0 for row in done.report.layers), "and each layer's time"


def test_what_bounds_a_run_is_asked_for_in_python_and_kept_in_its_recipe(tmp_path: Path) -> None:
    options = {**OPTIONS, "ladder": {"candidates": CANDIDATES[1:], "images": 8}}
    bounds = {"max_time": 5, "max_drop": 99.0, "max_size": 1.0, "min_speedup": 1e6}
    done = dfqkit.quantize(toy("residual"), image=IMAGE, out=tmp_path, options=options, **bounds)
    kept = RunFolder.open(done.folder)
    facts = kept.facts("quantize")
    assert "'whole' keeps enough" in facts["stopped"]
    assert facts["tried"][0]["bytes"] == pytest.approx(done.model.stat().st_size, rel=0.01)
    written = parse_recipe(done.report.recipe, "again")
    assert written.ladder is not None
    assert (written.ladder.max_time, written.ladder.max_drop, written.ladder.max_size) == (5, 99, 1)
    assert [finding.metric for finding in done.report.findings] == ["speedup"]
    assert "nothing was timed" in done.report.findings[0].message


@pytest.mark.parametrize(("size", "facts"), [(1e-4, ("a byte each",)), (0.006, ("'whole' 0.", "'halved' 0."))])
def test_a_size_that_no_candidate_has_is_refused(tmp_path: Path, size: float, facts: tuple[str, ...]) -> None:
    with raises_naming(RecipeError, "ladder.max_size", f"{size:g} MB", *facts):
        quantized(tmp_path / "out", ladder={"candidates": CANDIDATES[1:], "images": 8, "max_size": size})


def test_one_that_is_too_large_is_never_before_one_that_fits() -> None:
    rows = [{**row("large", 0.1, kept=99.9), "over": True, "bytes": 3}, row("small", 0.3)]
    assert climbing.nearest(rows)["name"] == "small"
    assert climbing._stopped(LadderConfig(max_drop=1), rows[:1]) == ""


def test_a_drop_that_may_be_lost_ends_the_ladder_once_as_many_answers_stay() -> None:
    config = LadderConfig(max_drop=2)
    assert climbing._stopped(config, [row("a", 0.1, kept=97.9)]) == ""
    assert "'a'" in climbing._stopped(config, [row("a", 0.1, kept=98.0)])
    assert climbing._stopped(config, [row("a", 0.1, kept=97.9), row("b", 0.2, kept=99.0)]) == ""  # is not the file


def measured(**facts: Any) -> Any:
    return SimpleNamespace(**{"metrics": [], "drops": [], "seen": [], "estimate": {}, **facts})


def test_the_verdict_says_whether_bounds_hold() -> None:
    asked = recipe({"max_drop": 1.0})
    drop = TOP1_DROP.metric(subject="onnxruntime", data="real:x", value=1.5, n=1000)
    assert [each.value for each in steered(asked, measured(drops=[drop]))[0]] == [1.5]
    assert steered(recipe({"max_drop": 2}), measured(drops=[drop])) == ([], [])
    told = {"trusted": True, "value": 1.2, "high": 2.1}
    assert [each.value for each in steered(asked, measured(estimate=told))[0]] == [1.2]
    found, unknown = steered(recipe({"max_drop": 2}), measured(estimate=told))
    assert (found, "reaches to 2.10" in unknown[0]) == ([], True)
    assert steered(recipe({"max_drop": 3}), measured(estimate=told)) == ([], [])
    shown = SimpleNamespace(agreement=98.5, kept=None, n=64, data="synthetic:x")
    found, unknown = steered(asked, measured(seen=[shown], estimate={**told, "trusted": False}))
    assert not found
    assert "98.5 %" in unknown[0]
    assert Judgement(verdict=OK).without(unknown).verdict == NOT_JUDGED
    assert Judgement(verdict=OK).without([]).verdict == OK
    assert Judgement(verdict=FAILED).without(unknown).verdict == FAILED
    assert steered(recipe({"max_drop": 2}), measured(seen=[shown])) == ([], [])


@pytest.mark.parametrize(("interval", "fails"), [((1.7, 1.99), True), ((1.9, 2.0), False), ((2.1, 2.3), False)])
def test_a_speed_fails_only_where_all_of_its_interval_is_below(interval: tuple[float, float], fails: bool) -> None:
    speed = SPEEDUP.metric(subject="onnxruntime", data="1x3x16x16", value=sum(interval) / 2, n=30, interval=interval)
    asked = recipe({}).model_copy(update={"validation": ValidateSection(min_speedup=2)})
    assert bool(steered(asked, measured(metrics=[speed]))[0]) == fails
    assert steered(recipe(None), measured()) == ([], [])


def test_options_are_keys_of_the_recipe() -> None:
    parser = Parser(prog="dfqkit run")
    add_recipe_options(parser)
    add_steering(parser)
    words = ["--set", "seed=3", "--max-time", "5", "--max-drop", "0.5", "--max-size", "2", "--min-speedup", "1.5"]
    given = load_recipe("digits/dfq-w8a8-ort", parser.parse_args(words).overrides)
    assert given.ladder == LadderConfig(max_time=5, max_drop=0.5, max_size=2)
    assert (given.seed, given.validation.min_speedup) == (3, 1.5)


def row(name: str, distance: float | None, seconds: float = 1.0, kept: float = 90.0) -> dict[str, Any]:
    return {"name": name, "distance": distance, "kept": kept, "seconds": seconds}


def test_the_first_of_several_as_near_is_kept_and_one_that_is_not_finite_never_before_others() -> None:
    rows = [row("a", None), row("b", 0.3), row("c", 0.2), row("d", 0.2)]
    assert climbing.nearest(rows)["name"] == "c"
    assert climbing.nearest(rows[:1])["name"] == "a"


def test_one_with_layers_in_float_must_be_twice_as_near() -> None:
    assert not any(each.slower for each in USUAL)
    assert Candidate(name="partly", costly_in_float=0.2).slower
    for distance, kept in ((0.2, "whole"), (0.1, "whole"), (0.09, "partly")):
        rows = [row("whole", 0.2), {**row("partly", distance), "slower": True}]
        assert climbing.nearest(rows)["name"] == kept


def test_the_clock_stops_it_by_the_seconds_that_are_stored() -> None:
    config = LadderConfig(max_time=1)
    assert climbing._stopped(config, []) == ""
    assert climbing._stopped(config, [row("a", 0.1, 40)]) == ""
    assert "1 minutes" in climbing._stopped(config, [row("a", 0.1, 40), row("b", 0.1, 21)])
    assert climbing._stopped(config, [row(each.name, 0.1, 40) for each in USUAL]) == ""  # nothing was left out


def test_who_judges_is_of_another_kind() -> None:
    norms = frozenset({"batchnorm"})
    assert isinstance(climbing.usual_judge(ProceduralConfig(), norms), ZeroQConfig)
    assert isinstance(climbing.usual_judge(ZeroQConfig(), norms), ProceduralConfig)
    assert isinstance(climbing.usual_judge(NoiseConfig(accept_noise=True), frozenset()), ProceduralConfig)
    assert climbing.usual_judge(ProceduralConfig(), frozenset()) not in (ProceduralConfig(), ZeroQConfig())


def recipe(ladder: object, **quant: Any) -> Recipe:
    text = """
    schema: 1
    name: toy
    why: a scheme is chosen
    teacher: {factory: "tests._toys:Residual"}
    image: {shape: [3, 16, 16], mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25], classes: 5}
    synthesis: {method: procedural}
    """
    return recipe_from({**yaml.safe_load(text), "ladder": ladder, "quant": quant}, "toy")


def test_candidates_set_what_they_name_and_no_more() -> None:
    given = recipe(
        {"candidates": [{"name": "a", "equalize_values": 0.0}, {"name": "b"}]}, equalize_values=0.5, percentile=99
    )
    again = parse_recipe(given.to_yaml(), "again")
    assert again == given
    assert again.digest() == given.digest()
    assert again.ladder is not None
    assert again.ladder.schemes(again.quant) == {
        "a": QuantConfig(percentile=99), "b": QuantConfig(percentile=99, equalize_values=0.5),
    }  # fmt: skip
    usual = recipe({})
    assert usual.ladder is not None
    assert usual.ladder.candidates == USUAL
    assert "ladder" not in recipe(None).to_yaml()


def test_a_candidate_may_choose_codes_together(tmp_path: Path) -> None:
    candidates = [{"name": "nearest"}, {"name": "together", "weight_rounding": "gptq", "eight_bit_share": 0.3}]
    more = {"ladder": {"candidates": candidates, "images": 8}, "quant": {**OPTIONS["quant"], "bits": "w3a8"}}
    done = dfqkit.quantize(toy("residual"), image=IMAGE, out=tmp_path, options={**OPTIONS, **more, "distill": None})
    assert RunFolder.open(done.folder).facts("quantize")["chosen"] == "together"
    table = next(each for each in done.report.breakdowns if each.title == "Bits of layers")
    assert {row[3] for row in table.rows} == {3, 8}
    assert done.report.metric("student_agreement", "onnxruntime").value == 100  # type: ignore[union-attr]
    assert "8 bits each" in table.note
    for each in ("Bits of layers", table.rows[0][0]):
        assert str(each) in render_html(done.report)


@pytest.mark.parametrize(
    ("ladder", "facts"),
    [
        ({"candidates": [{"name": "a", "bits": "w4a8"}]}, ("candidates", "'a'", "bits", "quant")),
        ({"candidates": [{"name": "a"}, {"name": "a"}]}, ("two", "'a'")),
        ({"candidates": [{"name": "a", "scale": "float"}]}, ("scale", "scales")),
        ({"candidates": []}, ("ladder.candidates",)),
        ({"judge": {"method": "images", "path": "some.npz"}}, ("ladder.judge", "images", "files")),
        ({"judge": {"method": "bank", "path": "some"}}, ("ladder.judge", "bank", "files")),
        ({"max_time": 0}, ("ladder.max_time",)),
        ({"max_drop": 100}, ("ladder.max_drop", "100")),
    ],
)
def test_what_is_no_ladder_is_refused(ladder: object, facts: tuple[str, ...]) -> None:
    with raises_naming(RecipeError, *facts):
        recipe(ladder)


def default(side: int, sections: dict[str, Any], bits: str = "w8a8") -> Recipe:
    image = dfqkit.ImageSpec(**{**IMAGE.to_dict(), "shape": (3, side, side)})
    return api._recipe(
        Teacher.from_module(toy("residual"), image), bits, ["onnxruntime"], sections, sections.get("quant", {})
    )


def test_a_classifier_of_large_images_has_a_ladder_by_default() -> None:
    large = default(96, {})
    assert (large.synthesis, large.quant.scales, large.bank.calibration) == (ProceduralConfig(), "float", 64)
    assert large.ladder is not None
    assert (large.ladder.candidates, large.ladder.max_time) == (USUAL, 20)
    pinned = default(96, {"quant": {"equalize": 20}}).ladder
    assert pinned is not None
    assert {"equalize"} == {"equalize"} - {key for each in pinned.candidates for key in each.sets}
    assert default(96, {"quant": {"activation_range": "mse"}}).ladder is None
    assert default(96, {"ladder": None}).ladder is None


def test_so_has_any_other_task_that_looks_for_no_objects() -> None:
    image = dfqkit.ImageSpec(shape=(3, 96, 96), mean=IMAGE.mean, std=IMAGE.std)
    teacher = Teacher.from_module(UNet(), image, task=task_of({"name": "dense"}))
    large = api._recipe(teacher, "w8a8", ["onnxruntime"], {})
    assert (large.synthesis, large.ladder is not None, large.quant.scales) == (ProceduralConfig(), True, "float")


def test_weights_of_few_bits_are_chosen_together_on_pulled_images_by_default() -> None:
    large = default(96, {}, "w4a8")
    assert (large.quant.bits, large.quant.weight_rounding, large.distill) == ("w4a8", "gptq", None)
    assert isinstance(large.synthesis, ZeroQConfig)
    assert (large.synthesis.start, large.synthesis.bn) == ("procedural", "normals")
    assert large.ladder is not None
    assert large.ladder.candidates == FEW_BITS
    shared = default(96, {"quant": {"eight_bit_share": 0.1, "equalize": 20}}, "w4a8")
    assert (shared.quant.eight_bit_share, shared.quant.weight_rounding) == (0.1, "gptq")
    assert shared.ladder is not None
    assert shared.ladder.candidates == FEW_BITS[:2]
    coarse, _ = api.prepare(
        toy("residual"),
        image=large.image.spec(),
        bits="w8a8",
        target="onnxruntime",
        overrides=["quant.weight_granularity=per_tensor"],
    )
    assert coarse.ladder is not None
    assert (coarse.quant.bits, coarse.ladder.candidates) == ("w8a8", FEW_BITS)
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    without = api._recipe(Teacher.from_module(plain, large.image.spec()), "w4a8", ["onnxruntime"], {})
    assert without.synthesis == ProceduralConfig()


@pytest.mark.parametrize(
    ("side", "sections", "bits"),
    [(64, {}, "w8a8"), (96, {"synthesis": {"method": "procedural"}}, "w8a8"), (96, {}, "w4a4")],
)
def test_others_have_none(side: int, sections: dict[str, Any], bits: str) -> None:
    found = default(side, sections, bits)
    assert found.ladder is None
    assert found.quant == QuantConfig(bits=bits)
