"""Portable sets of images from any source, streamed: at most one shard is in memory at a time.

What belongs here: how a recipe's synthesizer is warmed up and drawn from until a set has all its images, and what its
readers are warned of. Its folder is `bank_folder`.

A synthesizer is asked for fresh images only, for one shard to begin with. Sources that make images in batches
(`available` says how many are left) are asked for more and given more rounds whenever they are short; generators are
trained once and then drawn from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dfqkit.config.recipe import Recipe
from dfqkit.config.synthesis import Demand
from dfqkit.images.bank import ImageBank
from dfqkit.progress import Bar, Progress
from dfqkit.run.bank_folder import BankFolder
from dfqkit.run.context import on_device, provisional_student, resolve_device, resolved_synthesis, teacher_of
from dfqkit.run.playing import CHECKPOINT_SECONDS, drawn
from dfqkit.seeds import derive
from dfqkit.synthesis.base import Synthesizer
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.teacher.load import Teacher
from dfqkit.training.stream import frozen
from dfqkit_export.env import environment
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.stored import StoredBank, image_digest
from dfqkit_export.tasks import entry_of
from dfqkit_export.tasks.answering import grouped
from dfqkit_export.words import some

_NAMED = 10  # classes named in a warning


@dataclass(frozen=True, kw_only=True)
class BankPlan:
    """How many images a set has, how many lie in one file (and in memory), and the command that makes it again."""

    n: int
    shard: int = 1024
    command: str = ""


def make_bank(
    recipe: Recipe, out: Path, plan: BankPlan, *, device: str, progress: Progress, teacher: Teacher | None = None
) -> StoredBank:
    """Make a set, or continue one that was interrupted: its images are those of an uninterrupted one, bit for bit.

    The recipe's teacher, image, synthesis and seed decide the images; its quant section only for methods that play
    against a student. ``out`` is a new or empty folder, or that of the same set.
    """
    where = resolve_device(device)
    teacher = on_device(teacher or teacher_of(recipe), where)
    maker, students = _made(recipe, teacher, where, plan)
    request = {
        "wanted": plan.n,
        "shard": plan.shard,
        "image": teacher.image.to_dict(),
        **entry_of(teacher.task),
        "teacher": {"name": teacher.name, "sha256": teacher.sha256},
        "source": recipe.synthesis.method,
        "synthesis": recipe.synthesis.model_dump(mode="json"),
        "seed": recipe.seed,
        "recipe": {"name": recipe.name, "sha256": recipe.digest()},
        "device": str(where),
    }
    config = resolved_synthesis(recipe)
    facts = {
        "command": plan.command,
        "threads": torch.get_num_threads(),
        "environment": environment(),
        "real_data": config.real_data(),
        "warnings": list(config.warnings()),  # those of the images themselves come when all are there
    }
    with BankFolder(out, request, facts) as folder, frozen(students):
        if not folder.complete:
            Making(folder, maker, students, recipe.bank.batch).run(progress)
        if not folder.finished:
            folder.finish(_warnings(StoredBank.open(out), recipe, teacher))
    return StoredBank.open(out)


def _made(
    recipe: Recipe, teacher: Teacher, device: torch.device, plan: BankPlan
) -> tuple[Synthesizer, list[nn.Module]]:
    config = resolved_synthesis(recipe)
    rng = derive(recipe.seed, "synthesis", device=device)
    needs = config.needed
    # Sources of images that are there already take what they are asked for at the start, and no more later.
    fresh = plan.n if "images" in needs else min(plan.n, plan.shard)
    maker = build_synthesizer(config, teacher, rng, Demand(training=0, fresh=fresh))
    return maker, [provisional_student(recipe, teacher, device)] if "student" in needs else []


class Making:
    """The rounds and draws that fill a folder."""

    def __init__(self, folder: BankFolder, maker: Synthesizer, students: Sequence[nn.Module], batch: int) -> None:
        self.folder, self.maker, self.students, self.batch = folder, maker, students, batch
        self.first_rounds = maker.warmup_rounds
        self.rounds = 0
        self.saved = time.monotonic()
        if folder.state is not None:
            tensors, values = folder.state
            maker.ask(values["fresh"])
            maker.load_state_dict(tensors)
            self.rounds = values["rounds"]

    def run(self, progress: Progress) -> None:
        """Warm up, then fill shard after shard."""
        if self.rounds < self.first_rounds:
            with progress.stage("synthesize", total=self.first_rounds, start=self.rounds) as bar:
                while self.rounds < self.first_rounds:
                    self._round(bar, 1)
        with progress.stage("draw", total=self.folder.request["wanted"], start=self.folder.n) as bar:
            while not self.folder.complete:
                count = self.folder.next_size
                self._refill(count, bar)
                self._add(count)
                self.saved = time.monotonic()
                bar.advance(count)

    def _add(self, count: int) -> None:
        bank = ImageBank.collect(
            self.maker.teacher, drawn(self.maker.sample, count, self.batch), self.folder.request["source"]
        )
        self.folder.add(bank, self.maker.state_dict(), self._values())

    def _round(self, bar: Bar, steps: int) -> None:
        bar.advance(steps, **self.maker.synthesize(self.students))
        self.rounds += 1
        if time.monotonic() - self.saved >= CHECKPOINT_SECONDS:
            self.folder.save_state(self.maker.state_dict(), self._values())
            self.saved = time.monotonic()

    def _refill(self, count: int, bar: Bar) -> None:
        """Run rounds until enough fresh images are there; an ArtefactError when rounds bring no more of them."""
        left = self.maker.available
        if left is None or left >= count:
            return
        if self.maker.demand.fresh < self.folder.n + count:  # not where an interrupted process had asked already
            self.maker.ask(self.folder.n + count)
        idle, patience = 0, 2 * self.first_rounds
        while (now := self.maker.available or 0) < count:
            before = now, self.maker.cost
            self._round(bar, 0)
            idle = 0 if (self.maker.available or 0) > now else idle + 1
            if idle > patience or before == (self.maker.available, self.maker.cost):
                message = (
                    f"Source '{self.folder.request['source']}' has no more images: {self.folder.n + now} of the "
                    f"{self.folder.request['wanted']} asked for. Ask for fewer with --n, in another folder."
                )
                raise ArtefactError(message)

    def _values(self) -> dict[str, int]:
        return {"rounds": self.rounds, "fresh": self.maker.demand.fresh, "cost": self.maker.cost}


def _warnings(images: StoredBank, recipe: Recipe, teacher: Teacher) -> list[str]:
    """Return what whoever takes the set should know, found by reading it once."""
    config = resolved_synthesis(recipe)
    found = list(config.warnings())
    if teacher.weights_source == "random":
        found.append("The teacher has random weights: its answers mean nothing.")
    groups = grouped(images)
    empty = np.flatnonzero(groups.counts == 0)
    if len(empty):
        named = some([*map(str, empty)], _NAMED)
        found.append(f"{len(empty)} of {groups.count} {groups.many} have no image: {named}.")
    copies = sum(len(codes) - len({image_digest(code) for code in codes}) for codes, _ in images.each_shard())
    if copies:
        found.append(f"{copies} of {len(images)} images repeat another of their shard, pixel by pixel.")
    return found
