"""The algorithm of CMI; its source, formula and deviations are told in the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.config.synthesis import NO_DEMAND, Demand
from dfqkit.synthesis.augmentation import cropped, shifted, usual_shift
from dfqkit.synthesis.base import Losses
from dfqkit.synthesis.generator import Generator
from dfqkit.synthesis.methods.cmi import CMIConfig
from dfqkit.synthesis.optimizers import optimizer_tensors, restore_optimizer, under
from dfqkit.synthesis.pool import PoolSynthesizer
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.taps import BatchNormTap, LayerTap

_BETAS = (0.5, 0.999)


class CMI(PoolSynthesizer):
    """A generator and its latents for every batch, against a teacher's statistics and the memory of earlier images."""

    config: CMIConfig

    plays: ClassVar[bool] = True

    def __init__(
        self, config: CMIConfig, teacher: Teacher, generator: torch.Generator, demand: Demand = NO_DEMAND
    ) -> None:
        super().__init__(config, teacher, generator, demand)
        self.weights: dict[str, float] = config.weights.model_dump()
        self.shift = usual_shift(teacher.image) if config.shift is None else config.shift
        self.tap = BatchNormTap(teacher.model)
        self.layers = LayerTap(teacher.model, config.feature_layers or tuple(self.tap.layers), side="input")
        with torch.no_grad():
            probe = self._teach(torch.zeros((1, *teacher.image.shape), device=self.device))[1]
        self.head = _head(probe.shape[1], config.projection, generator)
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), lr=config.lr_head, betas=_BETAS)
        self.bank = torch.zeros((0, 2 * probe.shape[1]), device=self.device)

    def _begin(self) -> None:
        config = self.config
        self.member = Generator(self.teacher.image, config.latent, config.width, self.rng).to(self.device)
        self.z = torch.randn((config.batch, config.latent), generator=self.rng, device=self.device, requires_grad=True)
        classes = self.teacher.image.classes
        self.labels = torch.randint(classes, (config.batch,), generator=self.rng, device=self.device)
        self.optimizer = torch.optim.Adam([*self.member.parameters(), self.z], lr=config.lr, betas=_BETAS)
        self.best: dict[str, Tensor] = {}

    def _step(self, students: Sequence[nn.Module], step: int, steps: int) -> Losses:
        config = self.config
        images = self.member(self.z)
        shown = shifted(images, self.teacher.image, self.shift, self.rng, flip=config.flip)
        _, local = self._teach(cropped(images, config.crop, self.rng, flip=config.flip))
        with self.tap as tap:
            logits, global_ = self._teach(shown)
        terms = {
            "bn": torch.stack(tap.deviations(losses.bn_l2)).sum(),
            "one_hot": nn.functional.cross_entropy(logits, self.labels),
            "contrastive": self._contrast(local, global_),
        }
        if students and self.weights["adversarial"]:
            divergences = [losses.agreeing_kl(student(shown), logits) for student in students]
            terms["adversarial"] = -torch.stack(divergences).mean()
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        if not self.best or bool(loss < self.best["loss"]):
            kept = {"loss": loss, "images": images, "features": torch.cat([local, global_], 1)}
            self.best = {name: value.detach().clone() for name, value in kept.items()}
        optimizers = (self.optimizer, self.head_optimizer)
        trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=trained)  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
        return {name: float(term.detach()) for name, term in terms.items()}

    def _teach(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and features (N, channels)."""
        with self.layers as layers:
            logits: Tensor = self.teacher.model(views)
            entered = [x.float() for x in layers.values.values()]
        return logits, torch.cat([x.flatten(2).mean(2) if x.dim() > 2 else x for x in entered], 1)

    def _contrast(self, local: Tensor, global_: Tensor) -> Tensor:
        if not len(self.bank) or not self.config.negatives:
            local, global_ = self._project(local, global_)
            return losses.info_nce(local, global_, self.config.temperature)
        drawn = torch.randperm(len(self.bank), generator=self.rng, device=self.device)[: self.config.negatives]
        rows = self._project(local, global_, *self.bank[drawn].chunk(2, 1))
        local, global_, cached_local, cached_global = rows
        return losses.info_nce(local, global_, self.config.temperature, cached_local, cached_global)

    def _project(self, *views: Tensor) -> tuple[Tensor, ...]:
        projected: Tensor = self.head(torch.cat(views))
        return projected.split_with_sizes([len(view) for view in views])

    def _finish(self) -> Tensor:
        kept = torch.cat([self.bank, self.best["features"]])
        self.bank = kept[max(0, len(kept) - self.config.bank) :]
        return self.best["images"]

    def _tensors(self) -> dict[str, Tensor]:
        state = {"bank": self.bank, **_named("head", self.head.state_dict())}
        state |= _named("head_optimizer", optimizer_tensors(self.head_optimizer))
        if self.at:
            state |= {"z": self.z, "labels": self.labels, **_named("best", self.best)}
            state |= _named("generator", self.member.state_dict())
            state |= _named("optimizer", optimizer_tensors(self.optimizer))
        return state

    def _load_tensors(self, state: dict[str, Tensor]) -> None:
        self.bank = state["bank"].clone()
        self.head.load_state_dict(under(state, "head."))
        restore_optimizer(self.head_optimizer, under(state, "head_optimizer."))
        if self.at:
            self.z.data.copy_(state["z"])
            self.labels = state["labels"].clone()
            self.best = {name: value.clone() for name, value in under(state, "best.").items()}
            self.member.load_state_dict(under(state, "generator."))
            restore_optimizer(self.optimizer, under(state, "optimizer."))


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _head(channels: int, projection: int, rng: torch.Generator) -> nn.Sequential:
    """Linear, ReLU, linear; drawn as torch draws linear layers, U(-1, 1) / sqrt(inputs), but from ``rng``."""
    with torch.random.fork_rng(devices=[]):  # module constructors draw from the global state
        head = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, projection))
    with torch.no_grad():
        for parameter in head.parameters():
            values = torch.rand(parameter.shape, generator=rng, device=rng.device)
            parameter.copy_((2 * values - 1) * channels**-0.5)
    return head.to(rng.device)
