"""The interface every synthesizer keeps, its configuration base, and the error of one that has diverged."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError

Losses = dict[str, float]

#: What `Synthesizer.real_data_of` says where nothing tells.
UNKNOWN = "unknown"


class SynthesizerConfig(BaseModel):
    """Base of every method's section in a recipe: frozen, and closed (an unknown key is an error)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: str
    low_pass: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Gaussian low-pass on every image that is drawn, D0 as a share of the image's size (SynQ: 20 to "
        "100 of 224 pixels); null leaves images as they are.",
    )

    def resolved(self, find: Callable[[str], str]) -> Self:
        """The same, with every file that it names found by ``find``; methods that read files override this."""
        return self


class LossWeights(BaseModel):
    """Base of every method's ``weights``: factors of its loss terms, of which at least one must count."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _some(self) -> Self:
        if all(value == 0 for value in self.model_dump().values()):
            message = (
                "all are 0, which optimises nothing and leaves noise; give one a value above 0, or use method noise "
                "where a baseline is wanted"
            )
            raise ValueError(message)
        return self


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What the caller is going to ask of a synthesizer, for schedules and for methods that make a set beforehand.

    Attributes:
        training: different images that `Synthesizer.training_batch` should draw from.
        fresh: images that `Synthesizer.sample` will be asked for, in all.
        game_rounds: rounds with students after the warm-up.
        beside: what the run's other synthesizer of the same configuration is asked for, the one that grades or, for
            that one, the main one; None where it is not known. Sources of a limited number of images leave that many.
    """

    training: int = 256
    fresh: int = 0
    game_rounds: int = 0
    beside: Demand | None = None


NO_DEMAND = Demand()


class Synthesizer(ABC):
    """Makes images a teacher would accept, from the teacher alone.

    The caller owns devices, loops, progress, seeds, storage and train/eval modes; students that are passed in are
    frozen and in eval mode. A synthesizer draws only from the generator it is given and leaves the teacher as it found
    it.

    Attributes:
        Config: the method's configuration class.
        needs: what the method cannot do without, of "batchnorm" (layers with running statistics), "linear_head" (a
            linear layer that gives the logits), "features" (what enters the last layer), "student" (one to play
            against, in the warm-up too), "records" and "images" (files that the configuration names).
        warning: what every report about its images must open with; None for most methods.
        cost: teacher forward+backward image passes spent so far.
    """

    Config: ClassVar[type[SynthesizerConfig]]
    needs: ClassVar[frozenset[str]]
    warning: ClassVar[str | None] = None

    def __init__(
        self, config: SynthesizerConfig, teacher: Teacher, generator: torch.Generator, demand: Demand = NO_DEMAND
    ) -> None:
        self.teacher = teacher
        self.rng = generator
        self.demand = demand
        self.device = generator.device
        self.cost = 0

    @classmethod
    def needs_of(cls, config: SynthesizerConfig) -> frozenset[str]:
        """What this configuration needs; less or more than ``needs`` where options decide."""
        return cls.needs

    @classmethod
    def warnings_of(cls, config: SynthesizerConfig) -> tuple[str, ...]:
        """What reports about images of this configuration must open with, from ``warning``."""
        return () if cls.warning is None else (cls.warning,)

    @classmethod
    def real_data_of(cls, config: SynthesizerConfig) -> str | None:
        """What real data took part in images of this configuration, its files found, in a few words.

        Returns:
            A phrase such as "similar images"; `UNKNOWN` where that cannot be told; None where the teacher alone was
            needed. Methods that read data, or what was made of data, override this.
        """
        return None

    @classmethod
    def grading_config(cls, config: SynthesizerConfig) -> SynthesizerConfig:
        """Configuration of the separate, differently seeded synthesizer whose images grade the result."""
        return config

    @classmethod
    def at_cost(cls, config: SynthesizerConfig, passes: int, demand: Demand) -> SynthesizerConfig:
        """The same method sized to a budget, as comparisons at equal cost need it.

        Args:
            config: what to size; everything that does not decide the cost stays.
            passes: teacher forward+backward image passes that the warm-up may take, at the most; a method whose
                smallest unit is larger than that takes one unit.
            demand: what will be asked of it.

        Returns:
            A configuration; the same one where a method has no cost (`images`, `noise`).
        """
        return config

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
            students: models to play against, or none; methods that need one get one in every round.

        Returns:
            The round's loss terms, by the name of the weight that scales them, unweighted.
        """

    @property
    def available(self) -> int | None:
        """Fresh images that `sample` can give now; None for any number."""
        return None

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """Draw fresh images, which nothing was or will be trained on and which no other call returns.

        Args:
            n: how many; at most `available`.

        Returns:
            (n, C, H, W), detached, in the teacher's normalised space.
        """

    def training_batch(self, n: int) -> Tensor:
        """Draw images (n, C, H, W) to calibrate or train a student on; methods that keep a set draw from it."""
        return self.sample(n)

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue as if never interrupted, the generator's state included."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""


def require_finite(config: SynthesizerConfig, values: Mapping[str, float], where: str) -> None:
    """Stop a synthesis that has diverged, before noise or black images come of it.

    Args:
        config: of the synthesis; the message names its learning rates and weights.
        values: loss terms and what else must be finite, by name.
        where: in which step or after which, for the message.

    Raises:
        ArtefactError: a value is infinite or not a number.
    """
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
