"""One entry of a comparison: its synthesis, its student, its file, and what the runtime makes of the test images.

What belongs here: doing the work and keeping it, each step in a run's folder, so that an interrupted comparison goes on
where it was and two processes can share one (each leaves alone what the other is working on).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dfqkit.bench.grid import Grid, Trial
from dfqkit.bench.imagestats import MOST, image_statistics
from dfqkit.config.recipe import Recipe
from dfqkit.images import ImageBank
from dfqkit.progress import Progress
from dfqkit.run import distill, synthesize, train, validate
from dfqkit.run.answering import real_images
from dfqkit.run.context import resolved_synthesis, teacher_of
from dfqkit.run.execution import execute, run_facts
from dfqkit.run.folder import RunFolder
from dfqkit.run.stages import before
from dfqkit.synthesis.build import require_needs
from dfqkit.teacher.load import Teacher
from dfqkit_export.backends import DEFAULT
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.errors import ArtefactError, BusyError, RecipeError
from dfqkit_export.files import write_bytes
from dfqkit_export.images.labelled import LabelledImages
from dfqkit_export.measure.kinds import AGREEMENT, TOP1_DROP
from dfqkit_export.measure.metrics import integer_share
from dfqkit_export.tasks import CLASSES
from dfqkit_export.tasks.classification import agreement, kl, paired_drop, top1
from dfqkit_export.words import some

#: The stage of a trial's folder that holds what was measured.
MEASURED = "bench"

_MADE = synthesize.STAGE.name
_PLAYED = (train.STAGE.name, distill.STAGE.name)

_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A comparison at work; the labelled test images measure, and choose which sources are distilled."""

    grid: Grid
    out: Path
    teacher: Teacher
    test: LabelledImages
    device: str
    progress: Progress

    @classmethod
    def prepare(cls, grid: Grid, out: Path, *, device: str, progress: Progress) -> Bench:
        """Load what all trials share, and try every contestant and recipe, so that mistakes show before any compute."""
        base = next(iter(grid.contestants.values()))
        for trial in grid.calibrated() + grid.distilled(list(grid.contestants)):
            grid.recipe(trial)
        teacher = teacher_of(base)
        if CLASSES not in teacher.task.offers:
            message = f"A comparison is about classifiers; the teacher is another network ({teacher.task.title})."
            raise RecipeError(message)
        for recipe in grid.contestants.values():
            require_needs(resolved_synthesis(recipe), teacher)
        test = real_images(base)
        if test is None or test.labels is None:
            message = "A comparison needs labelled images (validate.data); these have no labels."
            raise ArtefactError(message)
        return cls(grid=grid, out=out, teacher=teacher, test=test, device=device, progress=progress)

    def do(self, trials: Sequence[Trial], tell: Callable[[str], None]) -> list[dict[str, Any]]:
        """Return the results of all trials, in their order, after doing those that are not done; each gets a line.

        Raises:
            BusyError: When another process still works on some of them; all others are done by then.
        """
        found: dict[Trial, dict[str, Any]] = {}
        busy: list[Trial] = []
        for trial in trials:
            try:
                found[trial] = self.result(trial)
            except BusyError:
                busy.append(trial)
                continue
            tell(f"[{len(found)}/{len(trials)}] {_line(found[trial])}")
        if busy:
            names = some([trial.folder for trial in busy], 3)
            message = (
                f"Another process is still working on {len(busy)} trials ({names}). "
                "Everything else is done: run the same command again when it has ended."
            )
            raise BusyError(message)
        return [found[trial] for trial in trials]

    def result(self, trial: Trial) -> dict[str, Any]:
        """Return what was measured of a trial, after doing it where it is not done."""
        path = self.out / "cells" / trial.folder
        recipe = self.grid.recipe(trial)
        folder = self._open(path, recipe)
        if not folder.done(MEASURED):
            with folder:
                if not folder.done(MEASURED):
                    self._measure(trial, recipe, folder)
        result: dict[str, Any] = json.loads((path / "cell.json").read_text(encoding="utf-8"))
        return result

    def _measure(self, trial: Trial, recipe: Recipe, folder: RunFolder) -> None:
        source = self.synthesis(trial.contestant, trial.seed)
        if not folder.done(_MADE):
            folder.adopt(_MADE, source)
        stages = [stage.name for stage in before(validate.STAGE.name)]
        execute(folder, recipe, stages, device=self.device, progress=self.progress, teacher=self.teacher)
        folder.begin(MEASURED)
        logits = _run(folder.path / "model.onnx", self.test, self.teacher)
        reference = self._reference(folder)
        labels: Any = self.test.labels  # `prepare` saw that there are some
        where: dict[str, Any] = {"subject": DEFAULT.name, "data": f"real:{self.test.name}"}
        result = {
            **asdict(trial),
            "method": recipe.synthesis.method,
            "metrics": [
                asdict(metric)
                for metric in (
                    top1(logits, labels, **where),
                    paired_drop(reference, logits, labels, **where),
                    agreement(reference, logits, **where),
                    kl(reference, logits, **where),
                    integer_share(realised_precision(folder.path / "model.onnx"), subject=DEFAULT.name),
                )
            ],
            "teacher_top1": top1(reference, labels, subject="teacher", data=where["data"]).value,
            "cost": {
                "synthesis": source.facts(_MADE)["cost"],
                "game": sum(folder.facts(stage).get("cost", 0) for stage in _PLAYED),
            },
            "seconds": {"synthesis": source.seconds(_MADE), "game": sum(folder.seconds(stage) for stage in _PLAYED)},
            "images": self._image_statistics(source),
            "recipe": f"cells/{trial.folder}/recipe.yaml",
            "recipe_sha256": recipe.digest(),
        }
        write_bytes(folder.path / "cell.json", (json.dumps(result, indent=2) + "\n").encode())
        folder.finish(MEASURED, ["cell.json"], {})

    def synthesis(self, contestant: str, seed: int) -> RunFolder:
        """Return the finished synthesis of a contestant and a seed."""
        recipe = self.grid.synthesis_recipe(contestant, seed)
        folder = self._open(self.out / "synthesis" / contestant / f"s{seed}", recipe)
        if not folder.done(_MADE):
            with folder:
                if not folder.done(_MADE):
                    execute(folder, recipe, [_MADE], device=self.device, progress=self.progress, teacher=self.teacher)
        return folder

    def _open(self, path: Path, recipe: Recipe) -> RunFolder:
        return RunFolder.create(path, recipe_text=recipe.to_yaml(), digest=recipe.digest(), facts=run_facts(recipe))

    def _reference(self, folder: RunFolder) -> NDArray[np.float32]:
        """Return the teacher's logits on the test images, run once."""
        path = self.out / f"teacher-{self.teacher.sha256[:12]}-{self.test.sha256[:12]}.npy"
        try:
            loaded: NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError):  # not there yet, or cut short
            logits = _run(folder.path / "teacher.onnx", self.test, self.teacher)
            part = path.with_name(f"{os.getpid()}-{path.name}")  # two processes may be here at once
            np.save(part, logits, allow_pickle=False)
            part.replace(path)
            return logits
        return loaded

    def _image_statistics(self, source: RunFolder) -> dict[str, float | None]:
        bank = ImageBank.load(source.path / "images" / "calibration.safetensors", self.teacher)
        device = next(self.teacher.model.parameters()).device
        images, _ = next(iter(bank.batches(MOST, device)))
        return image_statistics(self.teacher, images)

    def real_statistics(self) -> dict[str, float | None]:
        """Return the same numbers of the first test images, as the yardstick."""
        device = next(self.teacher.model.parameters()).device
        images = next(self.test.batches(self.teacher.image, MOST))
        return image_statistics(self.teacher, torch.from_numpy(images).to(device))


def _run(path: Path, test: LabelledImages, teacher: Teacher) -> NDArray[np.float32]:
    session = OrtSession(path)
    return np.concatenate([session.run(batch) for batch in test.batches(teacher.image, _BATCH)])


def _line(result: dict[str, Any]) -> str:
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    return (
        f"{result['contestant']} {result['bits']} {result['mode']} seed {result['seed']}: "
        f"drop {values[TOP1_DROP.name]:.2f}, agreement {values[AGREEMENT.name]:.2f} %, "
        f"{result['cost']['synthesis']} passes, {result['seconds']['synthesis']:.0f} s"
    )
