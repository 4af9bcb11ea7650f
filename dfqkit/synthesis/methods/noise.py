"""Noise: what a result is worth when nothing at all is known of the images; a baseline.

What belongs here: Gaussian and uniform noise behind the interface of a synthesizer. There is no paper, no loss and no
need of the teacher but its normalisation. A recipe has to accept it in so many words, and every report about what came
of it opens with a warning, because a file calibrated on noise looks like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from dfqkit.synthesis.base import NO_DEMAND, Demand, Losses, Synthesizer, SynthesizerConfig
from dfqkit.teacher.load import Teacher


class NoiseConfig(SynthesizerConfig):
    """The ``synthesis`` section of a recipe with ``method: noise``."""

    method: Literal["noise"] = "noise"
    accept_noise: bool = Field(
        False, validate_default=True, description="Must be true: says that a baseline is wanted, and no good result."
    )
    kind: Literal["gaussian", "uniform"] = Field(
        "gaussian",
        description="gaussian: N(0, 1) in the normalised space, cut off where no image can be; uniform: every pixel "
        "value is as likely. Ours.",
    )

    @field_validator("accept_noise")
    @classmethod
    def _accepted(cls, value: bool) -> bool:
        if not value:
            message = (
                "must be true for method noise (found false). Noise holds nothing that the network was made for, so "
                "that ranges and weights fitted on it do not fit real images. Use method dfq, or images where there "
                "are similar ones; for a baseline write accept_noise: true"
            )
            raise ValueError(message)
        return value


class Noise(Synthesizer):
    """Gaussian or uniform noise, a baseline; only with accept_noise: true, and reports warn of it."""

    Config = NoiseConfig
    needs: ClassVar[frozenset[str]] = frozenset()
    warning: ClassVar[str | None] = (
        "Random noise took the place of images (synthesis method noise). It holds nothing that the network was made "
        "for: the result is a baseline, and what is measured on noise says nothing about real images."
    )

    def __init__(
        self, config: NoiseConfig, teacher: Teacher, generator: torch.Generator, demand: Demand = NO_DEMAND
    ) -> None:
        super().__init__(config, teacher, generator, demand)
        self.config = config
        ends = torch.tensor([0.0, 1.0], device=self.device).reshape(2, 1, 1, 1).expand(2, teacher.image.shape[0], 1, 1)
        self.low, self.high = teacher.image.normalize(ends)

    @property
    def warmup_rounds(self) -> int:
        """None: nothing is optimised."""
        return 0

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """Nothing to do."""
        return {}

    def sample(self, n: int) -> Tensor:
        """Independent noise (n, C, H, W) within the bounds of each channel."""
        shape = (n, *self.teacher.image.shape)
        if self.config.kind == "uniform":
            return self.teacher.image.normalize(torch.rand(shape, generator=self.rng, device=self.device))
        drawn = torch.randn(shape, generator=self.rng, device=self.device)
        return torch.clamp(drawn, self.low, self.high)

    def state_dict(self) -> dict[str, Tensor]:
        """The random state."""
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.rng.set_state(state["rng"].cpu())
