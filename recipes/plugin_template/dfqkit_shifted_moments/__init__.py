"""Shifted moments: pixels that meet the teacher's BatchNorm statistics with every batch's own mean shift.

What belongs here: one method and its section of a recipe. Say where it comes from, its loss with signs, what it needs
of the teacher, and what differs from the source. This one is made up, as a template that really works. For a batch x,
with (m, v) mean and biased variance of a BatchNorm layer's input and (mu, var) what training left there,

    L(x) = bn * mean over layers of [ mean_c (m - mu - d)^2 + mean_c (v - var)^2 ] + one_hot * CE(T(x), own argmax),

where d = shift * sqrt(var) * e and e ~ N(0, 1) is drawn anew for every layer, channel and batch: batches that all met
the same statistics would all be alike. Needs BatchNorm layers with running statistics.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dfqkit.config.pools import PoolConfig
from dfqkit.config.synthesis import LossWeights


class ShiftedMomentsWeights(LossWeights):
    """Weights of the loss terms; `synthesize` returns the terms unweighted under the same names."""

    bn: float = Field(1.0, ge=0, description="Ours.")
    one_hot: float = Field(0.1, ge=0, description="Ours.")


class ShiftedMomentsConfig(PoolConfig):
    """Pixels matched to BatchNorm statistics whose means are shifted at random for every batch.

    This first line is what ``dfqkit list synthesizers`` prints. Every field says where its default comes from.
    """

    implementation: ClassVar[str] = "dfqkit_shifted_moments.method:ShiftedMoments"
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm", "classes"})

    method: Literal["shifted-moments"] = "shifted-moments"
    steps: int = Field(200, ge=1, description="Optimiser steps a batch. Ours.")
    lr: float = Field(0.1, gt=0, description="Adam on normalised pixels. Ours.")
    shift: float = Field(0.1, ge=0, description="Of every mean, in standard deviations of the layer. Ours.")
    weights: ShiftedMomentsWeights = ShiftedMomentsWeights()
