"""The algorithm of CMI; its source, formula and deviations are told in the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.augmentation import cropped, shifted, usual_shift
from dfqkit.synthesis.base import Losses, weighted_sum
from dfqkit.synthesis.generator import Generator, LatentBatch
from dfqkit.synthesis.methods.cmi import CMIConfig
from dfqkit.synthesis.optimizers import optimizer_tensors, prefixed, restore_optimizer, under
from dfqkit.synthesis.pool import PoolSynthesizer
from dfqkit.teacher.taps import BatchNormTap, LayerTap, per_image

_BETAS = (0.5, 0.999)


class CMI(PoolSynthesizer):
    """A generator and its latents for every batch, against a teacher's statistics and the memory of earlier images."""

    config: CMIConfig
    plays: ClassVar[bool] = True

    def _set_up(self) -> None:
        super()._set_up()
        config, teacher = self.config, self.teacher
        self.shift = usual_shift(teacher.image) if config.shift is None else config.shift
        self.tap = BatchNormTap(teacher.model)
        self.layers = LayerTap(teacher.model, config.feature_layers or tuple(self.tap.layers), side="input")
        with torch.no_grad():
            probe = self._teach(torch.zeros((1, *teacher.image.shape), device=self.device))[1]
        self.head = _head(probe.shape[1], config.projection, self.rng)
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), lr=config.lr_head, betas=_BETAS)
        self.bank = torch.zeros((0, 2 * probe.shape[1]), device=self.device)

    def _begin(self) -> None:
        config = self.config
        self.member = Generator(self.teacher.image, config.latent, config.width, self.rng).to(self.device)
        self.batch = LatentBatch(config.batch, config.latent, self.teacher.image.classes, self.rng)
        self.optimizer = torch.optim.Adam([*self.member.parameters(), self.batch.z], lr=config.lr, betas=_BETAS)

    def _step(self, students: Sequence[nn.Module], step: int, steps: int) -> Losses:
        config = self.config
        images = self.member(self.batch.z)
        shown = shifted(images, self.teacher.image, self.shift, self.rng, flip=config.flip)
        _, local = self._teach(cropped(images, config.crop, self.rng, flip=config.flip))
        with self.tap as tap:
            logits, global_ = self._teach(shown)
        terms = {"bn": torch.stack(tap.deviations(losses.bn_l2)).sum()}
        if self.weights["one_hot"]:
            terms["one_hot"] = nn.functional.cross_entropy(logits, self.batch.labels)
        terms |= {"contrastive": self._contrast(local, global_), **self._objects(logits)}
        if students and self.weights["adversarial"]:
            terms["adversarial"] = -self._apart(students, losses.agreeing_kl, shown, logits)
        loss = weighted_sum(terms, self.weights)
        self.batch.keep(loss, images=images, features=torch.cat([local, global_], 1))
        optimizers = (self.optimizer, self.head_optimizer)
        trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss, inputs=trained)
        for optimizer in optimizers:
            optimizer.step()
        return {name: float(term.detach()) for name, term in terms.items()}

    def _teach(self, views: Tensor) -> tuple[Any, Tensor]:
        """Logits, and features (N, channels)."""
        with self.layers as layers:
            logits = self.teacher.model(views)
            entered = [per_image(x.float()) for x in layers.values.values()]
        return logits, torch.cat(entered, 1)

    def _contrast(self, local: Tensor, global_: Tensor) -> Tensor:
        cached: tuple[Tensor, ...] = ()
        if len(self.bank) and self.config.negatives:
            drawn = torch.randperm(len(self.bank), generator=self.rng, device=self.device)[: self.config.negatives]
            cached = self.bank[drawn].chunk(2, 1)
        local, global_, *rest = self._project(local, global_, *cached)
        return losses.info_nce(local, global_, self.config.temperature, *rest)

    def _project(self, *views: Tensor) -> tuple[Tensor, ...]:
        projected: Tensor = self.head(torch.cat(views))
        return projected.split_with_sizes([len(view) for view in views])

    def _finish(self) -> Tensor:
        kept = torch.cat([self.bank, self.batch.best["features"]])
        self.bank = kept[max(0, len(kept) - self.config.bank) :]
        return self.batch.best["images"]

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"head": self.head.state_dict(), "head_optimizer": optimizer_tensors(self.head_optimizer)}
        if self.at:
            parts |= {"best": self.batch.best, "generator": self.member.state_dict()}
            parts["optimizer"] = optimizer_tensors(self.optimizer)
        return {"bank": self.bank, **(self.batch.tensors() if self.at else {}), **prefixed(**parts)}

    def _load_tensors(self, state: dict[str, Tensor]) -> None:
        self.bank = state["bank"].clone()
        self.head.load_state_dict(under(state, "head."))
        restore_optimizer(self.head_optimizer, under(state, "head_optimizer."))
        if self.at:
            self.batch.load(state, under(state, "best."))
            self.member.load_state_dict(under(state, "generator."))
            restore_optimizer(self.optimizer, under(state, "optimizer."))


def _head(channels: int, projection: int, rng: torch.Generator) -> nn.Sequential:
    """Linear, ReLU, linear; drawn as torch draws linear layers, U(-1, 1) / sqrt(inputs), but from ``rng``."""
    with torch.random.fork_rng(devices=[]):  # module constructors draw from the global state
        head = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, projection))
    with torch.no_grad():
        for parameter in head.parameters():
            values = torch.rand(parameter.shape, generator=rng, device=rng.device)
            parameter.copy_((2 * values - 1) * channels**-0.5)
    return head.to(rng.device)
