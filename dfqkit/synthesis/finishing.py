"""Synthesizers whose images are finished when they are drawn: the frame, and side inputs as they are drawn.

What belongs here: what a finish has in common, and the finish of side inputs. The low-pass is `low_pass`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfqkit.synthesis.base import Losses, Synthesizer
from dfqkit_export.images.entries import drawn


class Finished(Synthesizer):
    """Another synthesizer whose images are finished when they are drawn; all else is its own."""

    def __init__(self, made: Synthesizer) -> None:
        # Not the base's: a second count of the cost and a second random state would go stale.
        self.made, self.config = made, made.config
        self.teacher, self.rng, self.demand, self.device = made.teacher, made.rng, made.demand, made.device

    @abstractmethod
    def _finish(self, images: Tensor) -> Tensor:
        """Return normalised images (n, C, H, W) as they are to be."""

    def ask(self, fresh: int) -> None:
        """Ask the synthesizer."""
        super().ask(fresh)
        self.made.ask(fresh)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the synthesizer has."""
        if name == "made":  # asked for before __init__ has run, as copying does
            raise AttributeError(name)
        return getattr(self.made, name)

    @property
    def warmup_rounds(self) -> int:
        """Return the synthesizer's."""
        return self.made.warmup_rounds

    @property
    def available(self) -> int | None:
        """Return the synthesizer's."""
        return self.made.available

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """Return the synthesizer's round; what it optimises is not finished."""
        return self.made.synthesize(students)

    def sample(self, n: int) -> Tensor:
        """Return the synthesizer's fresh images, finished."""
        return self._finish(self.made.sample(n))

    def training_batch(self, n: int) -> Tensor:
        """Return the synthesizer's training images, finished."""
        return self._finish(self.made.training_batch(n))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the synthesizer's."""
        return self.made.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the synthesizer."""
        self.made.load_state_dict(state)


class SidesDrawn(Finished):
    """Side inputs are drawn evenly from their ranges, in steps of 1/255, whatever was made in their place."""

    def _finish(self, images: Tensor) -> Tensor:
        image, found = self.teacher.image, images.detach().clone()
        for entry in drawn(image.inputs):
            count, (low, high) = math.prod(entry.shape or ()), entry.range or (0.0, 1.0)
            codes = torch.randint(0, 256, (len(images), count), generator=self.rng, device=self.device)
            plane = torch.full((len(images), math.prod(image.shape[1:])), low, device=self.device)
            plane[:, :count] = low + (high - low) * codes / 255
            found[:, entry.start] = plane.reshape(len(images), *image.shape[1:])
        return found
