"""The gate's parts: significance, verdicts, the baseline's form, renderings."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from dfqkit_export.errors import ArtefactError
from dfqkit_export.estimate import estimate_of
from dfqkit_export.gate import (
    Baseline,
    Case,
    Expected,
    Options,
    Outcome,
    Recorded,
    check,
    check_metrics,
    conclude,
    read_baseline,
    render_json,
    render_junit,
    render_markdown,
    render_text,
    save_cases,
    write_baseline,
)
from dfqkit_export.gate.baseline import environment_changes
from dfqkit_export.gate.graph_diff import compare_signatures
from dfqkit_export.gate.signature import Signature, distances, pack_sketches, read_signature, sketch, unpack_sketches
from dfqkit_export.gate.significance import (
    ImageValues,
    default_tolerance,
    difference_stderr,
    expected_flips,
    image_values,
)
from dfqkit_export.gate.verdicts import judge
from dfqkit_export.measure.kinds import KINDS, Metric
from dfqkit_export.report import Finding, Report
from dfqkit_export.tasks import DEFAULT_TASK, Outputs, Task
from dfqkit_export.tasks.classification import LOGITS
from tests._gate_toy import make_bundle
from tests._messages import raises_naming

HOSTILE = '<script>alert("x")</script> | ]]> \x1b[31m \x00 & *a* [b](c) `d`\n## e'


def per_image(teacher: np.ndarray, logits: np.ndarray) -> dict[str, np.ndarray]:
    return DEFAULT_TASK.per_image({LOGITS: teacher}, {LOGITS: logits})


def metric(value: float | None, name: str = "agreement", stderr: float | None = None, n: int = 1000) -> Metric:
    return Metric(
        name=name, subject="onnxruntime", data="x", value=value, unit="%", n=n, stderr=stderr, higher_is_better=True
    )


def recorded(value: float | None, tolerance: float = 1.0, stderr: float | None = None) -> Recorded:
    return Recorded(value=value, stderr=stderr, n=1000, tolerance=tolerance, higher_is_better=True)


def verdict_of(now: float | None, case: Case | None, **settings: float) -> str:
    (row,) = judge({"agreement": metric(now)}, case, **settings)  # type: ignore[arg-type]
    return row.verdict


@pytest.mark.parametrize(
    ("now", "verdict"),
    [(95.0, "ok"), (94.0, "ok"), (93.99, "regressed"), (96.0, "ok"), (96.01, "improved"), (None, "missing")],
)
def test_a_metric_may_move_by_its_tolerance_in_both_directions(now: float | None, verdict: str) -> None:
    assert verdict_of(now, Case(metrics={"agreement": recorded(95.0)})) == verdict


def test_lower_is_better_turns_the_sides_round() -> None:
    old = Recorded(value=0.1, stderr=None, n=10, tolerance=0.01, higher_is_better=False)
    case = Case(metrics={"kl": old})
    for now, verdict in ((0.12, "regressed"), (0.08, "improved"), (0.105, "ok")):
        (row,) = judge({"kl": metric(now, "kl")}, case)
        assert row.verdict == verdict


def test_two_standard_errors_take_the_place_of_a_smaller_tolerance() -> None:
    case = Case(metrics={"agreement": recorded(95.0, stderr=0.6)})
    (row,) = judge({"agreement": metric(93.5, stderr=0.8)}, case)
    assert (row.verdict, row.tolerance_from) == ("ok", "two standard errors")
    assert row.tolerance == pytest.approx(2.0)  # 2 sqrt(0.6^2 + 0.8^2)
    (row,) = judge({"agreement": metric(93.5, stderr=0.1)}, Case(metrics={"agreement": recorded(95.0, stderr=0.1)}))
    assert (row.verdict, row.tolerance_from) == ("regressed", "stated")


def test_paired_standard_errors_are_those_of_the_mean_difference() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(400, 10))
    first, second = (teacher + rng.normal(0, 0.7, teacher.shape) for _ in range(2))
    sensitive = np.arange(400) < 300
    a, b = (image_values(KINDS.values(), per_image(teacher, logits), sensitive) for logits in (first, second))
    # Independent oracle: the spread over bootstrap samples of the images.
    draws = rng.integers(0, 400, (3000, 400))
    kl = (b.values["kl"] - a.values["kl"])[draws].mean(1).std()
    hits = 100 * (b.values["agrees"].astype(float) - a.values["agrees"])[draws].mean(1).std()
    noise = 10 * np.log10(b.values["noise"][draws].mean(1) / a.values["noise"][draws].mean(1))
    assert difference_stderr("kl", a, b) == pytest.approx(kl, rel=0.08)
    assert difference_stderr("agreement", a, b) == pytest.approx(hits, rel=0.08)
    assert difference_stderr("logit_sqnr_db", a, b) == pytest.approx(noise.std(), rel=0.08)
    assert difference_stderr("flips", a, b) == pytest.approx(
        300 * (b.values["agrees"][:300].astype(float) - a.values["agrees"][:300]).std(ddof=1) / math.sqrt(300)
    )
    assert difference_stderr("agreement", a, a) == 0.0
    assert difference_stderr("integer_ops", a, b) is None


def test_values_per_image_survive_the_baseline() -> None:
    rng = np.random.default_rng(1)
    teacher = rng.normal(size=(37, 5))
    noisy = teacher + rng.normal(0, 0.1, teacher.shape)
    values = image_values(KINDS.values(), per_image(teacher, noisy), np.arange(37) % 2 == 0)
    back = ImageValues.from_dict(json.loads(json.dumps(values.to_dict())))
    assert (back.values["agrees"] == values.values["agrees"]).all()
    assert (back.sensitive == values.sensitive).all()
    np.testing.assert_allclose(back.values["kl"], values.values["kl"], rtol=0.05)
    np.testing.assert_allclose(back.values["noise"], values.values["noise"], rtol=0.05)
    with pytest.raises(ArtefactError, match="damaged"):
        ImageValues.from_dict({"n": 3, "agrees": "!"})


def test_the_tolerance_of_kl_grows_with_it() -> None:
    assert default_tolerance("kl", 0.4, 10) == pytest.approx(0.202)
    assert default_tolerance("flips", 3, 200) == 8
    assert default_tolerance("integer_ops", 100.0, 10) == 0


def test_what_the_choice_of_images_favours_is_allowed_for() -> None:
    power = {"equal_flips": 9.0, "own_flips": 1}
    assert expected_flips(power) == pytest.approx(8 + 2 * 3)
    assert default_tolerance("flips", 1, 100, expected_flips(power)) == 14
    assert default_tolerance("agreement", 99.0, 200, expected_flips(power)) == pytest.approx(7.0)
    assert expected_flips({}) == expected_flips({"equal_flips": "x", "own_flips": math.nan}) == 0.0


@pytest.mark.parametrize(("now", "verdict"), [(94.9, "regressed"), (95.0, "ok")])
def test_a_floor_holds_where_the_tolerance_would_not(now: float, verdict: str) -> None:
    case = Case(metrics={"agreement": recorded(95.5, tolerance=5)}, floors={"agreement": 95.0})
    assert verdict_of(now, case) == verdict


def test_a_floor_of_what_was_not_measured_fails() -> None:
    (row,) = judge({}, Case(metrics={}, floors={"top1": 90.0}))
    assert (row.verdict, row.floor) == ("missing", 90.0)


def test_what_cannot_be_measured_says_why() -> None:
    (row,) = judge({}, Case(metrics={"agreement": recorded(95.0)}), unmeasured={"agreement": "no runtime"})
    assert (row.verdict, row.reason) == ("unmeasured", "no runtime")
    assert not row.fails(strict=False)
    assert row.fails(strict=True)


def test_an_expected_failure_passes_with_its_reason_and_fails_under_strict_once_it_is_gone() -> None:
    expected = Expected(metric="agreement", reason="kernel bug 123")
    baseline = Baseline(cases={"a": Case(metrics={"agreement": recorded(95.0)}, expected_failure=expected)})
    outcome = check_metrics("a", {"agreement": metric(90.0)}, baseline)
    assert not outcome.failed()
    assert outcome.rows[0].verdict == "expected"
    assert "kernel bug 123" in outcome.rows[0].reason
    outcome = check_metrics("a", {"agreement": metric(95.0)}, baseline)
    assert not outcome.failed()
    assert outcome.failed(strict=True)


@pytest.mark.parametrize(("found", "verdict"), [({}, "missing"), ({"agreement": "no runtime"}, "unmeasured")])
def test_what_was_not_measured_neither_failed_as_expected_nor_passed(found: dict[str, str], verdict: str) -> None:
    case = Case(metrics={"agreement": recorded(95.0)}, expected_failure=Expected(metric="agreement", reason="known"))
    (row,) = judge({}, case, unmeasured=found)
    assert row.verdict == verdict


def test_an_update_does_not_end_an_expected_failure() -> None:
    expected = Expected(metric="agreement", reason="kernel bug 123")
    case = Case(metrics={"agreement": recorded(95.0), "kl": recorded(1.0)}, expected_failure=expected)
    now = {"agreement": metric(90.0), "kl": metric(2.5, "kl")}
    outcome = check_metrics("a", now, Baseline(cases={"a": case}), Options(update=True))
    assert outcome.entry is not None
    assert outcome.entry.metrics["agreement"].value == 95.0
    assert outcome.entry.metrics["kl"].value == 2.5
    again = check_metrics("a", now, Baseline(cases={"a": outcome.entry}), Options(strict=True))
    assert [row.verdict for row in again.rows] == ["expected", "ok"]


def test_a_floor_of_no_metric_is_not_recorded() -> None:
    outcome = check_metrics("a", {"agreement": metric(90.0)}, Baseline(), Options(update=True, floors={"agrement": 1}))
    assert outcome.entry is None
    assert outcome.rows[0].metric == "agrement"


def test_a_floor_that_is_there_is_changed_by_hand_only() -> None:
    baseline = Baseline(cases={"a": Case(metrics={"agreement": recorded(95.0)}, floors={"agreement": 90.0})})
    for value in (80.0, 94.0):
        with pytest.raises(ArtefactError, match=r"floor of 90 for agreement.*in the baseline's file"):
            check_metrics("a", {"agreement": metric(95.0)}, baseline, Options(update=True, floors={"agreement": value}))
    same = Options(update=True, floors={"agreement": 90.0})
    assert not check_metrics("a", {"agreement": metric(95.0)}, baseline, same).failed()


def test_a_case_that_the_baseline_lacks_fails() -> None:
    outcome = check_metrics("b", {"agreement": metric(95.0)}, Baseline())
    assert outcome.failed()
    assert "--update" in outcome.rows[0].reason


def test_a_new_metric_of_a_known_case_fails_under_strict_only() -> None:
    baseline = Baseline(cases={"a": Case(metrics={})})
    outcome = check_metrics("a", {"agreement": metric(95.0)}, baseline)
    assert (outcome.verdict(), outcome.failed(), outcome.failed(strict=True)) == ("new", False, True)


def test_the_baseline_survives_its_file_and_reads_like_a_diff(tmp_path: Path) -> None:
    case = Case(
        metrics={"kl": recorded(0.1), "agreement": recorded(None)},
        floors={"kl": 0.5},
        expected_failure=Expected(metric="kl", reason="known"),
        allowed="why",
        files={"model": "a" * 64},
    )
    baseline = Baseline(cases={"b": case, "a": case}, environment={"cpu_flags": ["avx2"]})
    write_baseline(tmp_path / "base.json", baseline)
    assert read_baseline(tmp_path / "base.json") == baseline
    text = (tmp_path / "base.json").read_text()
    keys = [line.strip().split('"')[1] for line in text.splitlines() if line.startswith('  "')]
    assert keys == ["a", "b"]
    assert sum('"tolerance"' in line for line in text.splitlines()) == 4  # a line each
    write_baseline(tmp_path / "again.json", read_baseline(tmp_path / "base.json"))
    assert (tmp_path / "again.json").read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"schema": 2, "cases": {}}',
        '{"schema": 1}',
        '{"schema": 1, "cases": {"a": {"metrics": {"x": {"value": NaN}}}}}',
        '{"schema": 1, "cases": {"a": {"metrics": {"x": {"value": 1, "tolerance": -1, "higher_is_better": true}}}}}',
        '{"schema": 1, "cases": {"a": {"metrics": {}, "expected_failure": {"metric": "x", "reason": " "}}}}',
        '{"schema": 1, "cases": {"a": {"metrics": {}, "facts": [1]}}}',
        '{"schema": 1, "cases": {}, "environment": [1]}',
        "[" * 100_000,
        '{"schema": 1, "cases": {"a": {"metrics": {}}, "a": {"metrics": {}}}}',
        '{"schema": 1, "cases": {"a": {"metrics": {}, "flors": {"x": 1}}}}',
        '{"schema": 1, "cases": {"a": {"metrics": {}, "floors": [1]}}}',
        '{"schema": 1, "cases": {"a": {"metrics": {}, "floors": {"x": 1e400}}}}',
        '{"schema": 1, "cases": {"a": {"metrics": {}, "floors": {"x": 1' + 400 * "0" + "}}}}",
        '{"schema": 1, "cases": {"a": {"metrics": {}, "expected_failure": "x"}}}',
        '{"schema": 1, "cases": {"a": {"metrics": {}, "expected_failure": {"metric": null, "reason": "r"}}}}',
        '{"schema": 1, "cases": {"a": {}}}',
        '{"schema": 1, "cases": {"a": {"metrics": {}, "files": {"model": 3}}}}',
        '{"schema": 1, "cases": {}, "case": {}}',
        '{"schema": 1,\n<<<<<<< HEAD\n "cases": {}}',
    ],
)
def test_a_damaged_baseline_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(ArtefactError, match="Baseline"):
        read_baseline(tmp_path / "base.json")


def test_a_damaged_baseline_says_where_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    path.write_text('{"schema": 1, "cases": {"net": {"metrics": {}, "flors": {}}}}')
    with pytest.raises(ArtefactError, match=r"case 'net'.*'flors'; known are .*floors"):
        read_baseline(path)
    path.write_text('{"schema": 1,\n<<<<<<< ours\n "cases": {}}')
    with pytest.raises(ArtefactError, match=r"merge that was not finished.*Take one side's"):
        read_baseline(path)
    path.write_text('{"schema": 1, "cases": {"net": {"metrics": {"kl": {"value": 1, "tolerance": 1}}}}}')
    with raises_naming(ArtefactError, "net", "higher_is_better"):
        read_baseline(path)


def test_who_records_at_the_same_time_loses_nothing(tmp_path: Path) -> None:
    names = [f"case {index}" for index in range(12)]

    def record_one(name: str) -> None:
        save_cases(tmp_path / "base.json", {name: Case(metrics={})}, {"cpu_flags": []})

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(record_one, names))
    assert sorted(read_baseline(tmp_path / "base.json").cases) == sorted(names)
    assert [path.name for path in tmp_path.iterdir()] == ["base.json"]


def test_a_sketch_measures_the_distance_of_activations() -> None:
    ratios = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values, noise = (rng.normal(0, size, (8, 16, 9, 9)).astype(np.float32) for size in (1.0, 0.2))
        packed = pack_sketches({"a": sketch(values)})
        ratios.append(distances(unpack_sketches(packed), {"a": sketch(values + noise)})["a"])
    assert np.median(ratios) == pytest.approx(0.04, rel=0.25)  # 0.2^2 of the signal
    assert len(next(iter(packed.values()))) == 44
    with pytest.raises(ArtefactError, match="damaged"):
        unpack_sketches({"a": "no base64 at all!"})


def test_a_changed_environment_is_named() -> None:
    before = {"packages": {"onnxruntime": "1.20.0", "numpy": "1"}, "cpu_flags": ["avx2", "avx512_vnni"]}
    now = {"packages": {"onnxruntime": "1.23.0", "numpy": "2"}, "cpu": {"flags": ["avx2", "amx_int8"]}}
    first, second = environment_changes(before, now)
    assert "1.20.0" in first
    assert "1.23.0" in first
    assert "without avx512_vnni and with amx_int8" in second
    assert list(environment_changes({"packages": [], "cpu_flags": "x"}, now)) == []


def report(value: float, verdict_of_it: str = "ok") -> Report:
    findings = (
        [Finding(metric="top1", subject="onnxruntime", value=value, floor=92.0, message="top1 is below its floor.")]
        if verdict_of_it == "failed"
        else []
    )
    latency = Metric(name="latency", subject="onnxruntime", data="x", value=1.0, unit="ms", n=3, higher_is_better=False)
    faster = Metric(name="speedup", subject="onnxruntime", data="x", value=2.0, unit="x", n=3, higher_is_better=True)
    rows = [metric(value, "top1", 0.3), latency, faster]
    return Report(title="recipe", verdict=verdict_of_it, metrics=rows, findings=findings)  # type: ignore[arg-type]


def test_a_report_is_compared_by_its_numbers_and_its_floors(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report(91.0).to_json())
    made = check([path], Baseline(), Options(update=True)).baseline
    assert made is not None
    (case,) = made.cases.values()
    assert list(case.metrics) == ["top1 of onnxruntime on x"]  # times are not gated
    path.write_text(report(89.0).to_json())
    outcome = check([path], made)
    assert (outcome.exit_code, outcome.cases[0].verdict()) == (1, "regressed")
    assert check([path], made, Options(tolerances={"top1": 3.0})).exit_code == 0
    path.write_text(report(91.0, "failed").to_json())
    assert "below its floor" in check([path], made).cases[0].rows[0].reason
    path.write_text("{}")
    assert check([path], made).exit_code == 2
    path.write_text(report(91.0).to_json().replace('"recipe"', '"two\\nlines"', 1))
    assert "no plain text" in check([path], made).cases[0].error


def test_a_tolerance_of_no_metric_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report(91.0).to_json())
    with raises_naming(ArtefactError, "top_1", "top1 of onnxruntime on x"):
        check([path], Baseline(), Options(update=True, tolerances={"top_1": 2.0}))


def test_unused_cases_are_listed_and_fail_under_strict(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report(91.0).to_json())
    made = check([path], Baseline(), Options(update=True)).baseline
    assert made is not None
    more = Baseline(cases={**made.cases, "other": Case(metrics={})}, environment=made.environment)
    outcome = check([path], more)
    assert (outcome.unused, outcome.exit_code) == (("other",), 0)
    assert check([path], more, Options(strict=True)).exit_code == 1


def test_an_update_names_the_environment_that_it_records(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report(91.0).to_json())
    old = Baseline(environment={"packages": {"onnxruntime": "1.2.3"}})
    assert any("onnxruntime was 1.2.3" in line for line in check([path], old).environment)
    assert any("onnxruntime was 1.2.3" in line for line in check([path], old, Options(update=True)).changes)


def test_two_files_of_one_case_are_refused(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(report(91.0).to_json())
    with pytest.raises(ArtefactError, match="More than one file"):
        check([tmp_path / "a.json", tmp_path / "b.json"], Baseline())


@pytest.fixture
def hostile() -> Outcome:
    baseline = Baseline(cases={HOSTILE: Case(metrics={HOSTILE: recorded(95.0), "b": recorded(1.0)})})
    case = check_metrics(HOSTILE, {HOSTILE: metric(80.0), "b": metric(math.pi)}, baseline)
    return Outcome(cases=(case,), unused=(HOSTILE,), strict=True)


def test_json_is_one_document_that_says_all(hostile: Outcome) -> None:
    document = json.loads(render_json(hostile))
    assert (document["schema"], document["verdict"], document["exit_code"]) == (1, "failed", 1)
    (case,) = document["cases"]
    assert case["name"] == HOSTILE
    assert [row["verdict"] for row in case["metrics"]] == ["regressed", "improved"]
    assert case["metrics"][0]["now"] == 80.0


def test_junit_has_a_test_for_each_metric_and_is_well_formed(hostile: Outcome) -> None:
    root = ElementTree.fromstring(render_junit(hostile))
    (suite,) = root
    cases = suite.findall("testcase")
    assert (suite.get("tests"), suite.get("failures")) == ("3", "3")  # the improved one and the unused case: strict
    assert len(cases) == 3
    assert cases[0].get("name", "").startswith("<script>")
    values = {item.get("name"): item.get("value") for item in cases[0].iter("property")}
    assert (values["verdict"], values["now"], values["baseline"]) == ("regressed", "80.0", "95.0")
    assert "\x1b" not in render_junit(hostile).decode()


def test_markdown_and_text_let_nothing_through(hostile: Outcome) -> None:
    text, markdown = render_text(hostile), render_markdown(hostile)
    for rendering in (text, markdown):
        assert "\x1b" not in rendering
        assert "\x00" not in rendering
    assert "<script>" not in markdown
    assert "\n## e" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {7}
    assert text.splitlines()[-1].startswith("FAILED")


def test_worst_comes_first() -> None:
    case = Case(metrics={name: recorded(90.0) for name in "abc"})
    now = {"a": metric(90.0), "b": metric(80.0), "c": metric(50.0)}
    outcome = check_metrics("x", now, Baseline(cases={"x": case}))
    assert [row.metric for row in outcome.rows] == ["c", "b", "a"]


def test_what_is_ok_stays_in_its_order_whatever_the_last_digit() -> None:
    case = Case(metrics={name: recorded(90.0) for name in "abc"})
    for digits in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        now = {name: metric(90.0 - 1e-4 * digit) for name, digit in zip("bca", digits, strict=True)}
        outcome = check_metrics("x", now, Baseline(cases={"x": case}))
        assert [row.metric for row in outcome.rows] == ["b", "c", "a"]


def test_cases_are_in_the_order_of_their_names_failed_ones_first() -> None:
    baseline = Baseline(cases={name: Case(metrics={"agreement": recorded(90.0)}) for name in "abcd"})
    values = {"d": 90.0, "c": 50.0, "b": 90.0, "a": 40.0}
    cases = [check_metrics(name, {"agreement": metric(value)}, baseline) for name, value in values.items()]
    assert [case.name for case in conclude(cases, baseline).cases] == ["a", "c", "b", "d"]


def test_half_a_character_and_line_breaks_in_names_break_nothing(tmp_path: Path) -> None:
    name = "a\nok: 1 case\ud800"
    case = check_metrics(name, {"agreement": metric(80.0)}, Baseline(cases={name: Case(metrics={})}))
    outcome = Outcome(cases=(case,), unused=(name,))
    for text in (render_text(outcome), render_markdown(outcome), render_json(outcome)):
        assert not any(line.startswith("ok: 1 case") for line in text.splitlines()[:-1])
        text.encode()
    assert json.loads(render_json(outcome))["cases"][0]["name"] == name
    assert ElementTree.fromstring(render_junit(outcome)) is not None
    write_baseline(tmp_path / "base.json", Baseline(cases={name: Case(metrics={})}))
    assert list(read_baseline(tmp_path / "base.json").cases) == [name]


def test_the_gate_imports_neither_torch_nor_the_other_half() -> None:
    code = (
        "import sys, dfqkit_export.gate as g; g.check, g.render_junit, g.render_text, g.write_baseline; "
        "bad = {'torch', 'dfqkit', 'yaml', 'rich', 'pydantic', 'PIL'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3] / "export")


class TestLoneChanges:
    """One layer with another scale: an edit where nothing else changed, a calibration where the biases did too."""

    @staticmethod
    def signature(folder: Path) -> Signature:
        return read_signature(onnx.load(str(make_bundle(folder) / "model.onnx")))

    def test_a_doubled_scale_alone_is_wrong_and_with_other_biases_it_is_a_calibration(self, tmp_path: Path) -> None:
        base = self.signature(tmp_path / "toy")
        names = list(base.layers)
        first = base.layers[names[0]]
        doubled = replace(first, output_scale=2 * first.output_scale)
        edited = replace(base, layers={**base.layers, names[0]: doubled})
        (change,) = compare_signatures(base, edited)
        assert (change.kind, change.layer, change.wrong) == ("activation_scale", names[0], True)
        corrected = {name: replace(layer, bias_sha256="another") for name, layer in base.layers.items()}
        calibrated = replace(base, layers={**corrected, names[0]: replace(doubled, bias_sha256="another")})
        assert [change.wrong for change in compare_signatures(base, calibrated)] == [False]

    def test_a_bias_behind_another_scale_is_the_same_one_on_another_grid(self, tmp_path: Path) -> None:
        base = self.signature(tmp_path / "toy")
        first, second, *_ = base.layers
        layers = dict(base.layers)
        layers[first] = replace(layers[first], output_scale=2 * layers[first].output_scale)
        moved = replace(layers[second], input_scale=2 * layers[second].input_scale, bias_sha256="rounded otherwise")
        assert any(change.wrong for change in compare_signatures(base, replace(base, layers={**layers, second: moved})))


def test_the_estimate_rests_on_the_plain_images_of_one_synthesizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "toy")
    asked: list[tuple[int, str]] = []

    def estimate(task: Task, teacher: Outputs, student: Outputs, *, synthesizer: str) -> dict[str, Any]:
        asked.append((len(teacher[LOGITS]), synthesizer))
        assert len(student[LOGITS]) == len(teacher[LOGITS])
        return estimate_of(task, teacher, student, synthesizer=synthesizer)

    monkeypatch.setattr("dfqkit_export.gate.judged.estimate_of", estimate)
    (case,) = check([bundle], Baseline(), Options(update=True)).cases
    assert asked == [(96, "digits")] * len(asked)
    assert any(note.startswith("No estimate of the drop on real images: ") for note in case.notes)


def test_an_update_takes_a_baseline_whose_facts_are_damaged_and_keeps_its_floors(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy")
    recorded_case = check([bundle], Baseline(), Options(update=True, floors={"agreement": 50.0})).cases[0].entry
    assert recorded_case is not None
    layers = {name: {"op": "Conv"} for name in recorded_case.facts["layers"]}
    damaged = replace(recorded_case, facts={**recorded_case.facts, "layers": layers})
    baseline = Baseline(cases={"toy": damaged})
    (case,) = check([bundle], baseline).cases
    assert "Record it again with --update" in case.error
    again = check([bundle], baseline, Options(update=True))
    assert again.exit_code == 0
    assert again.baseline is not None
    assert again.baseline.cases["toy"] == recorded_case
