"""Where a training loop's batches come from: a synthesizer that plays against the students between them.

What belongs here: what `loop` draws from, and what happens to students while they are played against.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dfqkit.config.distill import LoopConfig
from dfqkit.synthesis.base import Losses, Synthesizer
from dfqkit.synthesis.optimizers import under


class LiveStream:
    """Batches straight from a synthesizer, moved a little: shifted and flipped as ``rng`` draws it."""

    def __init__(self, synthesizer: Synthesizer, config: LoopConfig, rng: torch.Generator) -> None:
        self.synthesizer, self.config, self.rng = synthesizer, config, rng

    def advance(self, students: Sequence[nn.Module]) -> Losses:
        """Play one round of the synthesizer, the students frozen meanwhile; a stored set has none and no losses."""
        with frozen(students):
            return self.synthesizer.synthesize(students)

    def batch(self, n: int) -> Tensor:
        """Fresh and remembered images, normalised (n, C, H, W)."""
        return _moved(self.synthesizer.training_batch(n), self.config, self.rng)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the synthesizer's state and the augmentation's."""
        return {f"synthesizer.{name}": value for name, value in self.synthesizer.state_dict().items()} | {
            "rng": self.rng.get_state()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from there."""
        self.synthesizer.load_state_dict(under(state, "synthesizer."))
        self.rng.set_state(state["rng"].cpu())


def _moved(images: Tensor, config: LoopConfig, rng: torch.Generator) -> Tensor:
    if config.shift:
        down, right = torch.randint(-config.shift, config.shift + 1, (2,), generator=rng, device=rng.device).tolist()
        images = torch.roll(images, (down, right), (2, 3))
    if config.flip and bool(torch.rand((), generator=rng, device=rng.device) < 0.5):
        images = images.flip(3)
    return images


@contextmanager
def frozen(students: Sequence[nn.Module]) -> Iterator[None]:
    """Students as adversaries: gradients pass through them, none arrive in them."""
    trainable = [p for student in students for p in student.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
