"""The comparison: which trials there are, that they cost the same, what the tables say, and that it continues."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from dfqkit.bench.grid import Grid, Trial, contestants
from dfqkit.bench.imagestats import image_statistics
from dfqkit.bench.page import page
from dfqkit.bench.plots import cost_plot, drop_plot
from dfqkit.bench.shared import _BENCHES, share
from dfqkit.bench.table import document, markdown, rows, spread, text_of
from dfqkit.bench.trials import Bench
from dfqkit.cli import main
from dfqkit.config.files import list_recipes
from dfqkit.progress import silent
from dfqkit.run.folder import RunFolder
from dfqkit.run.parts import InOrder
from dfqkit_export.errors import ArtefactError, BusyError, RecipeError
from dfqkit_export.report.svg import nice_step
from tests._messages import raises_naming
from tests._scattered import Scattered
from tests._toys import toy_teacher


def grid(**changes: Any) -> Grid:
    given: dict[str, Any] = {
        "contestants": contestants(["digits/dfq-w8a8-ort"]),
        "bits": ("w8a8", "w4a4"),
        "seeds": (0, 1),
        "passes": 640,
        "images": 64,
    }
    return Grid(**(given | changes))


def trial(contestant: str, bits: str, seed: int, drop: float, mode: str = "calibration") -> dict[str, Any]:
    def metric(name: str, value: float) -> dict[str, Any]:
        return {"name": name, "value": value, "stderr": 0.1}

    values = {"top1": 90 - drop, "top1_drop": drop, "agreement": 99 - drop, "kl": drop / 10, "integer_ops": 100.0}
    return {
        "contestant": contestant, "method": contestant, "bits": bits, "mode": mode, "seed": seed,
        "metrics": [metric(name, value) for name, value in values.items()], "teacher_top1": 90.0,
        "cost": {"synthesis": 640, "game": 64 if mode == "distilled" else 0},
        "seconds": {"synthesis": 2.0 + seed, "game": 0.0},
        "images": {"class_coverage": 1.0, "class_evenness": 0.9, "confidence": 0.8, "bn_distance": None,
                   "diversity": 0.5 + seed},
    }  # fmt: skip


DROPS = {("dfq", "w8a8"): 0.25, ("<b>noise</b>", "w8a8"): 60.0, ("dfq", "w4a4"): 3.0, ("<b>noise</b>", "w4a4"): 70.0}
CELLS = [trial(name, bits, seed, drop + seed) for seed in (0, 1) for (name, bits), drop in DROPS.items()]
PROVENANCE = {
    "title": "digits: 2 sources", "command": "dfqkit bench x", "teacher": "t", "data": "real (3 images)",
    "target": "ort", "passes": 640, "images": 64, "threads": 1,
    "environment": {"packages": {"torch": "2"}, "cpu": {"model": "c"}},
}  # fmt: skip
REAL = {"class_coverage": 1.0, "class_evenness": 1.0, "confidence": 0.99, "bn_distance": 0.01, "diversity": 0.9}


def test_the_grid_is_seeds_by_contestants_by_bits() -> None:
    assert [c.folder for c in grid().calibrated()] == [
        "dfq/w8a8-calibration-s0", "dfq/w4a4-calibration-s0", "dfq/w8a8-calibration-s1", "dfq/w4a4-calibration-s1",
    ]  # fmt: skip
    assert [c.folder for c in grid(distilled_bits=("w4a4",)).distilled(["dfq"])] == [
        "dfq/w4a4-distilled-s0", "dfq/w4a4-distilled-s1",
    ]  # fmt: skip


def test_every_trial_of_a_contestant_has_the_same_synthesis_at_the_budget() -> None:
    compared = grid(distill={"steps": 3}, distilled_bits=("w4a4",))
    shared = compared.synthesis_recipe("dfq", 1)
    batch = shared.synthesis.batch  # type: ignore[attr-defined]
    assert shared.synthesis.warmup * batch == 640  # type: ignore[attr-defined]
    assert shared.quant.bits == "w8a8"  # type: ignore[attr-defined]
    playing = grid(contestants=contestants(["digits/zskt-w8a8-ort"]))
    assert playing.synthesis_recipe("zskt", 0).quant.bits == "w4a4", "the opponent"  # type: ignore[attr-defined]
    for one in compared.calibrated() + compared.distilled(["dfq"]):
        recipe = compared.recipe(one)
        assert recipe.synthesis == shared.synthesis
        assert recipe.bank == shared.bank
        assert (recipe.seed, recipe.quant.bits) == (one.seed, one.bits)  # type: ignore[attr-defined]
        assert (recipe.distill is None) == (one.mode == "calibration")


def test_contestants_are_found_by_pattern_and_must_be_comparable() -> None:
    found = contestants(["digits/dfq-*-ort"])
    assert set(found) == {"digits-dfq-w4a4-ort", "digits-dfq-w8a8-ort"}
    assert set(contestants(["digits/dfq-w8a8-ort"])) == {"dfq"}
    with pytest.raises(RecipeError, match="No shipped recipe fits 'digit/"):
        contestants(["digit/*"])
    with pytest.raises(RecipeError, match="differ in 'teacher'"):
        contestants(["digits/dfq-w8a8-ort", "cifar10-resnet20/dfq-w8a8-ort"])
    with pytest.raises(RecipeError, match=r"validate\.data"):
        contestants(["digits/dfq-w8a8-ort"], ["validate.data=null"])


def test_what_is_in_a_file_counts_and_not_where_it_lies(tmp_path: Path) -> None:
    text = list_recipes()["digits/noise-w8a8-ort"].read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text)
    with raises_naming(RecipeError, "digits/noise-w8a8-ort"):
        contestants(["digits/noise-w8a8-ort", str(tmp_path / "mine.yaml")])
    text = text.replace("name: digits/noise", "name: mine/hiss")
    for name in ("teacher.safetensors", "test.npz"):
        (tmp_path / name).write_bytes((list_recipes()["digits/noise-w8a8-ort"].parent / name).read_bytes())
    (tmp_path / "mine.yaml").write_text(text)
    assert set(contestants(["digits/noise-w8a8-ort", str(tmp_path / "mine.yaml")])) == {"noise", "hiss"}
    (tmp_path / "teacher.safetensors").write_bytes(b"another one")
    with pytest.raises(RecipeError, match="differ in 'teacher'"):
        contestants(["digits/noise-w8a8-ort", str(tmp_path / "mine.yaml")])
    folder = list_recipes()["digits/noise-w8a8-ort"].parent
    text = text.replace("teacher.safetensors", str(folder / "teacher.safetensors")).replace(
        "test.npz", str(folder / "test.npz")
    )
    (tmp_path / "mine.yaml").write_text(text)
    assert set(contestants(["digits/noise-w8a8-ort", str(tmp_path / "mine.yaml")])) == {"noise", "hiss"}
    (tmp_path / "mine.yaml").write_text(text.replace("{bits: w8a8}", "{bits: w4a4}"))
    assert len(contestants(["digits/noise-w8a8-ort", str(tmp_path / "mine.yaml")])) == 2
    (tmp_path / "mine.yaml").write_text(text.replace("{bits: w8a8}", "{bits: w8a8, equalize: 5}"))
    with pytest.raises(RecipeError, match="differ in 'quant'"):
        contestants(["digits/noise-w8a8-ort", str(tmp_path / "mine.yaml")])


def test_rows_are_means_and_spreads_and_the_best_comes_first() -> None:
    table = rows(CELLS)
    assert [(row["contestant"], row["bits"], row["n"]) for row in table] == [
        ("dfq", "w8a8", 2), ("<b>noise</b>", "w8a8", 2), ("dfq", "w4a4", 2), ("<b>noise</b>", "w4a4", 2),
    ]  # fmt: skip
    assert table[0]["top1_drop"]["mean"] == pytest.approx(0.75)
    assert table[0]["top1_drop"]["stdev"] == pytest.approx(math.sqrt(0.5))
    assert table[0]["synthesis_seconds"]["mean"] == 2.5
    assert spread([1.0]) == {"mean": 1.0, "stdev": None, "values": [1.0]}
    assert spread([None])["mean"] is None
    assert [text_of(spread([1.0, value])) for value in (1.0, 1.001, 1.5)] == ["1.00", "1.00", "1.25 ± 0.35"]


def test_markdown_and_page_show_every_row_and_escape_names() -> None:
    data = document(CELLS, real=REAL, provenance=PROVENANCE, warnings={"dfq": ["<i>beware</i>"]})
    text = markdown(data)
    assert "| dfq | 89.25 ± 0.71 | 0.75 ± 0.71 | 98.25 ± 0.71 | 2 | 640 | 2 |" in text
    assert "| real images | 1.00 | 1.00 | 0.99 | 0.010 | 0.90 |" in text
    assert "dfqkit bench x" in text
    assert "- dfq: <i>beware</i>" in text
    assert "smallest unit" not in text
    tight = document(CELLS, real=REAL, provenance=PROVENANCE | {"passes": 100}, warnings={})
    assert tight["warnings"][0] == "dfq: its smallest unit costs more than the 100 passes"
    assert "at equal cost" not in page(
        document(CELLS, real=REAL, provenance=PROVENANCE | {"passes": None}, warnings={}), {}
    )
    html = page(data, {"dfq, seed 0": b"\x89PNG\r\n\x1a\nrest"})
    assert html.count('src="data:image/png;base64,') == 1
    with pytest.raises(ArtefactError, match="not a PNG"):
        page(data, {"dfq": b"GIF"})
    assert "<b>noise" not in html
    assert html.count("&lt;b&gt;noise") >= 6
    assert "&lt;i&gt;beware" in html
    assert json.loads(json.dumps(data))["rows"][0]["contestant"] == "dfq"
    for plot in re.findall(r"<svg.*?</svg>", html, re.S):
        ElementTree.fromstring(plot)


def test_plots_place_what_is_better_where_the_reader_looks_for_it() -> None:
    table = rows([one for one in CELLS if one["bits"] == "w8a8"])
    circles = re.findall(r'class="dot" (?:cx="([\d.]+)"|d="M([\d.]+))', drop_plot(table))
    dfq, noise = (float(a or b) for a, b in circles)
    assert dfq < noise
    named = re.findall(r"<text[^>]*>([^<]*)</text>", cost_plot(table))
    assert {"dfq", "&lt;b&gt;noise&lt;/b&gt;"} <= set(named), "methods are named at their points"
    heights = [float(y) for y in re.findall(r'class="dot" cx="[\d.]+" cy="([\d.]+)"', cost_plot(table))]
    assert heights[0] < heights[1], "higher accuracy is drawn higher"
    assert [nice_step(span) for span in (1, 7, 40)] == [0.1, 1, 10]
    for span in (0.02, 1, 7, 40, 330):
        assert 2 <= span / nice_step(span) <= 10


def test_image_statistics_against_numpy() -> None:
    teacher = toy_teacher("residual")
    images = torch.randn((24, *teacher.image.shape), generator=torch.Generator().manual_seed(3))
    found = image_statistics(teacher, images)
    logits = teacher.logits(images).double().numpy()
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    share = np.bincount(logits.argmax(1), minlength=5) / 24
    assert found["class_coverage"] == (share > 0).mean()
    assert found["class_evenness"] == pytest.approx(-sum(s * math.log(s) for s in share if s) / math.log(5), abs=1e-9)
    assert found["confidence"] == pytest.approx(p.max(1).mean(), rel=1e-5)
    features: list[torch.Tensor] = []
    handle = teacher.model.head.fc.register_forward_pre_hook(lambda _, x: features.append(x[0]))  # type: ignore[union-attr]
    teacher.logits(images)
    handle.remove()
    v = features[0].double().numpy()
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    cosines = v @ v.T
    assert found["diversity"] == pytest.approx(
        np.mean([1 - cosines[i, j] for i in range(24) for j in range(24) if i != j])
    )
    assert found["bn_distance"] is not None
    assert found["bn_distance"] > 0
    same = image_statistics(teacher, images[:1].expand(24, -1, -1, -1))
    assert same["diversity"] == pytest.approx(0, abs=1e-9)
    assert same["class_evenness"] == 0


@pytest.mark.slow
def test_a_bench_measures_every_trial_once_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = grid(bits=("w8a8",), seeds=(0,), images=32, passes=256)
    bench = Bench.prepare(compared, tmp_path, device="cpu", progress=silent())
    told: list[str] = []
    share(bench, compared.calibrated(), InOrder(), "dfqkit bench")  # as workers do it, who have no more than the job
    assert (tmp_path / "cells" / compared.calibrated()[0].folder / "cell.json").exists()
    elsewhere = Scattered(_BENCHES.clear)
    share(bench, compared.calibrated(), elsewhere, "dfqkit bench")
    assert elsewhere.jobs[0].after == {1: 0}
    first = bench.do(compared.calibrated(), told.append)
    assert len(told) == 1
    assert first[0]["cost"]["synthesis"] == 256
    values = {metric["name"]: metric for metric in first[0]["metrics"]}
    assert values["top1"]["n"] == len(bench.test)
    assert values["top1_drop"]["value"] == pytest.approx(first[0]["teacher_top1"] - values["top1"]["value"])
    assert 0.5 < first[0]["images"]["class_coverage"] <= 1

    def forbidden(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Bench, "_measure", forbidden)
    monkeypatch.setattr(Bench, "synthesis", forbidden)
    assert bench.do(compared.calibrated(), told.append) == first


@pytest.mark.slow
def test_training_a_smaller_student_counts(tmp_path: Path) -> None:
    settings = ["student.steps=20", "student.batch=16", "student.round_every=10"]
    small = contestants(["digits-half/dfq-w8a8-ort"], settings)
    compared = grid(contestants=small, bits=("w8a8",), seeds=(0,), images=32, passes=256)
    (found,) = Bench.prepare(compared, tmp_path, device="cpu", progress=silent()).do(
        compared.calibrated(), lambda _: None
    )
    assert found["cost"]["synthesis"] == 256
    assert found["cost"]["game"] == 2 * 128
    assert found["seconds"]["game"] > 0.05


@pytest.mark.slow
def test_a_comparison_warns_keeps_its_threads_and_mends_what_was_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    words = ["bench", "digits/noise-w8a8-ort", "--seeds", "0", "0", "--images", "32", "--out", str(tmp_path), "-q"]
    assert main([*words, "--threads", "1"]) == 0
    first = capsys.readouterr().out
    assert re.search(r"^- noise: .*noise", first, re.M)
    assert re.search(r"^\| noise .* \| 1 \| 0 \| \d+ \|$", first, re.M)
    (reference,) = tmp_path.glob("teacher-*.npy")
    reference.write_bytes(reference.read_bytes()[:300])
    (tmp_path / "cells" / "noise" / "w8a8-calibration-s0" / "cell.json").unlink()
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert main([*words, "--threads", "2"]) == 2
    assert "began with --threads 1" in capsys.readouterr().err
    torch.set_num_threads(threads)


def test_a_trial_that_another_process_holds_is_left_alone(tmp_path: Path) -> None:
    compared = grid(bits=("w8a8",), seeds=(0,), images=32, passes=256)
    bench = Bench.prepare(compared, tmp_path, device="cpu", progress=silent())
    recipe = compared.recipe(Trial(contestant="dfq", bits="w8a8", seed=0, mode="calibration"))
    path = tmp_path / "cells" / "dfq" / "w8a8-calibration-s0"
    held = RunFolder.create(path, recipe_text=recipe.to_yaml(), digest=recipe.digest(), facts={})
    with held, pytest.raises(BusyError, match="still working on 1 trials"):
        bench.do(compared.calibrated(), lambda _: None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits/dfq-w8a8-ort", "--best", "2"], "give --distill"),
        (["digits/dfq-w8a8-ort", "--distill", "digits/dfq-w8a8-ort"], "has no distill section"),
        (["digits/dfq-w8a8-ort", "--bits", "w9a9"], "w9a9"),
        (["nowhere/*"], "No shipped recipe fits"),
        (
            ["digits/dfq-w8a8-ort", "--distill", "digits/dfq-w4a4-ort", "--contestants", "dqf"],
            "no 'dqf' here; there are dfq",
        ),
    ],
)
def test_mistakes_end_before_any_compute(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["bench", *words, "--out", str(tmp_path / "out"), "-q"])
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "cells").exists()
