"""The table of stages: what is added to it shows everywhere, and nothing else has to know of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dfqkit.cli import main
from dfqkit.config.reading import load_recipe
from dfqkit.config.recipe import Recipe
from dfqkit.progress import silent
from dfqkit.run.context import Context
from dfqkit.run.execution import execute
from dfqkit.run.folder import RunFolder
from dfqkit.run.provenance import provenance
from dfqkit.run.stage import Part, Plan, Stage, StageResult
from dfqkit.run.stages import STAGES
from dfqkit_export.report import Report

RECIPE = "digits/dfq-w8a8-ort"

Output = pytest.CaptureFixture[str]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A toy stage in two parts before the export, all others replaced by stand-ins; gives what was run."""
    ran: list[str] = []

    def stand_in(name: str) -> Callable[[Context], StageResult]:
        def run(context: Context) -> StageResult:
            ran.append(f"{name}{context.part.name}")
            file = context.file(f"{name}.bin")
            file.write_text("x")
            if name != "validate":
                return StageResult(files=[file.name], facts={"found": 1})
            report = Report(title="toy", provenance=provenance(context, name))
            (context.folder.path / "report.json").write_text(report.to_json())
            return StageResult(files=["report.json"])

        return run

    added = Stage(
        name="prune", help="cut what is not needed", run=stand_in("prune"), plan=lambda _: Plan(text="cuts 3 layers"),
        parts=lambda _: (Part(), Part(name="B")),
    )  # fmt: skip
    before = dict(STAGES)
    STAGES.clear()
    for name, stage in before.items():
        if name == "export":
            STAGES["prune"] = added
        STAGES[name] = replace(stage, run=stand_in(name))
    monkeypatch.chdir(tmp_path)
    yield ran
    STAGES.clear()
    STAGES.update(before)


def test_help_and_plan_tell_of_it(toy: list[str], capsys: Output) -> None:
    assert main(["run", "--help"]) == 0
    listed = [line.split() for line in capsys.readouterr().out.partition("stages, in order:")[2].splitlines()]
    assert ["prune", "cut", "what", "is", "not", "needed"] in listed
    assert main(["run", RECIPE, "--dry-run"]) == 0
    assert "\nprune       cuts 3 layers\nexport " in capsys.readouterr().out
    assert toy == []


def test_a_run_does_it_in_its_place_and_the_report_says_how_long(toy: list[str], capsys: Output) -> None:
    assert main(["run", RECIPE, "--out", "here"]) == 0
    done = ["synthesize", "quantize", "distill", "prune", "pruneB", "export", "validate"]
    assert toy == done  # nothing to train
    report = Report.from_json(Path("here/report.json").read_text())
    assert list(report.provenance["seconds"]) == ["synthesize", "quantize", "distill", "prune", "export"]
    folder = RunFolder.open("here")
    assert folder.facts("prune") == {"found": 1, "B": {"found": 1}}
    assert folder.facts("train") == {}
    Path("here/prune.B.bin").unlink()
    assert main(["run", "--resume", "here"]) == 0
    assert toy == [*done, "prune", "pruneB"]  # the same files: nothing after it is done again


def test_it_is_done_alone_and_asked_for(toy: list[str], capsys: Output) -> None:
    assert main(["run", "--only", "synthesize", RECIPE, "--out", "here"]) == 0
    for name in ("quantize", "distill"):
        assert main(["run", "--only", name, "here"]) == 0
    assert "Next: dfqkit run --only prune here" in capsys.readouterr().err
    assert main(["run", "--only", "export", "here"]) == 2
    assert "needs 'prune'" in capsys.readouterr().err
    assert main(["run", "--only", "prune", "here"]) == 0
    assert toy == ["synthesize", "quantize", "distill", "prune", "pruneB"]
    assert json.loads(Path("here/manifest.json").read_text())["stages"]["prune"]["status"] == "complete"


def test_room_for_what_it_stores_is_asked_for(toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(RECIPE)
    folder = RunFolder.create(tmp_path / "r", recipe_text=recipe.to_yaml(), digest=recipe.digest(), facts={})
    asked: list[int] = []
    monkeypatch.setattr(RunFolder, "require_space", lambda self, size: asked.append(size))

    def sized(size: int, _: Recipe) -> Plan:
        return Plan(text="", size=size)

    for size in (0, 1000):
        STAGES["prune"] = replace(STAGES["prune"], plan=partial(sized, size))
        execute(folder, recipe, [], device="cpu", progress=silent())
    assert asked[1] - asked[0] == 1000
