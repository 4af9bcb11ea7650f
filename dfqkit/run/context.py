"""What every stage of a run needs, made once: teacher, target, graph, random numbers, stored sets, checkpoints."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, fx

from dfqkit_export.errors import RecipeError, RuntimeUnavailableError
from dfqkit_export.targets import Target, get_target

from ..distill import Batch
from ..imagebank import ImageBank
from ..progress import Progress
from ..recipe import Recipe, find_file
from ..registry import synthesizer
from ..seeds import derive
from ..students.capture import float_graph
from ..students.scheme import QuantConfig
from ..students.student import build_student, calibrate_student
from ..synthesis.base import Demand, Synthesizer, SynthesizerConfig
from ..synthesis.building import build_synthesizer
from ..teacher import Teacher, load_teacher
from .folder import RunFolder

#: Seconds between two checkpoints inside a stage. Taking one changes nothing that is computed.
CHECKPOINT_SECONDS = float(os.environ.get("DFQKIT_CHECKPOINT_SECONDS", "20"))


def teacher_of(recipe: Recipe) -> Teacher:
    """Load and verify the teacher that a recipe names."""
    section = recipe.teacher
    weights = None if section.weights is None else find_file(section.weights, recipe.directory)
    return load_teacher(section.factory, recipe.image.spec(), weights, factory_args=section.args)


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` as a device.

    Raises:
        RecipeError: for an unknown name.
        RuntimeUnavailableError: for cuda where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        message = f"Unknown device '{name}'. Allowed: auto, cpu, cuda."
        raise RecipeError(message)
    if name == "cuda" and not torch.cuda.is_available():
        message = "Device 'cuda' was asked for, but torch sees no usable GPU here. Use --device cpu or auto."
        raise RuntimeUnavailableError(message)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        # TF32 rounds products of codes and scales, and nondeterministic kernels would break resuming.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return torch.device(name)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every stage needs."""

    folder: RunFolder
    recipe: Recipe
    device: torch.device
    progress: Progress
    given: Teacher | None = None

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher, on the run's device."""
        if self.given is not None and self.device.type != "cpu":
            return replace(self.given, model=copy.deepcopy(self.given.model).to(self.device))  # theirs stays put
        teacher = self.given or teacher_of(self.recipe)
        teacher.model.to(self.device)
        return teacher

    @cached_property
    def target(self) -> Target:
        """The deployment target."""
        return get_target(self.recipe.target)

    @cached_property
    def graph(self) -> fx.GraphModule:
        """The teacher as a float graph in normal form."""
        return float_graph(self.teacher.model, self.teacher.image)

    @property
    def scheme(self) -> QuantConfig:
        """The deployed student's scheme."""
        return self.recipe.quant  # type: ignore[return-value]

    def rng(self, *names: str | int) -> torch.Generator:
        """A component's random numbers, derived from the run's seed."""
        return derive(self.recipe.seed, *names, device=self.device)

    def bank(self, name: str) -> ImageBank:
        """A stored set of this run."""
        return ImageBank.load(self.folder.path / "images" / f"{name}.safetensors", self.teacher)

    def batches(self, name: str) -> list[Batch]:
        """A stored set as batches on the run's device."""
        return list(self.bank(name).batches(self.recipe.bank.batch, self.device))

    def new_synthesizer(self, *, grading: bool = False) -> Synthesizer:
        """The recipe's synthesizer, or the separate one that only grades."""
        bank, config = self.recipe.bank, self.synthesis
        if grading:
            config = synthesizer(config.method).grading_config(config)
            demand = Demand(training=0, fresh=bank.grading)
        else:
            training = max(bank.calibration, bank.training or 0)
            demand = Demand(training=training, fresh=bank.held_out, game_rounds=self._game_rounds)
        return build_synthesizer(config, self.teacher, self.rng("grading" if grading else "synthesis"), demand)

    @property
    def synthesis(self) -> SynthesizerConfig:
        """The recipe's section, the files that it names found."""
        config: SynthesizerConfig = self.recipe.synthesis  # type: ignore[assignment]
        return config.resolved(lambda name: str(find_file(name, self.recipe.directory)))

    @property
    def _game_rounds(self) -> int:
        config = self.recipe.distill
        return 0 if config is None else -(-config.steps // config.round_every)  # type: ignore[attr-defined]

    @cached_property
    def opponents(self) -> list[fx.GraphModule]:
        """What a method that cannot do without a student plays against before there is one.

        A student of the recipe's scheme, calibrated on Gaussian noise. Only the opponent is: what ships is calibrated
        on the images that come of it.
        """
        if "student" not in synthesizer(self.synthesis.method).needs_of(self.synthesis):
            return []
        student = build_student(self.graph, self.scheme, self.target, self.teacher.image)
        low, high = self.teacher.image.bounds()
        shape = (self.recipe.bank.batch, *self.teacher.image.shape)
        noise = torch.randn(shape, generator=self.rng("opponent"), device=self.device).clamp(low, high)
        calibrate_student(student, [noise], self.scheme, self.teacher.image)
        return [student]


class Checkpoints:
    """Saves a stage's state now and then, and hands back what an interrupted run left.

    Args:
        folder: where it is kept.
        stage: whose state.
    """

    def __init__(self, folder: RunFolder, stage: str) -> None:
        self.folder, self.stage, self.last = folder, stage, time.monotonic()

    def restore(self, put_back: Callable[[dict[str, Tensor], dict[str, object]], None]) -> None:
        """Hand an interrupted run's state to ``put_back``, if there is one."""
        found = self.folder.load_state(self.stage)
        if found is not None:
            put_back(*found)

    def offer(self, state: Callable[[], tuple[dict[str, Tensor], dict[str, object]]]) -> None:
        """Save, if the last time was long enough ago."""
        if time.monotonic() - self.last >= CHECKPOINT_SECONDS:
            self.folder.save_state(self.stage, *state())
            self.last = time.monotonic()
