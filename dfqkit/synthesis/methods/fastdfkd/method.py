"""The algorithm of FastDFKD; its source, formula and deviations are told in the package."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.augmentation import shifted, usual_shift
from dfqkit.synthesis.base import Losses, weighted_sum
from dfqkit.synthesis.generator import Generator, LatentBatch
from dfqkit.synthesis.methods.fastdfkd import FastDFKDConfig
from dfqkit.synthesis.optimizers import optimizer_tensors, prefixed, restore_optimizer, under
from dfqkit.synthesis.pool import PoolSynthesizer
from dfqkit.teacher.taps import BatchNormTap

_BETAS = (0.5, 0.999)
_REPTILE = 67.0  # hard-coded by the authors; Adam makes it matter little


class FastDFKD(PoolSynthesizer):
    """A meta-generator, and for every batch an adapted copy of it, against a teacher's statistics and its students."""

    config: FastDFKDConfig
    plays: ClassVar[bool] = True

    def _set_up(self) -> None:
        super()._set_up()
        config = self.config
        self.shift = usual_shift(self.teacher.image) if config.shift is None else config.shift
        self.tap = BatchNormTap(self.teacher.model)
        self.meta = self._generator()
        self.meta_optimizer = torch.optim.Adam(self.meta.parameters(), betas=_BETAS)
        self.mix: list[tuple[Tensor, Tensor]] = []

    @property
    def batches(self) -> int:
        """Batches of the warm-up, those whose images are dropped included."""
        return self.config.warmup_batches + super().batches

    def _keep(self, images: Tensor, *, game: bool) -> None:
        if self.finished > self.config.warmup_batches:
            super()._keep(images, game=game)

    def _generator(self) -> Generator:
        return Generator(self.teacher.image, self.config.latent, self.config.width, self.rng).to(self.device)

    def _begin(self) -> None:
        config = self.config
        if config.reset_after is not None and self.finished == config.warmup_batches + config.reset_after:
            fresh = self._generator()
            self.meta.project.load_state_dict(fresh.project.state_dict())
            self.meta.body[0].load_state_dict(fresh.body[0].state_dict())
        self.member = copy.deepcopy(self.meta)
        self.batch = LatentBatch(config.batch, config.latent, self.teacher.image.classes, self.rng)
        groups = [
            {"params": list(self.member.parameters()), "lr": config.lr_generator},
            {"params": [self.batch.z], "lr": config.lr_latent},
        ]
        self.optimizer = torch.optim.Adam(groups, betas=_BETAS)
        self.gradients = [torch.zeros_like(parameter) for parameter in self.member.parameters()]

    def _step(self, students: Sequence[nn.Module], step: int, steps: int) -> Losses:
        images = self.member(self.batch.z)
        shown = shifted(images, self.teacher.image, self.shift, self.rng, flip=self.config.flip)
        with self.tap as tap:
            logits = self.teacher.model(shown)
        mixed = self._mixed(tap)
        layers = [
            losses.bn_l2(*moments, s.running_mean, s.running_variance)
            for moments, s in zip(mixed, tap.statistics, strict=True)
        ]
        terms = {"bn": torch.stack(layers).sum(), **self._objects(logits)}
        if self.weights["one_hot"]:
            terms["one_hot"] = nn.functional.cross_entropy(logits, self.batch.labels)
        if students and self.weights["adversarial"] and self.finished >= self.batches:
            terms["adversarial"] = -self._apart(students, losses.agreeing_kl, shown, logits)
        loss = weighted_sum(terms, self.weights)
        self.batch.keep(loss, images=images)
        parameters = list(self.member.parameters())
        self.batch.z.grad, *gradients = torch.autograd.grad(loss, [self.batch.z, *parameters])
        for total, parameter, gradient in zip(self.gradients, parameters, gradients, strict=True):
            parameter.grad = gradient
            total += gradient
        self.optimizer.step()
        if step == steps - 1:
            self._learn(steps)
            self.mix = [(mean.detach(), variance.detach()) for mean, variance in mixed]
        return {name: float(term.detach()) for name, term in terms.items()}

    def _mixed(self, tap: BatchNormTap) -> list[tuple[Tensor, Tensor]]:
        """Return mean and variance of every layer's input, mixed with those of earlier batches."""
        found = [(s.mean, s.variance) for s in tap.statistics]
        if not self.mix:
            return found
        old, new = self.config.momentum, 1 - self.config.momentum
        pairs = zip(self.mix, found, strict=True)
        return [(new * n + old * m, new * w + old * v) for (m, v), (n, w) in pairs]

    def _learn(self, steps: int) -> None:
        """One step of the meta-generator."""
        for parameter, adapted, total in zip(
            self.meta.parameters(), self.member.parameters(), self.gradients, strict=True
        ):
            reptile = self.config.gradient == "reptile"
            parameter.grad = _REPTILE * (parameter - adapted).detach() if reptile else total
        for group in self.meta_optimizer.param_groups:
            group["lr"] = self.config.lr_meta or steps * self.config.lr_generator
        self.meta_optimizer.step()
        self.meta_optimizer.zero_grad(set_to_none=True)

    def _finish(self) -> Tensor:
        return self.batch.best["images"]

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"meta": self.meta.state_dict(), "meta_optimizer": optimizer_tensors(self.meta_optimizer)}
        parts["mix"] = {f"{i}.{n}": v for i, pair in enumerate(self.mix) for n, v in enumerate(pair)}
        if self.at:
            parts |= {
                "batch": self.batch.tensors(),
                "copy": self.member.state_dict(),
                "optimizer": optimizer_tensors(self.optimizer),
                "gradients": {str(i): total for i, total in enumerate(self.gradients)},
                "best": self.batch.best,
            }
        return prefixed(**parts)

    def _load_tensors(self, state: dict[str, Tensor]) -> None:
        self.meta.load_state_dict(under(state, "meta."))
        restore_optimizer(self.meta_optimizer, under(state, "meta_optimizer."))
        mix = under(state, "mix.")
        self.mix = [(mix[f"{i}.0"].clone(), mix[f"{i}.1"].clone()) for i in range(len(mix) // 2)]
        if self.at:
            self.batch.load(under(state, "batch."), under(state, "best."))
            self.member.load_state_dict(under(state, "copy."))
            restore_optimizer(self.optimizer, under(state, "optimizer."))
            self.gradients = [state[f"gradients.{i}"].clone() for i in range(len(self.gradients))]
