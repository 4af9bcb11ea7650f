"""Methods that optimise one batch of images after another and keep what comes out.

What belongs here: the set that grows, its two halves, and what is a round. How a batch is made is the method's.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dfqkit.config.pools import PoolConfig
from dfqkit.synthesis.base import Losses, Synthesizer, require_finite
from dfqkit.synthesis.drawing import Deck
from dfqkit.synthesis.optimizers import on_device, under
from dfqkit_export.errors import ArtefactError


class PoolSynthesizer(Synthesizer):
    """Base of the methods that make a set.

    A round is one optimiser step of the batch at hand, so that an interruption loses little; in a game, after the
    warm-up and against students, it is a whole new batch for the training set (or nothing, for methods that take no
    notice of students). Of every finished batch a share goes to the fresh images, the rest to the training images; no
    image is ever in both. Images are kept with 8 bits a channel.

    A subclass gives `_begin`, `_step`, `_finish`, and for what they keep between steps `_tensors` and `_load_tensors`;
    it ``plays`` where students change what is made.
    """

    config: PoolConfig
    plays: ClassVar[bool] = False

    def _set_up(self) -> None:
        super()._set_up()
        self.at = 0
        self.finished = 0
        self.made = 0
        empty = torch.zeros((0, *self.teacher.image.shape), dtype=torch.uint8, device=self.device)
        self.training, self.fresh = empty, empty.clone()
        self.order = Deck(0, self.rng)

    @property
    def batches(self) -> int:
        """Batches that meet the demand."""
        return self.config.batches(self.demand)

    @property
    def warmup_rounds(self) -> int:
        """Steps until the demand is met."""
        return self.batches * self.config.steps

    @property
    def available(self) -> int:
        """Fresh images left."""
        return len(self.fresh)

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """Return one step of the batch at hand; in a game a whole batch, or nothing."""
        config = self.config
        if not students or self.finished < self.batches:
            return self._advance(students, config.steps, game=False)
        if not self.plays:
            return {}
        while True:
            terms = self._advance(students, config.game_steps or config.steps, game=True)
            if not self.at:
                return terms

    def _advance(self, students: Sequence[nn.Module], steps: int, *, game: bool) -> Losses:
        if not self.at:
            self._begin()
        terms = self._step(students, self.at, steps)
        self._require_finite(terms, self.at)
        self.cost += self.config.batch * self.config.passes_per_step
        self.at += 1
        if self.at >= steps:
            images = self._finish().detach()
            if not bool(images.isfinite().all()):
                self._require_finite({"a pixel of the finished batch": math.nan}, steps - 1)
            self.at = 0
            self.finished += 1
            self._keep(images, game=game)
        return terms

    def _require_finite(self, values: Mapping[str, float], step: int) -> None:
        """Stop a batch that has diverged in a step, counted from 0; see `require_finite`."""
        require_finite(self.config, values, f"in step {step + 1} of batch {self.finished + 1}")

    def _keep(self, images: Tensor, *, game: bool) -> None:
        codes = self.coded(images)
        total = self.demand.images
        count = torch.arange(self.made, self.made + len(codes), device=self.device)
        # Spread evenly, so that both halves hold images of every batch.
        share = (self.demand.fresh, total) if total else (1, 1)
        fresh = (count + 1) * share[0] // share[1] > count * share[0] // share[1]
        if game:
            fresh = torch.zeros_like(fresh)
        else:
            self.made += len(codes)
        self.fresh = torch.cat([self.fresh, codes[fresh]])
        self.training = torch.cat([self.training, codes[~fresh]])
        excess = len(self.training) - self.config.memory
        if excess > 0:
            kept = torch.randperm(len(self.training), generator=self.rng, device=self.device)[:-excess]
            self.training, self.order.rest = self.training[kept.sort().values], self.order.rest[:0]

    def sample(self, n: int) -> Tensor:
        """Return the next ``n`` images that are in no training set; each is given once."""
        if n > len(self.fresh):
            message = (
                f"Asked for {n} fresh images, but {len(self.fresh)} are left of {self.made} made. Run more rounds "
                "first, or ask for more when the synthesizer is made (Demand.fresh)."
            )
            raise ArtefactError(message)
        codes, self.fresh = self.fresh[:n], self.fresh[n:]
        return self.decoded(codes)

    def training_batch(self, n: int) -> Tensor:
        """Return images of the training set, every one once before any comes again."""
        if not len(self.training):
            message = "There are no training images yet. Run the warm-up first, with Demand.training above 0."
            raise ArtefactError(message)
        self.order.size = len(self.training)
        return self.decoded(self.training[self.order.deal(n)])

    def state_dict(self) -> dict[str, Tensor]:
        """Both halves, the batch at hand, the counters and the random state."""
        state = {
            "pool.counters": torch.tensor([self.at, self.finished, self.made, self.cost]),
            "pool.training": self.training,
            "pool.fresh": self.fresh,
            "pool.order": self.order.rest,
            "rng": self.rng.get_state(),
            **{f"batch.{name}": value for name, value in self._tensors().items()},
        }
        return {name: value.detach().clone() for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken, whatever device the tensors are on by now."""
        self.at, self.finished, self.made, self.cost = state["pool.counters"].tolist()
        held = {name: state[f"pool.{name}"] for name in ("training", "fresh", "order")}
        self.training, self.fresh, self.order.rest = on_device(held, self.device).values()
        if self.at:
            self._begin()
        self._load_tensors(on_device(under(state, "batch."), self.device))
        self.rng.set_state(state["rng"].cpu())

    @abstractmethod
    def _begin(self) -> None:
        """Draw what a new batch starts from."""

    @abstractmethod
    def _step(self, students: Sequence[nn.Module], step: int, steps: int) -> Losses:
        """Return one optimiser step on the batch at hand, the ``step``-th of ``steps``, counted from 0."""

    @abstractmethod
    def _finish(self) -> Tensor:
        """Return the finished batch, normalised (n, C, H, W)."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """Return what outlives batches, and within a batch (``self.at`` above 0) what `_step` needs to go on."""

    @abstractmethod
    def _load_tensors(self, state: dict[str, Tensor]) -> None:
        """Put back what `_tensors` returned, as copies on ``self.device``; within a batch, right after `_begin`."""
