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

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.base import NO_DEMAND, Demand, Losses
from dfqkit.synthesis.online import OnlineConfig, OnlineSynthesizer
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import RecipeError


class ZSKTConfig(OnlineConfig):
    """The ``synthesis`` section of a recipe with ``method: zskt``."""

    method: Literal["zskt"] = "zskt"
    latent: int = Field(100, ge=1, description="Dimension of z (authors' code).")
    warmup: int = Field(
        300, ge=0, description="Generator steps against a student that nothing trains. Ours; authors: none."
    )
    lr: float = Field(1e-3, gt=0, description="Adam, cosine, in the warm-up (authors' code, there in the game).")
    lr_game: float = Field(1e-3, gt=0, description="The same in the game (authors' code).")
    adversary: Literal["kl", "l1"] = Field(
        "kl", description="What the generator raises: kl of the answers (ZSKT) or l1 of the logits (DFAD)."
    )


class ZSKT(OnlineSynthesizer):
    """Generators that play against students, without any prior on images."""

    Config = ZSKTConfig
    needs: ClassVar[frozenset[str]] = frozenset({"student"})
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)

    def __init__(
        self, config: ZSKTConfig, teacher: Teacher, generator: torch.Generator, demand: Demand = NO_DEMAND
    ) -> None:
        super().__init__(config, teacher, generator, demand)
        self.weights = {"adversarial": 1.0}
        self.divergence = {"kl": losses.kd_kl, "l1": losses.logit_l1}[config.adversary]

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """One round against the students: of the warm-up while that lasts, then of the game.

        Raises:
            RecipeError: without a student.
        """
        if not students:
            message = (
                "Synthesizer 'zskt' makes images on which teacher and student differ, and was given no student. It "
                "needs one in every round, in the warm-up too: call synthesize([student]), frozen and in eval mode, or "
                "use a method that works from the teacher alone (dfq, dafl)."
            )
            raise RecipeError(message)
        return super().synthesize(students)

    def _terms(self, images: Tensor, students: Sequence[nn.Module]) -> dict[str, Tensor]:
        logits = self.teacher.model(images)
        divergences = [self.divergence(student(images), logits) for student in students]
        return {"adversarial": -torch.stack(divergences).mean()}
