"""FastDFKD: one generator that learns to be adapted, so that a batch takes a few steps instead of hundreds.

Source: Fang, Mo, Wang, Song, Bei, Zhang, Song, "Up to 100x Faster Data-Free Knowledge Distillation", AAAI 2022, and the
authors' code. Each batch starts from a copy of the meta-generator and new latents z; both take k steps down

    L = bn * sum over layers of ( ||m - running mean||_2 + ||v - running variance||_2 )
        + one_hot * CE(T(x), y)
        - adversarial * mean_n KL(T(x_n) || S(x_n)) * 1(both name the same class),        x = shifted images,

with m = (1 - r) * the batch's mean + r * the mean's running mix over earlier batches, v alike (r is ``momentum``; the
very first batch counts alone). The running mix takes in a batch once, after its last step. Then the meta-generator
takes one Adam step, with k times the copy's learning rate, along

    fomaml:   the sum of the copy's gradients over all k steps,
    reptile:  67 * (meta-generator - copy).

The authors' 220 epochs make one batch each; the first 20, their warm-up, teach the meta-generator only. Here the first
``warmup_batches`` do so, without students, and their images are dropped: a generator that has met few batches needs
more than k steps. A comparison at equal cost keeps k and gives what is left to these (``at_cost``). The latent layer
and the first BatchNorm of the meta-generator are drawn anew once, ``reset_after`` batches later. A batch's images are
those of its step of lowest L.

Needs BatchNorm layers; students only for the adversarial term.

Differs from the authors' code: the generator is ours (see `generator`), and so is what its layers are reset to, their
first values; mirrors are off unless asked for, because a digit's or a letter's mirror image is another thing; shifts
are an eighth of the image instead of 4 pixels, the same at 32 pixels; with several students the adversarial term is
their mean. Of their ImageNet code only Reptile is here: z is a vector, new for each batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.augmentation import shifted, usual_shift
from dfqkit.synthesis.base import NO_DEMAND, Demand, Losses, LossWeights, SynthesizerConfig
from dfqkit.synthesis.generator import Generator
from dfqkit.synthesis.optimizers import optimizer_tensors, restore_optimizer, under
from dfqkit.synthesis.pool import PoolConfig, PoolSynthesizer
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.taps import BatchNormTap

_BETAS = (0.5, 0.999)
_REPTILE = 67.0  # hard-coded by the authors; Adam makes it matter little


class FastDFKDWeights(LossWeights):
    """Weights of the loss terms."""

    adversarial: float = Field(
        1.1,
        ge=0,
        description="FastDFKD scripts, CIFAR, WRN teachers (ResNet-34: 1.33, VGG-11: 1). None in the warm-up.",
    )
    bn: float = Field(10.0, ge=0, description="FastDFKD scripts, CIFAR.")
    one_hot: float = Field(0.4, ge=0, description="FastDFKD scripts, CIFAR, WRN teachers (ResNet-34, VGG-11: 0.5).")


class FastDFKDConfig(PoolConfig):
    """The ``synthesis`` section of a recipe with ``method: fastdfkd``."""

    method: Literal["fastdfkd"] = "fastdfkd"
    batch: int = Field(256, ge=2, description="Images that are optimised together (FastDFKD scripts).")
    steps: int = Field(5, ge=1, description="k; Fast-5 of the scripts, which also have 2 and 10 (ImageNet: 50).")
    warmup_batches: int = Field(
        20, ge=0, description="Batches that teach the meta-generator before any image is kept (FastDFKD scripts)."
    )
    reset_after: int | None = Field(
        120, ge=0, description="Batches after those at which the latent layer starts anew; null: never (scripts)."
    )
    latent: int = Field(256, ge=1, description="Dimension of z (CMI scripts).")
    width: int = Field(64, ge=4, description="Channels of the generator's last hidden map (CMI scripts).")
    lr_latent: float = Field(
        0.01, gt=0, description="Adam on z, betas 0.5 and 0.999 (FastDFKD scripts, k = 5 and 10; k = 2: 0.015)."
    )
    lr_generator: float = Field(
        3e-3, gt=0, description="The same on the copy (FastDFKD scripts, k = 5; k = 2: 5e-3, k = 10: 2e-3)."
    )
    lr_meta: float | None = Field(None, gt=0, description="Adam on the meta-generator; null: k * lr_generator (code).")
    gradient: Literal["fomaml", "reptile"] = Field(
        "fomaml", description="Of the meta-generator (scripts: CIFAR fomaml)."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="r, share of earlier batches in the statistics (code).")
    shift: int | None = Field(None, ge=0, description="Largest shift of an image; null: an eighth (code: 4 of 32).")
    flip: bool = Field(False, description="Mirror images at random, as the authors do; not for digits or text.")
    weights: FastDFKDWeights = FastDFKDWeights()


class FastDFKD(PoolSynthesizer):
    """A meta-generator, and for every batch an adapted copy of it, against a teacher's statistics and its students."""

    Config = FastDFKDConfig
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm"})
    plays: ClassVar[bool] = True

    def __init__(
        self, config: FastDFKDConfig, teacher: Teacher, generator: torch.Generator, demand: Demand = NO_DEMAND
    ) -> None:
        super().__init__(config, teacher, generator, demand)
        self.config = config
        self.weights: dict[str, float] = config.weights.model_dump()
        self.shift = usual_shift(teacher.image) if config.shift is None else config.shift
        self.tap = BatchNormTap(teacher.model)
        self.meta = self._generator()
        self.meta_optimizer = torch.optim.Adam(self.meta.parameters(), betas=_BETAS)
        self.mix: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def at_cost(cls, config: SynthesizerConfig, passes: int, demand: Demand) -> SynthesizerConfig:
        """The same k, and ``warmup_batches`` of what the demand's batches leave; fewer steps if they leave nothing."""
        fields = config.model_dump()
        batch, wanted = fields["batch"], demand.training + demand.fresh
        needed = max(1, -(-wanted // batch))
        spare = passes // (batch * fields["steps"]) - needed
        steps = fields["steps"] if spare >= 0 else max(1, passes // (batch * needed))
        return config.model_copy(update={"steps": steps, "warmup_batches": max(0, spare)})

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
        self.z = torch.randn((config.batch, config.latent), generator=self.rng, device=self.device, requires_grad=True)
        classes = self.teacher.image.classes
        self.labels = torch.randint(classes, (config.batch,), generator=self.rng, device=self.device)
        groups = [
            {"params": list(self.member.parameters()), "lr": config.lr_generator},
            {"params": [self.z], "lr": config.lr_latent},
        ]
        self.optimizer = torch.optim.Adam(groups, betas=_BETAS)
        self.gradients = [torch.zeros_like(parameter) for parameter in self.member.parameters()]
        self.best: dict[str, Tensor] = {}

    def _step(self, students: Sequence[nn.Module], step: int, steps: int) -> Losses:
        images = self.member(self.z)
        shown = shifted(images, self.teacher.image, self.shift, self.rng, flip=self.config.flip)
        with self.tap as tap:
            logits = self.teacher.model(shown)
        terms = {"bn": self._statistics(tap), "one_hot": nn.functional.cross_entropy(logits, self.labels)}
        if students and self.weights["adversarial"] and self.finished >= self.batches:
            divergences = [losses.agreeing_kl(student(shown), logits) for student in students]
            terms["adversarial"] = -torch.stack(divergences).mean()
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        if not self.best or bool(loss < self.best["loss"]):
            self.best = {"loss": loss.detach().clone(), "images": images.detach().clone()}
        parameters = list(self.member.parameters())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=[self.z, *parameters])  # type: ignore[no-untyped-call]
        for total, parameter in zip(self.gradients, parameters, strict=True):
            total += parameter.grad  # type: ignore[arg-type]
        self.optimizer.step()
        if step == steps - 1:
            self._learn(steps)
            self._remember(tap)
        return {name: float(term.detach()) for name, term in terms.items()}

    def _statistics(self, tap: BatchNormTap) -> Tensor:
        share = self.config.momentum
        layers = []
        for index, found in enumerate(tap.statistics):
            mean, variance = found.mean, found.variance
            if self.mix:
                old_mean, old_variance = self.mix[index]
                mean = (1 - share) * mean + share * old_mean
                variance = (1 - share) * variance + share * old_variance
            layers.append(losses.bn_l2(mean, variance, found.running_mean, found.running_variance))
        return torch.stack(layers).sum()

    def _remember(self, tap: BatchNormTap) -> None:
        found = [(s.mean.detach(), s.variance.detach()) for s in tap.statistics]
        if self.mix:
            share = self.config.momentum
            pairs = zip(self.mix, found, strict=True)
            found = [(share * m + (1 - share) * n, share * v + (1 - share) * w) for (m, v), (n, w) in pairs]
        self.mix = found

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
        return self.best["images"]

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"meta": self.meta.state_dict(), "meta_optimizer": optimizer_tensors(self.meta_optimizer)}
        parts["mix"] = {f"{i}.{n}": v for i, pair in enumerate(self.mix) for n, v in enumerate(pair)}
        if self.at:
            parts |= {
                "batch": {"z": self.z, "labels": self.labels},
                "copy": self.member.state_dict(),
                "optimizer": optimizer_tensors(self.optimizer),
                "gradients": {str(i): total for i, total in enumerate(self.gradients)},
                "best": self.best,
            }
        return {f"{part}.{name}": value for part, held in parts.items() for name, value in held.items()}

    def _load_tensors(self, state: dict[str, Tensor]) -> None:
        self.meta.load_state_dict(under(state, "meta."))
        restore_optimizer(self.meta_optimizer, under(state, "meta_optimizer."))
        mix = under(state, "mix.")
        self.mix = [(mix[f"{i}.0"].clone(), mix[f"{i}.1"].clone()) for i in range(len(mix) // 2)]
        if self.at:
            self.z.data.copy_(state["batch.z"])
            self.labels = state["batch.labels"].clone()
            self.member.load_state_dict(under(state, "copy."))
            restore_optimizer(self.optimizer, under(state, "optimizer."))
            self.gradients = [state[f"gradients.{i}"].clone() for i in range(len(self.gradients))]
            self.best = {name: value.clone() for name, value in under(state, "best.").items()}
