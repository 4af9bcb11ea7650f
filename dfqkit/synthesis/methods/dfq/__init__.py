"""DFQ: generator ensembles that play against quantized students.

Source: Choi, Choi, El-Khamy, Lee, "Data-Free Network Quantization With Adversarial Knowledge Distillation", CVPR
Workshops 2020 (arXiv 2005.04136). With generators g_j, students S_i and D(T, S) = mean per-sample KL(softmax T ||
softmax S), each generator minimises

    L_j = - adversarial * (1/S) sum_i D(T(x), S_i(x))
          + bn * sum over layers and channels of KL(N(batch) || N(running))
          + instance_entropy * E[H(softmax T(x))]
          - batch_entropy * H(E[softmax T(x)]),        x = g_j(z), z ~ N(0, I)

and the students minimise D on what the generators make (that half is `training`). Without students only the last
three terms, L_psi of the paper, are minimised: the warm-up.

Differs from the paper as it is known: the three terms of L_psi have weights of their own (the paper: one alpha); the
adversarial weight is small, because a quantized copy of the teacher is a weak opponent that a strong adversary drives
into images no camera makes; generators end in a sigmoid (see `generator`); gradients are clipped; and what `online`
says of all methods with generators. Neither author code nor published hyperparameters are known to us: each default
names its origin.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dfqkit.config.pools import OnlineConfig
from dfqkit.config.synthesis import StatisticsWeights


class DFQWeights(StatisticsWeights):
    """Weights of the generators' loss terms."""

    of_classes: ClassVar[frozenset[str]] = frozenset({"batch_entropy", "instance_entropy"})

    adversarial: float = Field(0.05, ge=0, description="Ours: 1 (paper) took a W4A4 ResNet-20 below plain calibration.")
    bn: float = Field(0.03, ge=0, description="On the sum over channels and layers; the known reproduction has 0.01.")
    instance_entropy: float = Field(0.5, ge=0, description="Ours; the reproduction has 0.01 against adversarial 1.")
    batch_entropy: float | None = Field(
        None, ge=0, description="null: 1 for up to 10 classes (ours), 10 above (CMI's scripts use 20; its issue 2)."
    )


class DFQConfig(OnlineConfig):
    """An ensemble of generators trained on a teacher's BatchNorm statistics and against quantized students."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.dfq.method:DFQ"
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm", "classes"})

    method: Literal["dfq"] = "dfq"
    generators: int = Field(2, ge=1, le=16, description="G of the paper.")
    warmup: int = Field(300, ge=0, description="Generator steps on L_psi alone before any student exists.")
    lr: float = Field(
        1e-2,
        gt=0,
        description="Adam, betas 0.5 and 0.999, cosine, in the warm-up. Ours: the 1e-3 of the reproduction and of the "
        "CMI scripts was four times slower to the same BatchNorm statistics.",
    )
    lr_game: float = Field(1e-2, gt=0, description="The same in the game; 1e-3 (and a w3a3 partner) was worse.")
    weights: DFQWeights = DFQWeights()
