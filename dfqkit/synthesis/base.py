"""The interface every synthesizer keeps, and the error of one that has diverged."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.config.synthesis import NO_DEMAND, Demand, SynthesizerConfig
from dfqkit.tasks.classification import as_logits
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError
from dfqkit_export.tasks import CLASSES

Losses = dict[str, float]


class Synthesizer(ABC):
    """Makes images a teacher would accept, from the teacher alone.

    The caller owns devices, loops, progress, seeds, storage and train/eval modes; students that are passed in are
    frozen and in eval mode. A synthesizer draws only from the generator it is given and leaves the teacher as it found
    it.

    Attributes:
        config: Its section of the recipe, which says what the method needs and what reports must say of it.
        cost: Teacher forward+backward image passes spent so far.
        weights: Factors of the loss terms by name; of its section, where that has any.
    """

    config: SynthesizerConfig

    def __init__(
        self, config: SynthesizerConfig, teacher: Teacher, generator: torch.Generator, demand: Demand = NO_DEMAND
    ) -> None:
        self.config = config
        self.teacher = teacher
        self.rng = generator
        self.demand = demand
        self.device = generator.device
        self._set_up()

    def _set_up(self) -> None:
        """Make what the method works with, once; a subclass begins with the base's, or with what may refuse."""
        self.cost = 0
        section = getattr(self.config, "weights", None)
        self.weights: dict[str, float] = {} if section is None else dict(section)

    def ask(self, fresh: int) -> None:
        """Ask for so many fresh images in all, more than was said when it was made; further rounds make them."""
        self.demand = replace(self.demand, fresh=fresh)

    @property
    @abstractmethod
    def warmup_rounds(self) -> int:
        """Rounds to run before images are drawn."""

    @abstractmethod
    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """Run one round of the method's own optimisation.

        Args:
            students: Models to play against, or none; methods that need one get one in every round.

        Returns:
            The round's loss terms, by the name of the weight that scales them, unweighted.
        """

    @property
    def available(self) -> int | None:
        """Fresh images that `sample` can give now; None for any number."""
        return None

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """Draw fresh images, at most `available`, which nothing was or will be trained on and no other call returns.

        They are (n, C, H, W), detached, in the teacher's normalised space.
        """

    def coded(self, images: Tensor) -> Tensor:
        """Return normalised images as they are stored, uint8."""
        return (self.teacher.image.denormalize(images) * 255).round().clamp(0, 255).to(torch.uint8)

    def decoded(self, codes: Tensor) -> Tensor:
        """Return stored images, normalised."""
        return self.teacher.image.normalize(codes.float() / 255)

    def training_batch(self, n: int) -> Tensor:
        """Draw images (n, C, H, W) to calibrate or train a student on; methods that keep a set draw from it."""
        return self.sample(n)

    def _objects(self, outputs: Any) -> dict[str, Tensor]:
        """Return the term that asks for objects, where it counts, of what the teacher's model returned."""
        if not self.weights.get("objects"):
            return {}
        task = self.teacher.torch_task
        answers = task.named(outputs)
        found = task.objectness(answers)
        return {} if found is None else {"objects": losses.objects(found, task.object_sizes(answers))}

    def _apart(
        self, students: Sequence[nn.Module], distance: Callable[[Tensor, Tensor], Tensor], images: Tensor, outputs: Any
    ) -> Tensor:
        """Return the mean distance of students from what the teacher's model returned for the same images.

        It is ``distance`` (student's logits, teacher's), for tasks without classes that of the task.
        """
        task = self.teacher.torch_task
        if CLASSES in self.teacher.task.offers:
            found = [distance(as_logits(student(images)), outputs) for student in students]
        else:
            found = [task.distance(task.named(outputs), task.named(student(images))) for student in students]
        return torch.stack(found).mean()

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue as if never interrupted, the generator's state included."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""


class DrawnSynthesizer(Synthesizer):
    """A synthesizer that draws images and optimises nothing: its random state is all there is."""

    @property
    def warmup_rounds(self) -> int:
        """None: nothing is optimised."""
        return 0

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """Nothing to do."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the random state."""
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.rng.set_state(state["rng"].cpu())


def require_finite(config: SynthesizerConfig, values: Mapping[str, float], where: str) -> None:
    """Stop a synthesis that has diverged, before noise or black images come of it; ``where`` says in which step."""
    bad = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if bad is None:
        return
    fields = config.model_dump()
    lower = [f"{name} (now {value})" for name, value in fields.items() if name.startswith("lr") and value is not None]
    weights = fields.get("weights") or {}
    lower += [f"weights.{bad}"] if bad in weights else ["the weights"] if weights else []
    message = (
        f"Synthesis '{config.method}' has diverged: {bad} is {values[bad]} {where}. No images are made of that. "
        f"Lower {' or '.join(lower) or 'its learning rate'} in its section of the recipe and start again."
    )
    raise ArtefactError(message)


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the loss that is minimised: every term times the weight of its name."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
