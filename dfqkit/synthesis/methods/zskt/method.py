"""The algorithm of ZSKT; its source, formula and deviations are told in the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.base import Losses
from dfqkit.synthesis.methods.zskt import ZSKTConfig
from dfqkit.synthesis.online import OnlineSynthesizer
from dfqkit_export.errors import RecipeError


class ZSKT(OnlineSynthesizer):
    """Generators that play against students, without any prior on images."""

    config: ZSKTConfig
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)

    def _set_up(self) -> None:
        super()._set_up()
        self.weights = {"adversarial": 1.0}
        self.divergence = dict(kl=losses.kd_kl, l1=losses.logit_l1)[self.config.adversary]

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """Return one round against the students: of the warm-up while that lasts, then of the game."""
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
        return {"adversarial": -self._apart(students, self.divergence, images, logits)}
