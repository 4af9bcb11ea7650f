"""ZSKT: a generator that looks for the images on which teacher and student part, and nothing else.

Source: Micaelli and Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019, in the form
of the authors' code (polo5/ZeroShotKnowledgeTransfer). With x = g(z), z ~ N(0, I), and students S_i the generator
minimises

    L = - (1/S) sum_i D(T(x), S_i(x)),        D(T, S) = mean_n KL(softmax T(x_n) || softmax S(x_n)), temperature 1

and the students minimise D on what it makes, plus a difference of attention maps (that half is `training`; one
generator step to ten student steps is its ``round_every``). ``adversary: l1`` makes D the mean absolute difference of
logits, the game of Fang et al., "Data-Free Adversarial Distillation", 2019 (DFAD), which keeps a
gradient where the teacher is very sure.

It needs logits and a student, in the warm-up too; no BatchNorm. There is no prior on images: with many classes and deep
teachers the game stalls.

Differs from the authors' code: KL is averaged over images only, where theirs also divides by the number of classes
(with Adam, and one term, that matters to the clipping alone); the generator's output is a sigmoid, normalised (see
`generator`), where theirs is a BatchNorm with an affine part and no bounds, so that ours are images of 8 bits and the
adversary cannot win by contrast beyond black and white; students are in eval mode, theirs in train mode; a student's
batch is drawn anew and half from memory in each of its steps, where theirs is one z for ten steps; the cosine ends
above 0; there may be several students, where theirs is one; and the warm-up, which plays against a student that nothing
trains (it gives a quantized student's calibration its images), is ours, as is what `online` says of all methods with
generators.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, ClassVar, Literal

from pydantic import Field

from dfqkit.config.pools import OnlineConfig


class Adversary(str, Enum):
    """How far apart teacher and student are, for the generator that drives them apart."""

    @staticmethod
    def _generate_next_value_(name: str, *_: Any) -> str:
        return name

    kl = auto()
    l1 = auto()


class ZSKTConfig(OnlineConfig):
    """Generators that play against students, without any prior on images."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.zskt.method:ZSKT"
    needs: ClassVar[frozenset[str]] = frozenset({"classes", "student"})

    method: Literal["zskt"] = "zskt"
    latent: int = Field(100, ge=1, description="Dimension of z (authors' code).")
    warmup: int = Field(
        300, ge=0, description="Generator steps against a student that nothing trains. Ours; authors: none."
    )
    lr: float = Field(1e-3, gt=0, description="Adam, cosine, in the warm-up (authors' code, there in the game).")
    lr_game: float = Field(1e-3, gt=0, description="The same in the game (authors' code).")
    adversary: Adversary = Field(
        Adversary.kl, description="What the generator raises: kl of the answers (ZSKT) or l1 of the logits (DFAD)."
    )
