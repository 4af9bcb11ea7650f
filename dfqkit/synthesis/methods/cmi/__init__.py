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
cut, not drawn again, where they would leave the image (`augmentation`); mirrors are off unless asked for, because a
digit's or a letter's mirror image is another thing; shifts are an eighth of the image instead of 4 pixels, the same at
32 pixels; the memory starts empty; with several students the adversarial term is their mean; students learn from the
pool in `dfqkit.training.quantized_student`, not here.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dfqkit.config.pools import PoolConfig
from dfqkit.config.synthesis import StatisticsWeights


class CMIWeights(StatisticsWeights):
    """Weights of the loss terms; those of the authors' CIFAR-10 scripts."""

    of_classes: ClassVar[frozenset[str]] = frozenset({"one_hot"})

    adversarial: float = Field(0.5, ge=0, description="CMI scripts; no effect without students.")
    bn: float = Field(1.0, ge=0, description="CMI scripts.")
    one_hot: float = Field(1.0, ge=0, description="CMI scripts (the adversarial one: 0.5).")
    contrastive: float = Field(0.8, ge=0, description="CMI scripts.")


class CMIConfig(PoolConfig):
    """A generator and its latents for every batch, against a teacher's statistics and the memory of earlier images."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.cmi.method:CMI"
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm", "classes"})
    passes_per_step: ClassVar[int] = 2

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
