"""Parts of one run: done out of order, by processes that know the run's folder alone, they leave the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dfqkit.cli import main
from dfqkit.config.reading import load_recipe
from dfqkit.config.recipe import Recipe
from dfqkit.progress import silent
from dfqkit.run import answering, shared
from dfqkit.run.execution import execute, run_facts
from dfqkit.run.folder import RunFolder
from dfqkit.run.parts import Executor, InOrder
from dfqkit.run.stages import STAGES
from tests._scattered import Scattered
from tests.benchmarks import estimate_rows
from tests.unit.export.conftest import QdqBuilder

ROOT = Path(__file__).parents[2]
SMALL = [
    "bank={calibration: 16, held_out: 16, grading: 40, batch: 8}", "validate.limit=72", "validate.latency_repeats=0",
    "quant.activation_range=percentile", "floors=[]",
]  # fmt: skip
#: The second is near enough and ends the ladder.
NAMED = "{name: cut, percentile: 51}, {name: whole, percentile: 100}, {name: last, percentile: 99.9}"
LADDER = f"ladder={{images: 16, enough: 60, candidates: [{NAMED}]}}"
ON = ["avx512-vnni", "avx-vnni"]  # whose kernels need no emulation to be told of
TWO = "target=[onnxruntime, onnxruntime-arm]"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe(*more: str) -> Recipe:
    return load_recipe("digits/procedural-w8a8-ort", [*SMALL, *more])


def ran(out: Path, wanted: Recipe, stages: list[str], executor: Executor | None = None) -> RunFolder:
    folder = RunFolder.create(out, recipe_text=wanted.to_yaml(), digest=wanted.digest(), facts=run_facts(wanted))
    with folder:
        execute(folder, wanted, stages, device="cpu", progress=silent(), executor=executor)
    return folder


def convolution(path: Path) -> Path:
    b = QdqBuilder()
    y = b.qdq(b.conv(b.qdq("x", "input", zero_point=128), "conv", (3, 4)), "act", zero_point=128)
    g = b.qdq(b.node("GlobalAveragePool", [y], "pool"), "mean", zero_point=128)
    return b.save(path, g, rank=4)


def untimed(value: Any) -> Any:
    """A document without what says how long something took."""
    if isinstance(value, dict):
        return {key: untimed(each) for key, each in value.items() if key not in ("seconds", "page")}
    if isinstance(value, list):
        return [untimed(each) for each in value]
    return value


def left(folder: RunFolder) -> dict[str, Any]:
    """Every file of a run, reports without times; pages show those."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.path.rglob("*") if path.is_file()):
        name = path.relative_to(folder.path).as_posix()
        if path.name.startswith("report.") and path.suffix == ".json":
            report = untimed(json.loads(path.read_text()))
            for table in report["breakdowns"]:
                if "seconds" in table["header"]:
                    at = table["header"].index("seconds")
                    table["rows"] = [[*row[:at], *row[at + 1 :]] for row in table["rows"]]
            found[name] = report
        elif path.suffix not in (".html", ".lock") and name != "manifest.json":
            found[name] = path.read_bytes()
    return found


def test_candidates_made_elsewhere_and_in_any_order_leave_what_one_process_makes(tmp_path: Path) -> None:
    wanted, elsewhere, stages = recipe(LADDER), Scattered(shared._CONTEXTS.clear), ["synthesize", "quantize"]
    in_order = ran(tmp_path / "in-order", wanted, stages)
    scattered = ran(tmp_path / "scattered", wanted, stages, elsewhere)
    assert left(scattered) == left(in_order)
    assert untimed(scattered.facts("quantize")) == untimed(in_order.facts("quantize"))
    assert [row["name"] for row in in_order.facts("quantize")["tried"]] == ["cut", "whole"]
    assert [list(job.indices) for job in elsewhere.jobs] == [[0, 1, 2]]


@pytest.mark.slow
def test_targets_made_elsewhere_and_in_any_order_leave_what_one_process_makes(tmp_path: Path) -> None:
    wanted, elsewhere = recipe(TWO), Scattered(shared._CONTEXTS.clear)
    in_order = ran(tmp_path / "in-order", wanted, list(STAGES))
    assert left(ran(tmp_path / "scattered", wanted, list(STAGES), elsewhere)) == left(in_order)
    assert [job.name for job in elsewhere.jobs] == ["quantize part", "distill part", "export part"]


def test_ranges_of_images_answered_elsewhere_are_measured_as_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "RANGE", 20)  # three batches of 8
    elsewhere = Scattered(shared._CONTEXTS.clear)
    in_order = ran(tmp_path / "in-order", recipe(), list(STAGES))
    assert left(ran(tmp_path / "scattered", recipe(), list(STAGES), elsewhere)) == left(in_order)
    ((ranges,),) = [[job.common["ranges"]] for job in elsewhere.jobs]
    assert ranges == [[0, 24], [24, 48], [48, 72]]


def test_families_proven_elsewhere_are_those_proven_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = Scattered()
    monkeypatch.setattr("dfqkit.run.ray_parts.executor", lambda *_: elsewhere)
    words = ["prove", str(convolution(tmp_path / "model.onnx")), "--json", "--limit", "4", "--on", ",".join(ON)]
    found = []
    for more in ([], ["--cluster", "local"]):
        assert main([*words, *more]) in (0, 1)
        found.append(untimed(json.loads(capsys.readouterr().out)))
    assert found[0] == found[1]
    assert [row["family"] for row in found[0]["rows"]] == ON
    assert elsewhere.jobs[0].alone(1).endswith(f"--on {ON[1]}")


def test_rows_of_the_estimate_are_kept_in_order_whichever_teacher_is_done_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(study: estimate_rows.Study, done: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        for file in ("a", "b"):
            if (study.name, file) not in done:
                yield {"teacher": study.name, "file": file, "drop": 1 / 3, "stderr": 0.0, "seen": {}}

    monkeypatch.setattr(estimate_rows.Study, "rows", rows)
    found = []
    for where in (InOrder(), Scattered()):
        out = tmp_path / f"{len(found)}.jsonl"
        out.write_text('{"teacher": "one", "file": "a"}\n')
        estimate_rows.make(["one", "two", "three"], tmp_path, out, where)
        found.append(out.read_text())
    assert found[0] == found[1]
    kept = [tuple(json.loads(line)[key] for key in ("teacher", "file")) for line in found[0].splitlines()]
    assert kept == [(name, file) for name in ("one", "two", "three") for file in "ab"]


def test_without_a_cluster_nothing_imports_ray_and_with_one_it_says_what_to_install(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["ray"] = None
from dfqkit.cli import main
import dfqkit.run.ladder, dfqkit.run.execution
assert main(["prove", {str(convolution(tmp_path / "model.onnx"))!r}, "--limit", "2", "--on", "avx-vnni"]) in (0, 3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
