"""The interface every synthesizer keeps, and its configuration base."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ..teacher import Teacher

Losses = dict[str, float]


class SynthesizerConfig(BaseModel):
    """Base of every method's section in a recipe: frozen, and closed (an unknown key is an error)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: str


class Synthesizer(ABC):
    """Makes images a teacher would accept, from the teacher alone.

    The caller owns devices, loops, progress, seeds, storage and train/eval modes; students that are passed in are
    frozen and in eval mode. A synthesizer draws only from the generator it is given and leaves the teacher as it found
    it.

    Attributes:
        Config: the method's configuration class.
        needs: what the teacher must offer, of "batchnorm", "linear_head", "features", "records", "student".
        cost: teacher forward+backward image passes spent so far.
        game_rounds: rounds with students that the caller is going to run, for schedules that span them.
    """

    Config: ClassVar[type[SynthesizerConfig]]
    needs: ClassVar[frozenset[str]]

    def __init__(self, config: SynthesizerConfig, teacher: Teacher, generator: torch.Generator) -> None:
        self.teacher = teacher
        self.rng = generator
        self.cost = 0
        self.game_rounds = 0

    @classmethod
    def grading_config(cls, config: SynthesizerConfig) -> SynthesizerConfig:
        """Configuration of the separate, differently seeded synthesizer whose images grade the result."""
        return config

    @property
    @abstractmethod
    def warmup_rounds(self) -> int:
        """Rounds to run before images are drawn, without a student."""

    @abstractmethod
    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """Run one round of the method's own optimisation.

        Args:
            students: fake-quantized models to play against, or none.

        Returns:
            The round's loss terms, by the name of the weight that scales them, unweighted.
        """

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """Draw fresh images, which nothing was or will be trained on.

        Args:
            n: how many.

        Returns:
            (n, C, H, W), detached, in the teacher's normalised space.
        """

    def training_batch(self, n: int) -> Tensor:
        """Draw images (n, C, H, W) to train a student on; methods that remember past images mix these in."""
        return self.sample(n)

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue as if never interrupted, the generator's state included."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
