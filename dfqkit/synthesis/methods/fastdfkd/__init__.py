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

from typing import ClassVar, Literal, Self

from pydantic import Field

from dfqkit.config.pools import PoolConfig
from dfqkit.config.synthesis import Demand, StatisticsWeights


class FastDFKDWeights(StatisticsWeights):
    """Weights of the loss terms."""

    of_classes: ClassVar[frozenset[str]] = frozenset({"one_hot"})

    adversarial: float = Field(
        1.1,
        ge=0,
        description="FastDFKD scripts, CIFAR, WRN teachers (ResNet-34: 1.33, VGG-11: 1). None in the warm-up.",
    )
    bn: float = Field(10.0, ge=0, description="FastDFKD scripts, CIFAR.")
    one_hot: float = Field(0.4, ge=0, description="FastDFKD scripts, CIFAR, WRN teachers (ResNet-34, VGG-11: 0.5).")


class FastDFKDConfig(PoolConfig):
    """A meta-generator, and for every batch an adapted copy of it, against a teacher's statistics and its students."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.fastdfkd.method:FastDFKD"
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm", "classes"})

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

    def at_cost(self, passes: int, demand: Demand) -> Self:
        """Return the same k, and ``warmup_batches`` of what the demand leaves; fewer steps if it leaves nothing."""
        needed = self.batches(demand)
        spare = passes // (self.batch * self.steps) - needed
        steps = self.steps if spare >= 0 else max(1, passes // (self.batch * needed))
        return self.model_copy(update={"steps": steps, "warmup_batches": max(0, spare)})
