"""Portable sets of images from any source, streamed: at most one shard is in memory at a time.

What belongs here: how a recipe's synthesizer is warmed up and drawn from until a set has all its images, and what its
readers are warned of. Its folder is `bank_folder`.

A synthesizer is asked for fresh images only, for one shard to begin with. Sources that make images in batches
(`available` says how many are left) are asked for more and given more rounds whenever they are short; generators are
trained once and then drawn from. Where shards are to be independent, each is filled in this way, by a synthesizer of
its own (`bank_parts`).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dfqkit.config.reading import parse_recipe
from dfqkit.config.recipe import Recipe
from dfqkit.config.synthesis import Demand
from dfqkit.images.bank import ImageBank
from dfqkit.progress import Bar, Progress
from dfqkit.run.bank_folder import BankFolder
from dfqkit.run.bank_parts import PartFolder, forget_parts, gathered, machines_told, shards_of
from dfqkit.run.context import on_device, provisional_student, resolve_device, resolved_synthesis, teacher_of
from dfqkit.run.parts import Executor, InOrder, Job, Tell
from dfqkit.run.playing import CHECKPOINT_SECONDS, drawn
from dfqkit.seeds import derive
from dfqkit.synthesis.base import Synthesizer
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.teacher.load import Teacher
from dfqkit.training.stream import frozen
from dfqkit_export.env import environment
from dfqkit_export.errors import ArtefactError, RecipeError
from dfqkit_export.images.stored import StoredBank, image_digest
from dfqkit_export.tasks import entry_of
from dfqkit_export.tasks.answering import grouped
from dfqkit_export.words import some

_NAMED = 10  # classes named in a warning


@dataclass(frozen=True, kw_only=True)
class BankPlan:
    """How many images a set has, how many lie in one file (and in memory), and the command that makes it again.

    Attributes:
        independent: Whether each shard is made from random numbers of its own, so that any process can make any.
        executor: Where those are made, with as many threads as torch has here.
    """

    n: int
    shard: int = 1024
    command: str = ""
    independent: bool = False
    executor: Executor = field(default_factory=InOrder)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What images are made with: loaded once in every process that makes some."""

    recipe: Recipe
    teacher: Teacher
    students: list[nn.Module]
    device: torch.device

    @classmethod
    def of(cls, recipe: Recipe, teacher: Teacher, device: torch.device) -> _Source:
        needed = resolved_synthesis(recipe).needed
        students: list[nn.Module] = [provisional_student(recipe, teacher, device)] if "student" in needed else []
        return cls(recipe=recipe, teacher=teacher, students=students, device=device)

    def synthesizer(self, fresh: int, *part: int) -> Synthesizer:
        rng = derive(self.recipe.seed, "synthesis", *part, device=self.device)
        demand = Demand(training=0, fresh=fresh)
        return build_synthesizer(resolved_synthesis(self.recipe), self.teacher, rng, demand)


#: That of this process, by what its shards share.
_SOURCES: dict[str, _Source] = {}


def make_bank(
    recipe: Recipe, out: Path, plan: BankPlan, *, device: str, progress: Progress, teacher: Teacher | None = None
) -> StoredBank:
    """Make a set, or continue one that was interrupted: its images are those of an uninterrupted one, bit for bit.

    The recipe's teacher, image, synthesis and seed decide the images; its quant section only for methods that play
    against a student. ``out`` is a new or empty folder, or that of the same set.
    """
    source, maker, folder = _begun(recipe, out, plan, device, teacher)
    told: list[str] = []
    with folder, frozen(source.students):
        if not folder.complete and plan.independent:
            with progress.stage("shards", total=plan.n) as bar:
                told = _gather(source, folder, plan.executor, bar)
        elif not folder.complete:
            Making(folder, maker, source.students, recipe.bank.batch).run(progress)
        if not folder.finished:
            folder.finish([*told, *_warnings(StoredBank.open(out), recipe, source.teacher)])
            forget_parts(out)
    return StoredBank.open(out)


def make_one(recipe: Recipe, out: Path, plan: BankPlan, index: int, *, device: str, progress: Progress) -> int:
    """Make one independent shard of a set, which other processes may be making, too; return its number of images."""
    source, _, folder = _begun(recipe, out, plan, device, None)
    if not 0 <= index < shards_of(folder.request):
        message = f"This set has no shard {index}: it has {shards_of(folder.request)}, counted from 0."
        raise RecipeError(message)
    folder.join()
    if folder.finished:
        return int(folder.shards[index]["n"])
    with progress.stage(f"shard {index}", total=100) as bar:
        ((_, made),) = InOrder().run(_job(source, folder, [index], size=100), bar)
    return int(made["n"])


def _begun(
    recipe: Recipe, out: Path, plan: BankPlan, device: str, teacher: Teacher | None
) -> tuple[_Source, Synthesizer, BankFolder]:
    """Return what images are made with, a synthesizer of it, and the folder; refuse mistakes before there is one."""
    where = resolve_device(device)
    teacher = on_device(teacher or teacher_of(recipe), where)
    config = resolved_synthesis(recipe)
    given = "images" in config.needed
    if plan.independent and given:
        message = (
            f"Source '{config.method}' hands out images that are there already, in one order, so its shards are not "
            "independent. Leave out --independent, --cluster and --part."
        )
        raise RecipeError(message)
    source = _Source.of(recipe, teacher, where)
    # Sources of images that are there already take what they are asked for at the start, and no more later.
    maker = source.synthesizer(plan.n if given else min(plan.n, plan.shard))
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
        **({"independent": True} if plan.independent else {}),
    }
    facts = {
        "command": plan.command,
        "threads": torch.get_num_threads(),
        "environment": environment(),
        "real_data": config.real_data(),
        "warnings": list(config.warnings()),  # those of the images themselves come when all are there
    }
    return source, maker, BankFolder(out, request, facts)


def _gather(source: _Source, folder: BankFolder, executor: Executor, bar: Bar) -> list[str]:
    """Have all shards made that are not there, list them, and return what must be said of where they were made."""

    def missing(left: list[int]) -> None:
        job = _job(source, folder, left)
        bar.advance(folder.request["wanted"] - job.size)
        for _ in executor.run(job, bar):
            pass

    lists = gathered(folder.path, folder.request, folder.owner["set"], missing)
    folder.take(lists, sum(one["cost"] for one in lists))
    return machines_told(lists)


def _job(source: _Source, folder: BankFolder, indices: Sequence[int], size: int | None = None) -> Job:
    recipe, request = source.recipe, folder.request
    owner = folder.owner["set"]
    common: dict[str, Any] = {
        "recipe": recipe.to_yaml(),
        "directory": None if recipe.directory is None else str(recipe.directory.resolve()),
        "device": str(source.device),
        "out": str(folder.path.resolve()),
        "request": request,
        "owner": owner,
    }
    _SOURCES.clear()
    _SOURCES[owner] = source
    command = [*shlex.split(folder.facts["command"]), "--out", common["out"], "--part"]
    return Job(
        name="shard",
        function=make_shard,
        common=common,
        indices=indices,
        sizes=[size or min(request["shard"], request["wanted"] - index * request["shard"]) for index in indices],
        alone=lambda index: shlex.join([*command, str(index)]),
        threads=torch.get_num_threads(),
        gpus=float(source.device.type == "cuda"),
    )


def make_shard(common: Mapping[str, Any], index: int, tell: Tell) -> dict[str, Any]:
    """Make one independent shard in the folder of its set, or continue it; return what its list says."""
    part = PartFolder(Path(common["out"]), common["request"], index, common["owner"])
    if part.listed is not None:
        return part.listed
    if common["owner"] not in _SOURCES:
        directory = common["directory"]
        recipe = parse_recipe(common["recipe"], "the recipe").found_in(Path(directory) if directory else None)
        device = resolve_device(common["device"])
        _SOURCES.clear()
        _SOURCES[common["owner"]] = _Source.of(recipe, on_device(teacher_of(recipe), device), device)
    source = _SOURCES[common["owner"]]
    part.load()
    maker = source.synthesizer(part.next_size, index)
    with frozen(source.students):
        Making(part, maker, source.students, source.recipe.bank.batch).run(_Telling(tell))
    assert part.listed is not None
    return part.listed


class _Telling(Progress):
    """The progress of one shard, told as a share of its rounds."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(quiet=True)
        self.tell = tell

    @contextmanager
    def stage(self, name: str, *, total: int, start: int = 0) -> Iterator[Bar]:
        """Tell of the warm-up, which takes the time; what is drawn from it is told when the shard is there."""
        yield _Share(self.tell, total if name == "synthesize" else 0, start)


class _Share:
    def __init__(self, tell: Tell, total: int, done: int) -> None:
        self.tell, self.total, self.done = tell, total, done

    def advance(self, steps: int = 1, /, **terms: float) -> None:
        self.done += steps
        if self.total:
            self.tell(0.99 * self.done / self.total, **terms)


class Making:
    """The rounds and draws that fill a folder."""

    def __init__(
        self, folder: BankFolder | PartFolder, maker: Synthesizer, students: Sequence[nn.Module], batch: int
    ) -> None:
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
