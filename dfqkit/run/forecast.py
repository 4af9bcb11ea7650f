"""What a run is going to take, told before it begins: one round of its own source is timed, and the network on images.

What belongs here: minutes by stage, memory, room on disk, and what would be cheaper. Nothing that is made here is kept:
a run computes the same bytes whether it was told or not. How long students take beside the network in float was
measured on finished runs (`_PASSES`, `_LAYER`), so what is said of their stages is rougher.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dfqkit.progress import duration, silent
from dfqkit.run.context import Context, resolve_device
from dfqkit.run.folder import RunFolder
from dfqkit.run.stages import STAGES
from dfqkit.run.synthesize import makers_of, sets_of
from dfqkit.synthesis.base import Synthesizer
from dfqkit.synthesis.methods.procedural import ProceduralConfig
from dfqkit.training.stream import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dfqkit.config.recipe import Recipe
    from dfqkit.teacher.load import Teacher

#: What draws images without a network.
_DRAWN = ProceduralConfig().method
#: Seconds that timing rounds of one source may take; the round that is under way is ended.
_TIMED = 3.0
#: What an image costs in a stage, as so many passes of the float network over it in batches: of a candidate of a ladder
#: and of a student without one, of a step of distillation and each of its students, of what is measured.
_PASSES = {"candidate": 10.0, "calibrate": 35.0, "step": 7.5, "train": 4.0, "validate": 15.0}
#: Seconds that each layer with weights costs beside, on a core that nobody else uses: modules are called, ranges tried,
#: nodes written. With the passes of a candidate and of validation, fitted to default runs of three networks (a text
#: classifier, ResNet-18, MobileNetV1; docs/real-size.md).
_LAYER = {"candidate": 0.35, "export": 0.1, "validate": 0.15}
#: Seconds that a stage takes whatever the network is: capturing, writing files, opening sessions.
_FIXED = {"synthesize": 2.0, "quantize": 2.0, "export": 2.0, "validate": 3.0}
_LONG = 600.0
_WIDTH = 80
_INDENTED: dict[str, Any] = {"initial_indent": "  ", "subsequent_indent": " " * 11, "break_on_hyphens": False}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run is going to take.

    Attributes:
        seconds: By stage, of those that have something to do.
        most: Seconds by stage where these are bounded from above: a ladder that ends by itself or by its time.
        rounds: What each stage does, in rounds or steps.
        memory: Bytes of this process after one round, which the run needs at least.
        disk: Bytes that the run stores, at most.
        cheaper: What would take less, each a sentence with the option that asks for it.
    """

    seconds: dict[str, float]
    most: dict[str, float] = field(default_factory=dict)
    rounds: dict[str, str]
    memory: int
    disk: int
    cheaper: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    def lines(self) -> list[str]:
        """Return it for people, in lines of at most 80 columns where names of stages allow."""
        told = [_row(name, self.seconds[name], self.rounds[name]) for name in self.seconds]
        bound = sum(self.most.get(name, seconds) for name, seconds in self.seconds.items())
        at_most = f", at most {duration(bound)}" if self.most else ""
        size = f"{self.memory / 2**30:.1f} GB of memory or more, up to {self.disk / 2**20:.0f} MB on disk"
        return [
            f"This takes about {duration(self.total)}{at_most}; {size}:",
            *(line for row in told for line in row),
            *(line for text in self.cheaper for line in textwrap.wrap(f"cheaper: {text}", _WIDTH, **_INDENTED)),
        ]


def _row(name: str, seconds: float, text: str) -> list[str]:
    head = f"  {name:<10}  {duration(seconds):>12}  "
    return textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)


def forecast(recipe: Recipe, teacher: Teacher | None = None, device: str = "auto") -> Forecast:
    """Time one round of a recipe's sources, and the network, and say what the run takes.

    Args:
        recipe: What is to be run.
        teacher: Its teacher where that is loaded.
        device: Where it is to compute.

    Raises:
        DfqkitError: What the run itself would end with before it computes anything.
    """
    with tempfile.TemporaryDirectory(prefix="dfqkit-plan-") as place, _without_words():
        folder = RunFolder.create(Path(place) / "run", recipe_text=recipe.to_yaml(), digest=recipe.digest(), facts={})
        where = resolve_device(device)
        with folder:
            context = Context(
                folder=folder,
                recipe=recipe,
                device=where,
                progress=silent(),
                given=teacher,
                stages=tuple(STAGES.values()),
            )
            sources = _sources(context)
            begun = time.perf_counter(), time.thread_time()
            one = _pass_over_an_image(context)
            wall, own = time.perf_counter() - begun[0], time.thread_time() - begun[1]
            layers = sum(value.dim() > 1 for value in context.teacher.model.parameters())
    busy = max(wall / own, 1.0) if where.type == "cpu" and own > 0 else 1.0  # others compute here, too
    return _told(recipe, sources, one, layers * busy)


def _told(recipe: Recipe, sources: float, one: float, layers: float = 0.0) -> Forecast:
    """Return the forecast, by the seconds of making images and those of one image in the float network.

    ``layers`` are those that have weights, each counted as many times as a busy machine takes longer than a quiet one.
    """
    bank, ladder, steps, student = recipe.bank, recipe.ladder, recipe.distill, recipe.student
    images, held = bank.calibration, bank.held_out
    members = 1 + (len(steps.partners) if steps else 0)
    targets = len(recipe.targets)
    rung = _LAYER["candidate"] * layers
    rung += _PASSES["candidate"] * one * (images + held + (ladder.images if ladder else 0))
    seconds = {"synthesize": _FIXED["synthesize"] + sources}
    most = {}
    if student is not None:
        seconds["train"] = student.steps * student.batch * one * _PASSES["train"]
    seconds["quantize"] = _FIXED["quantize"] + members * targets * _PASSES["calibrate"] * one * (images + held)
    if ladder is not None:
        tried = len(ladder.candidates)
        bounded = min(tried * rung, 60 * ladder.max_time + rung) if ladder.max_time else tried * rung
        most["quantize"] = _FIXED["quantize"] + targets * bounded
        seconds["quantize"] = most["quantize"]
    if steps is not None:
        seconds["distill"] = targets * steps.steps * steps.batch * one * _PASSES["step"] * members
    seconds["export"] = targets * (_FIXED["export"] + _LAYER["export"] * layers)
    limit = recipe.validation.limit or 0
    measured = bank.grading + (limit if recipe.validation.data else 0)
    fixed = _FIXED["validate"] + _LAYER["validate"] * layers
    seconds["validate"] = targets * (fixed + measured * one * _PASSES["validate"])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    plans = {name: stage.plan(recipe) for name, stage in STAGES.items()}
    return Forecast(
        seconds=seconds,
        most=most,
        rounds={name: plans[name].text for name in seconds},
        memory=memory,
        disk=sum(each.size for each in plans.values()) + 64 * 2**20,
        cheaper=tuple(_cheaper(recipe, seconds)),
    )


def _cheaper(recipe: Recipe, seconds: dict[str, float]) -> Iterator[str]:
    """Yield what would save most, where a run takes long."""
    if sum(seconds.values()) < _LONG:
        return
    config = recipe.synthesis.model_dump()
    halves = [
        ("synthesize", f"synthesis.{key}", config[key])
        for key in ("steps", "warmup")
        if isinstance(config.get(key), int)
    ]
    if recipe.distill is not None:
        halves.append(("distill", "distill.steps", recipe.distill.steps))
    for name, key, value in halves:
        if seconds.get(name, 0.0) > _LONG / 4 and value > 1:
            yield f"--set {key}={value // 2} (now {value}): {duration(seconds[name] / 2)} less"
    if seconds["synthesize"] > _LONG / 4 and config["method"] != _DRAWN:
        yield f"--set 'synthesis={{method: {_DRAWN}}}': drawn images, which take no passes of the network"
    if recipe.ladder is not None:
        yield "--set ladder.max_time=5: fewer candidates; the first is always tried"


def _sources(context: Context) -> float:
    """Return the seconds of making all images of a run."""
    total = 0.0
    with frozen(context.opponents):
        for name, maker in makers_of(context).items():
            rounds = maker.warmup_rounds
            if rounds:
                total += rounds * _seconds(partial(maker.synthesize, context.opponents), rounds)
                continue
            total += sum(_drawn(maker, kind, count) for of, kind, count in sets_of(context.recipe) if of == name)
    return total


def _drawn(maker: Synthesizer, kind: str, count: int) -> float:
    draw = maker.training_batch if kind == "calibration" else maker.sample
    few = min(count, 2)
    return count / few * _seconds(lambda: draw(few), 1) if few else 0.0


def _seconds(round_: Callable[[], object], most: int) -> float:
    """Return the seconds of one call: the mean of those that fit into the time for it, without the dearer first."""
    spent: list[float] = []
    while len(spent) < most and sum(spent) < _TIMED and len(spent) < 5:
        begun = time.perf_counter()
        round_()
        spent.append(time.perf_counter() - begun)
    return sum(spent[1:]) / len(spent[1:]) if len(spent) > 1 else spent[0]


def _pass_over_an_image(context: Context) -> float:
    """Return the seconds that the float network takes for an image of a batch."""
    count = min(context.recipe.bank.batch, 16)
    images = torch.zeros((count, *context.recipe.image.shape), device=context.device)
    with torch.no_grad():
        return _seconds(lambda: context.teacher.logits(images), 5) / count


@contextlib.contextmanager
def _without_words() -> Iterator[None]:
    """Keep back what would be said a second time when the run begins."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
