"""The algorithm of shifted moments; imported when one is built, not when methods are listed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.base import Losses
from dfqkit.synthesis.optimizers import optimizer_tensors, restore_optimizer, under
from dfqkit.synthesis.pool import PoolSynthesizer
from dfqkit.teacher.taps import BatchNormTap
from dfqkit_shifted_moments import ShiftedMomentsConfig


class ShiftedMoments(PoolSynthesizer):
    """Pixels matched to BatchNorm statistics whose means are shifted at random for every batch."""

    config: ShiftedMomentsConfig

    def _set_up(self) -> None:
        super()._set_up()
        teacher = self.teacher
        self.tap = BatchNormTap(teacher.model)
        black_and_white = torch.tensor([0.0, 1.0], device=self.device).reshape(2, 1, 1, 1)
        self.low, self.high = teacher.image.normalize(black_and_white.expand(2, teacher.image.shape[0], 1, 1))
        self.shifts: list[Tensor] = []

    # PoolSynthesizer does the rest: what a round is, which images are fresh and which train, storage and counting.

    def _begin(self) -> None:
        """Start a batch. Random numbers come from ``self.rng`` alone, on ``self.device``."""
        shape = (self.config.batch, *self.teacher.image.shape)
        self.pixels = torch.randn(shape, generator=self.rng, device=self.device).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.pixels], lr=self.config.lr)
        self.shifts = []

    def _step(self, students: Sequence[nn.Module], step: int, steps: int) -> Losses:
        """Return one optimiser step. Gradients are taken for the pixels only, so that the teacher stays as it was."""
        weights = self.config.weights
        with self.tap as tap:
            logits = self.teacher.model(self.pixels)
            statistics = list(tap.statistics)
        if not self.shifts:
            self.shifts = [
                self.config.shift * torch.randn(len(s.mean), generator=self.rng, device=self.device) for s in statistics
            ]
        matched = [
            losses.bn_mse(s.mean, s.variance, s.running_mean + shift * s.running_variance.sqrt(), s.running_variance)
            for s, shift in zip(statistics, self.shifts, strict=True)
        ]
        terms = {"bn": torch.stack(matched).mean(), "one_hot": losses.pseudo_label(logits)}
        loss = weights.bn * terms["bn"] + weights.one_hot * terms["one_hot"]
        (self.pixels.grad,) = torch.autograd.grad(loss, [self.pixels])
        self.optimizer.step()
        with torch.no_grad():
            self.pixels.copy_(torch.clamp(self.pixels, self.low, self.high))
        return {name: float(term.detach()) for name, term in terms.items()}

    def _finish(self) -> Tensor:
        """Return the finished batch."""
        return self.pixels

    def _tensors(self) -> dict[str, Tensor]:
        """Return what the next step needs: an interrupted run goes on bit for bit."""
        if not self.at:
            return {}
        state = {"pixels": self.pixels} | {f"shift.{index}": shift for index, shift in enumerate(self.shifts)}
        return state | {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}

    def _load_tensors(self, state: dict[str, Tensor]) -> None:
        """Put back what `_tensors` gave."""
        if not self.at:
            return
        with torch.no_grad():
            self.pixels.copy_(state["pixels"])
        shifts = under(state, "shift.")
        self.shifts = [shifts[str(index)].to(self.device) for index in range(len(shifts))]
        restore_optimizer(self.optimizer, under(state, "optimizer."))
