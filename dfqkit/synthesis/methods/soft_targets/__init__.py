"""Soft targets: images for the answers that a Gaussian over one layer's outputs gives.

Source: Wang, "Data-Free Knowledge Distillation with Soft Targeted Transfer Set Synthesis", AAAI 2021 (arXiv
2104.04868). The outputs s of a linear layer l with weight rows w_i are modelled as

    s ~ N(0, sigma^2 R),        R_ij = cos(w_i, w_j)

y = softmax of what the layers behind l make of s, and the images x minimise

    L = kl * mean_n KL(y_n || softmax(T(x_n) / temperature)) - activation * mean |f(x)|

with f what the last convolution gives. All classes are drawn at once, so that no target belongs to another class than
was meant (as happens in ZSKD).

Needs a linear head and features in front of it; no BatchNorm, no student.

There is no public code and this was written from summaries of the paper; ours are therefore:

- s is drawn as sigma * W' g with W' the rows of unit length and g ~ N(0, I): exactly that distribution, without
  factorising R, which is singular where the layer has more rows than columns;
- the layer is the head where none is named (networks with several linear layers gain by naming the last hidden one);
- f is what the first linear layer behind the last convolution reads, so after activation and pooling, and averaged over
  its elements;
- temperature, steps, learning rate and batch, which are not known: those of ZSKD.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dfqkit.config.pools import PixelConfig
from dfqkit.config.synthesis import LossWeights


class SoftTargetWeights(LossWeights):
    """Weights of the loss terms."""

    kl: float = Field(1.0, ge=0, description="Distance from the target.")
    activation: float = Field(0.1, ge=0, description="lambda_a: 0.1 for AlexNet, 0.05 for LeNet-5 in the paper.")


class SoftTargetsConfig(PixelConfig):
    """Pixels optimised for the answers to random outputs of one layer."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.soft_targets.method:SoftTargets"
    needs: ClassVar[frozenset[str]] = frozenset({"classes", "features", "linear_head"})

    method: Literal["soft-targets"] = "soft-targets"
    batch: int = Field(100, ge=2, description="Images that are optimised together (as ZSKD; not known).")
    steps: int = Field(1500, ge=1, description="Optimiser steps a batch (as ZSKD; not known).")
    lr: float = Field(0.02, gt=0, description="Adam on the pixels, in normalised units (ours; not known).")
    start: Literal["normal", "uniform"] = Field("uniform", description="As in PixelConfig (as ZSKD; not known).")
    layer: str | None = Field(None, description="Module path of the linear layer that is modelled; null: the head.")
    sigma: float = Field(2.0, gt=0, description="Deviation of every output (paper: 2 for CIFAR-10, 1.5 for MNIST).")
    temperature: float = Field(20.0, gt=0, description="Of the teacher's answers (as ZSKD; not known).")
    weights: SoftTargetWeights = SoftTargetWeights()
