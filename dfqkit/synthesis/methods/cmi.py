"""CMI: a new generator for every batch, and a memory of earlier images that new ones must differ from.

Source: Fang, Song, Wang, Shen, Wang, Song, "Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI
2021, and the authors' code, which this follows where summaries of the paper say otherwise. For a batch with labels y,
generator g, latents z and projection head h, all three trained together,

    L = bn * sum over layers of ( ||mean - running mean||_2 + ||variance - running variance||_2 )
        + one_hot * CE(T(x), y)
        - adversarial * mean_n KL(T(x_n) || S(x_n)) * 1(both name the same class)
        + contrastive * InfoNCE(h(local view), h(global view)),        x = global view of g(z).

The global view is a shifted image, the local view an enlarged crop of it. InfoNCE runs over the batch and over features
drawn from a memory of earlier batches' (`losses.info_nce`); features are the spatial means of what enters each
BatchNorm layer, one after the other (a layer called twice counts once). A batch's images are those of its step of
lowest L.

Needs BatchNorm layers; students only for the adversarial term. An image costs two teacher passes a step.

Differs from the authors' code: the generator is ours (see `generator`); windows need not lie on whole pixels and are
cut, not drawn again, where they would leave the image (`views`); mirrors are off unless asked for, because a digit's or
a letter's mirror image is another thing; shifts are an eighth of the image instead of 4 pixels, the same at 32 pixels;
the memory starts empty; with several students the adversarial term is their mean; students learn from the pool in
`dfqkit.training.quantized_student`, not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.augmentation import cropped, shifted, usual_shift
from dfqkit.synthesis.base import NO_DEMAND, Demand, Losses, LossWeights
from dfqkit.synthesis.generator import Generator
from dfqkit.synthesis.optimizers import optimizer_tensors, restore_optimizer, under
from dfqkit.synthesis.pool import PoolConfig, PoolSynthesizer
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.taps import BatchNormTap, LayerTap

_BETAS = (0.5, 0.999)


class CMIWeights(LossWeights):
    """Weights of the loss terms; those of the authors' CIFAR-10 scripts."""

    adversarial: float = Field(0.5, ge=0, description="CMI scripts; no effect without students.")
    bn: float = Field(1.0, ge=0, description="CMI scripts.")
    one_hot: float = Field(1.0, ge=0, description="CMI scripts (the adversarial one: 0.5).")
    contrastive: float = Field(0.8, ge=0, description="CMI scripts.")


class CMIConfig(PoolConfig):
    """The ``synthesis`` section of a recipe with ``method: cmi``."""

    method: Literal["cmi"] = "cmi"
    batch: int = Field(256, ge=2, description="Images that are optimised together (CMI scripts).")
    steps: int = Field(200, ge=1, description="Steps a batch (CMI scripts; their table's CMI-500 means 500).")
    latent: int = Field(256, ge=1, description="Dimension of z (CMI scripts).")
    width: int = Field(64, ge=4, description="Channels of the generator's last hidden map (CMI scripts).")
    lr: float = Field(1e-3, gt=0, description="Of generator and z: Adam, betas 0.5 and 0.999, constant (CMI scripts).")
    lr_head: float = Field(1e-3, gt=0, description="Of the head, Adam of its own (CMI scripts; betas ours: as above).")
    projection: int = Field(256, ge=2, description="Outputs of the head (CMI code).")
    temperature: float = Field(0.1, gt=0, description="tau of the contrastive term (CMI scripts; one has 0.2).")
    bank: int = Field(40960, ge=0, description="Earlier images whose features are kept, oldest out first (CMI code).")
    negatives: int = Field(4096, ge=0, description="How many of them are drawn each step (CMI code).")
    feature_layers: tuple[str, ...] = Field(
        (),
        description="Module paths whose inputs give the features; empty: every BatchNorm layer. The head has as many "
        "hidden units as there are channels: name a few layers of a wide teacher (CMI's ResNet-34: its four stages).",
    )
    crop: float = Field(0.25, gt=0, le=1, description="Smallest share of the area in a local view (CMI code).")
    shift: int | None = Field(None, ge=0, description="Largest shift of a global view; null: an eighth (CMI: 4 of 32).")
    flip: bool = Field(False, description="Mirror views at random, as CMI does; not for digits or text.")
    weights: CMIWeights = CMIWeights()


class CMI(PoolSynthesizer):
    """A generator and its latents for every batch, against a teacher's statistics and the memory of earlier images."""

    Config = CMIConfig
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm"})
    plays: ClassVar[bool] = True
    passes_per_step: ClassVar[int] = 2

    def __init__(
        self, config: CMIConfig, teacher: Teacher, generator: torch.Generator, demand: Demand = NO_DEMAND
    ) -> None:
        super().__init__(config, teacher, generator, demand)
        self.config = config
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
