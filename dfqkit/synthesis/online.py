"""Methods that train generators and draw from them for as long as images are needed.

What belongs here: what such methods share, which is everything but the loss: the generators and their optimizers, the
two kinds of round, the memory of the game's images, drawing, and the state. A method is its configuration, its terms
(`OnlineSynthesizer._terms`) and their weights.

Common to all of them, and not of any paper: several generators where wanted, each with a share of the batch; a warm-up
before there is a student to train, since calibration needs images first; past images of the game are remembered and
drawn again, against forgetting; drawing leaves the generators' BatchNorm layers as they were; a learning rate that
falls to a twentieth, not to 0, so that the last rounds still count.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dfqkit.config.pools import OnlineConfig
from dfqkit.synthesis.base import Losses, Synthesizer, require_finite, weighted_sum
from dfqkit.synthesis.generator import Generator
from dfqkit.synthesis.optimizers import cosine, optimizer_tensors, restore_optimizer, under


class OnlineSynthesizer(Synthesizer):
    """Base of the methods that train generators.

    A round of the warm-up is one step of every generator, a round of the game ``config.steps``. A method that needs a
    student is given one in the warm-up too; for all others students mean that the game is on.

    A subclass gives `_terms`; what it keeps between steps goes through `_tensors` and
    `_load_tensors`. Images are drawn from ``averages``, which are the generators themselves where ``ema`` is 0.
    """

    config: OnlineConfig
    betas: ClassVar[tuple[float, float]] = (0.5, 0.999)

    def _set_up(self) -> None:
        super()._set_up()
        config = self.config
        self.generators = [
            Generator(self.teacher.image, config.latent, config.width, self.rng).to(self.device)
            for _ in range(config.generators)
        ]
        self.optimizers = [torch.optim.Adam(g.parameters(), lr=config.lr, betas=self.betas) for g in self.generators]
        self.averages = self.generators
        if config.ema:
            self.averages = [copy.deepcopy(member).requires_grad_(False) for member in self.generators]
        self.warmed = 0
        self.played = 0
        shape = (config.memory, *self.teacher.image.shape)
        self.memory = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        self.remembered = 0

    @property
    def warmup_rounds(self) -> int:
        """Rounds before images are drawn."""
        return self.config.warmup

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """Return one round of every generator: a step of the warm-up, or ``steps`` steps of the game."""
        config = self.config
        game = bool(students) and ("student" not in self.config.needs or self.warmed >= config.warmup)
        if game:
            lr, steps = cosine(config.lr_game, self.played / max(self.demand.game_rounds, 1), floor=0.05), config.steps
        else:
            lr, steps = cosine(config.lr, self.warmed / max(config.warmup, 1), floor=0.05), 1
        total: dict[str, float] = {}
        for _ in range(steps):
            for index, optimizer in enumerate(self.optimizers):
                for group in optimizer.param_groups:
                    group["lr"] = lr
                images, terms = self._step(index, students)
                if game:
                    self._remember(images)
                for name, value in terms.items():
                    total[name] = total.get(name, 0.0) + value / (steps * len(self.generators))
        self.played += game
        self.warmed += not game
        return total

    def _step(self, index: int, students: Sequence[nn.Module]) -> tuple[Tensor, Losses]:
        """Return one optimiser step of one generator; the images it was taken on, detached, and the terms."""
        member, optimizer = self.generators[index], self.optimizers[index]
        n = self.config.each_batch
        images = member(self._latent(n))
        terms = self._terms(images, students)
        loss = weighted_sum(terms, self.weights)
        torch.autograd.backward(loss, inputs=list(member.parameters()))
        norm = nn.utils.clip_grad_norm_(member.parameters(), self.config.clip)
        found = {name: float(term.detach()) for name, term in terms.items()}
        values = {**found, "the gradient's norm": float(norm)}
        require_finite(self.config, values, f"in round {self.warmed + self.played + 1}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._follow(index)
        self.cost += n
        return images.detach(), found

    @abstractmethod
    def _terms(self, images: Tensor, students: Sequence[nn.Module]) -> dict[str, Tensor]:
        """Return the unweighted terms of one generator's normalised images (n, C, H, W); runs the teacher once."""

    def _follow(self, index: int) -> None:
        """Move the average towards its generator; the decay grows with the rounds, so that the start is forgotten."""
        if self.config.ema:
            rounds = self.warmed + self.played
            decay = min(self.config.ema, (1 + rounds) / (10 + rounds))
            with torch.no_grad():
                new = self.generators[index].parameters()
                for kept, value in zip(self.averages[index].parameters(), new, strict=True):
                    kept.lerp_(value, 1 - decay)

    def sample(self, n: int) -> Tensor:
        """Fresh images (n, C, H, W), evenly from all generators; what is left over, one each from the first."""
        share, over = divmod(n, len(self.averages))
        with torch.no_grad():
            images = torch.cat([self._draw(member, share + (i < over)) for i, member in enumerate(self.averages)])
        if not bool(images.isfinite().all()):
            values = {"a pixel of the images": math.nan}
            require_finite(self.config, values, f"after {self.warmed + self.played} rounds")
        return images

    def training_batch(self, n: int) -> Tensor:
        """Half from memory, where the game has left something in it, the rest fresh."""
        old = n // 2 if self.remembered else 0
        return torch.cat([self._recall(old), self.sample(n - old)]) if old else self.sample(n)

    def _draw(self, member: Generator, n: int) -> Tensor:
        """Return images in training-mode statistics, as they were optimised, without moving the generator's buffers."""
        kept = {name: buffer.clone() for name, buffer in member.named_buffers()}
        images: Tensor = member(self._latent(max(n, 2)))[:n]
        for name, buffer in member.named_buffers():
            buffer.copy_(kept[name])
        return images

    def _latent(self, n: int) -> Tensor:
        return torch.randn((n, self.config.latent), generator=self.rng, device=self.device)

    def _remember(self, images: Tensor) -> None:
        """Keep images, 8 bits a channel; a full memory replaces entries drawn at random."""
        if not len(self.memory):
            return
        codes = self.coded(images)
        free = len(self.memory) - self.remembered
        added = codes[:free]
        self.memory[self.remembered : self.remembered + len(added)] = added
        self.remembered += len(added)
        rest = codes[free:]
        if len(rest):
            slots = torch.randperm(len(self.memory), generator=self.rng, device=self.device)[: len(rest)]
            self.memory[slots] = rest[: len(slots)]

    def _recall(self, n: int) -> Tensor:
        index = torch.randint(self.remembered, (n,), generator=self.rng, device=self.device)
        return self.decoded(self.memory[index])

    def state_dict(self) -> dict[str, Tensor]:
        """Return generators, their averages and optimizers, the memory, the counters and the random state."""
        state = {
            "counters": torch.tensor([self.warmed, self.played, self.cost, self.remembered]),
            "rng": self.rng.get_state(),
            "memory": self.memory[: self.remembered],
            **{f"method.{name}": value for name, value in self._tensors().items()},
        }
        for index, (member, optimizer) in enumerate(zip(self.generators, self.optimizers, strict=True)):
            state |= {f"generator.{index}.{name}": value for name, value in member.state_dict().items()}
            state |= {f"optimizer.{index}.{name}": value for name, value in optimizer_tensors(optimizer).items()}
            if self.config.ema:
                state |= {f"average.{index}.{name}": v for name, v in self.averages[index].state_dict().items()}
        return {name: value.detach().clone() for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.warmed, self.played, self.cost, self.remembered = state["counters"].tolist()
        self.rng.set_state(state["rng"].cpu())
        self.memory[: self.remembered] = state["memory"]
        for index, (member, optimizer) in enumerate(zip(self.generators, self.optimizers, strict=True)):
            member.load_state_dict(under(state, f"generator.{index}."))
            restore_optimizer(optimizer, under(state, f"optimizer.{index}."))
            if self.config.ema:
                self.averages[index].load_state_dict(under(state, f"average.{index}."))
        self._load_tensors(under(state, "method."))

    def _tensors(self) -> dict[str, Tensor]:
        """Return what the method keeps between steps beside all this."""
        return {}

    def _load_tensors(self, state: dict[str, Tensor]) -> None:
        """Put back what `_tensors` returned."""
