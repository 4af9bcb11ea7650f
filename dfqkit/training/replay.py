"""Earlier images of a training, drawn again by how hard they are for the student and how rare their class is.

What belongs here: which are kept, with what priority, and what a drawn one weighs.

Sources: Liu et al., "Small Scale Data-Free Knowledge Distillation", CVPR 2024 (SSD-KD): a small buffer of made images,
replayed by the teacher's distance from the student, by difficulty and class. Drawing and weights are Schaul et al.,
"Prioritized Experience Replay", ICLR 2016, equation 1 and section 3.4. Of N images, with d_i the distance when image i
was last trained on, and s_i the share that images of its class (the teacher's answer) have, times the classes:

    P(i) = p_i / sum_j p_j,    p_i = (d_i + mean d / 100)^difficulty * s_i^-balance,    w_i = (N P(i))^-correction

Differs: SSD-KD also modulates what its generator minimises, which stays the method's own here; no code of theirs is
public, so the modulation is our reading. Weights are over their mean, not their maximum, so that a step is as large as
without them; what is added to d is relative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dfqkit.config.distill import LoopConfig
from dfqkit.synthesis.base import Synthesizer

_KEPT = ("codes", "distances", "classes")


class Replay:
    """The images that are kept, the oldest of which make room for new ones.

    Attributes:
        weights: What each image of the last batch weighs, (n,), those that are new 1.
    """

    def __init__(self, config: LoopConfig, synthesizer: Synthesizer, rng: torch.Generator) -> None:
        assert config.replay is not None
        self.config, self.synthesizer, self.rng = config.replay, synthesizer, rng
        size = max(config.replay.images, config.batch)
        self.codes = torch.zeros((size, *synthesizer.teacher.image.shape), dtype=torch.uint8, device=rng.device)
        self.distances = torch.zeros(size, device=rng.device)
        self.classes = torch.zeros(size, dtype=torch.int64, device=rng.device)
        self.weights = torch.ones(0, device=rng.device)
        self.seen = 0  # images that were ever kept
        self.places: tuple[Tensor, ...] = ()

    @property
    def count(self) -> int:
        """Images that are kept now."""
        return min(self.seen, len(self.codes))

    def probabilities(self) -> Tensor:
        """Return with what probability each is drawn, (count,)."""
        distances, config = self.distances[: self.count], self.config
        images = torch.bincount(self.classes[: self.count])
        share = images[self.classes[: self.count]] * (int((images > 0).sum()) / self.count)
        priority = (distances + 0.01 * distances.mean() + 1e-12).pow(config.difficulty) / share.pow(config.balance)
        return priority / priority.sum()

    def batch(self, n: int, draw: Callable[[int], Tensor]) -> Tensor:
        """Return kept images and, of ``draw``, new ones, normalised (n, C, H, W); the new ones are kept from now on."""
        old = int(n * self.config.share) if self.seen else 0
        new = draw(n - old)
        self.weights, replayed = torch.ones(n, device=new.device), new[:0]
        chosen = torch.zeros(0, dtype=torch.int64, device=new.device)
        if old:
            probabilities = self.probabilities()
            chosen = torch.multinomial(probabilities, old, replacement=True, generator=self.rng)
            weights = (self.count * probabilities[chosen]) ** -self.config.correction
            self.weights[:old], replayed = weights / weights.mean(), self.synthesizer.decoded(self.codes[chosen])
        added = torch.arange(self.seen, self.seen + len(new), device=new.device) % len(self.codes)
        self.codes[added] = self.synthesizer.coded(new)
        self.seen, self.places = self.seen + len(new), (chosen, added)
        return torch.cat([replayed, new])

    def note(self, distances: Tensor, classes: Tensor) -> None:
        """Keep what the last batch's images, (n,), were found to be; of one that was drawn twice, the larger."""
        at = [len(self.places[0])]
        for kept, values in ((self.distances, distances.float()), (self.classes, classes)):
            for places, found in zip(self.places, values.tensor_split(at), strict=True):
                kept.scatter_reduce_(0, places, found, "amax", include_self=False)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the images and what is known of them."""
        return {"seen": torch.tensor(self.seen), **{name: getattr(self, name)[: self.count] for name in _KEPT}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` returned."""
        self.seen = int(state["seen"])
        for name in _KEPT:
            getattr(self, name)[: self.count] = state[name].to(self.rng.device)


def weighed(values: Mapping[str, Any], weights: Tensor) -> dict[str, Any]:
    """Return the same values, of which each image's gradient, in tensors (n, ...), is its weight times as large."""
    found = dict(values)
    for name, value in values.items():
        if isinstance(value, Tensor) and len(value) == len(weights):
            found[name] = torch.lerp(value.detach(), value, weights.to(value.dtype).view(-1, *[1] * (value.dim() - 1)))
    return found
