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
from dfqkit.training.replay import Replay


class LiveStream:
    """Batches straight from a synthesizer, moved a little: shifted and flipped as ``rng`` draws it."""

    def __init__(self, synthesizer: Synthesizer, config: LoopConfig, rng: torch.Generator) -> None:
        self.synthesizer, self.config, self.rng = synthesizer, config, rng
        self.replay = None if config.replay is None else Replay(config, synthesizer, rng)

    def advance(self, students: Sequence[nn.Module]) -> Losses:
        """Play one round of the synthesizer, the students frozen meanwhile; a stored set has none and no losses."""
        with frozen(students):
            return self.synthesizer.synthesize(students)

    def batch(self, n: int, *, replays: bool = False) -> Tensor:
        """Return images, normalised (n, C, H, W); with ``replays`` some of them are earlier ones, if configured."""
        draw = self.synthesizer.training_batch
        images = self.replay.batch(n, draw) if self.replay and replays else draw(n)
        return _moved(images, self.config, self.rng)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the synthesizer's state, the replay's and the augmentation's."""
        states = {f"synthesizer.{name}": value for name, value in self.synthesizer.state_dict().items()}
        kept = self.replay.state_dict() if self.replay else {}
        return states | {f"replay.{name}": value for name, value in kept.items()} | {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from there."""
        self.synthesizer.load_state_dict(under(state, "synthesizer."))
        if self.replay:
            self.replay.load_state_dict(under(state, "replay."))
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
