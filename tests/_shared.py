"""What is dear to make and made once for all processes of a test session: a finished run, an exported file.

What belongs here: the making, each under a lock in the session's folder. Tests read what is here, or copy it and change
the copy; nobody changes the original.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from dfqkit.cli import main
from dfqkit.config.reading import load_recipe
from dfqkit.config.recipe import Recipe
from dfqkit.progress import silent
from dfqkit.run.execution import execute, run_facts
from dfqkit.run.folder import RunFolder
from dfqkit.run.stages import STAGES

RECIPE = "digits/dfq-w4a4-ort"
# A run in which every stage has something to do, and little.
TINY = [
    "synthesis.warmup=4", "synthesis.batch=16", "synthesis.memory=64", "bank.calibration=64", "bank.held_out=32",
    "bank.grading=32", "distill.steps=6", "distill.batch=8", "distill.round_every=2", "distill.judge_every=3",
    "validate.limit=64", "validate.latency_repeats=2", "floors=[]",
    "quant.weight_range=max", "quant.activation_range=percentile",  # the searches take most of a small run
]  # fmt: skip


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the path that ``make`` filled, in the first process that asks; the others wait for it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    path, made = base / "shared" / name, base / "shared" / f"{name}.made"
    path.parent.mkdir(exist_ok=True)
    with FileLock(base / "shared" / f"{name}.lock"):
        if not made.exists():
            make(path)
            made.touch()
    return path


def tiny(*overrides: str) -> Recipe:
    """Return the recipe of the small run with some values changed."""
    return load_recipe(RECIPE, [*TINY, *overrides])


def run(out: Path, *arguments: str, recipe: str = RECIPE, overrides: Sequence[str] = TINY) -> int:
    """Run a recipe as its user does; return the exit code."""
    settings = [part for item in overrides for part in ("--set", item)]
    return main(["run", recipe, "--out", str(out), "-q", "--device", "cpu", *settings, *arguments])


def finished_run(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small run of the digits teacher through all stages."""

    def make(path: Path) -> None:
        assert run(path) == 0

    return once(factory, "run", make)


def new_run(target: Path, wanted: Recipe, *, until: str = "validate") -> RunFolder:
    """Run the stages of a recipe up to and including one, in a new folder or one that has some of them."""
    folder = _folder(target, wanted)
    with folder:
        execute(folder, wanted, _up_to(until), device="cpu", progress=silent())
    return folder


def continued(source: Path, target: Path, wanted: Recipe, *, until: str) -> RunFolder:
    """Begin a run that differs from a finished one only behind a stage, and take over what it shares with that one."""
    folder, finished = _folder(target, wanted), RunFolder.open(source)
    with folder:
        for stage in _up_to(until):
            folder.adopt(stage, finished)
    return folder


def _up_to(stage: str) -> list[str]:
    names = list(STAGES)
    return names[: names.index(stage) + 1]


def _folder(path: Path, wanted: Recipe) -> RunFolder:
    return RunFolder.create(path, recipe_text=wanted.to_yaml(), digest=wanted.digest(), facts=run_facts(wanted))
