"""DAFL: a generator whose images a teacher is sure of, answers strongly and puts evenly into all classes.

Source: Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, in the
form of the authors' code (huawei-noah, Efficient-Computing). With logits t(x), penultimate features f(x) and
x = g(z), z ~ N(0, I), the generator minimises

    L = one_hot * CE(t(x), argmax t(x))
        - activation * mean |f(x)|
        - class_balance * H(E[softmax t(x)])

Features are what enters the last layer, after global pooling; the L1 norm is per element, of features and not of
logits; the entropy is that of mean probabilities. It needs logits and such features; neither BatchNorm nor a student.
Students never enter the loss: they train beside the generator, which in a game goes on as if they were not there.

Weights: the authors' code takes the entropy in base 10. Here all logarithms are natural, so its weight `ie` became
ie / ln 10: 5 is 2.171 here. A perfectly even batch has the balance -ln K (in their logs -log10 K).

Differs from the authors' code: the student's batches are drawn anew and half from memory, where theirs is the very
batch of the generator's step; the generator is ours (see `generator`: a sigmoid instead of Tanh and a BatchNorm without
affine part, and BatchNorm's own eps, where theirs is 0.8); the learning rate is cosine and gradients are clipped; and
what `online` says of all methods with generators. Where the last layer is a 1x1 convolution in front of the pooling
(SqueezeNet), its input is pooled here, which is the same for features that are not negative.

``balance_average`` is ours, off by default. A batch of N says little about K classes unless N is several K. With it the
entropy is that of a moving average of batches' mean predictions. Its gradient goes to the present batch as if the whole
average were this batch's, so that the weight keeps its meaning at any decay.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from dfqkit.config.pools import OnlineConfig
from dfqkit.config.synthesis import LossWeights


class DAFLWeights(LossWeights):
    """Weights of the generator's loss terms."""

    one_hot: float = Field(1.0, ge=0, description="Authors' code, MNIST: 1; CIFAR-10: 0.05; CIFAR-100: 0.5.")
    activation: float = Field(0.1, ge=0, description="Authors' code, MNIST: 0.1; CIFAR-10: 0.01; CIFAR-100: 0.1.")
    class_balance: float = Field(
        5 / math.log(10),
        ge=0,
        description="Natural logarithm: the authors' `ie` in base 10 divided by ln 10. MNIST and CIFAR-10: 5 / ln 10; "
        "CIFAR-100: 20 / ln 10 = 8.686.",
    )


class DAFLConfig(OnlineConfig):
    """Generators trained on a teacher's certainty, feature strength and class balance."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.dafl.method:DAFL"
    needs: ClassVar[frozenset[str]] = frozenset({"classes", "features"})

    method: Literal["dafl"] = "dafl"
    batch: int = Field(
        256, ge=2, description="Images a generator step. Authors' code: 512 (MNIST), 1024 (CIFAR); take several K."
    )
    latent: int = Field(100, ge=1, description="Dimension of z. Authors' code: 100 (MNIST), 1000 (CIFAR).")
    lr: float = Field(
        1e-2, gt=0, description="Adam, cosine, in the warm-up. Ours; authors' code: 0.2 (MNIST), 0.02 (CIFAR)."
    )
    lr_game: float = Field(1e-2, gt=0, description="The same beside students. Ours.")
    balance_average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of the average of mean predictions whose entropy counts, for batches smaller than several "
        "K. Ours; 0: each batch by itself, as in the paper.",
    )
    weights: DAFLWeights = DAFLWeights()
