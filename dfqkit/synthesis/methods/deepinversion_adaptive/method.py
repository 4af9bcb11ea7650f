"""The algorithm of Adaptive DeepInversion; its source, formula and deviations are told in the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.methods.deepinversion.method import DeepInversion
from dfqkit.synthesis.methods.deepinversion_adaptive import AdaptiveDeepInversionConfig


class AdaptiveDeepInversion(DeepInversion):
    """DeepInversion against students."""

    config: AdaptiveDeepInversionConfig
    plays: ClassVar[bool] = True

    def _against(self, students: Sequence[nn.Module], images: Tensor, logits: Tensor) -> dict[str, Tensor]:
        if not students or not self.weights["competition"]:
            return {}
        form = author_competition if self.config.form == "author" else losses.competition
        return {"competition": self._apart(students, form, images, logits)}


def author_competition(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    """Return the competition term as the authors' code computes it.

    1 - clamp(J, 0, 1), J = mean_n 0.5 * sum_k [M ln(M / P) + M ln(M / Q)], with P and Q the probabilities of student
    and teacher and M their mean, each then clamped to [0.01, 0.99]. A scalar within [0, 1]; lower is better.
    """
    p, q = (torch.softmax(logits / temperature, 1) for logits in (student, teacher))
    p, q, m = (part.clamp(0.01, 0.99) for part in (p, q, (p + q) / 2))
    divergence = 0.5 * (m * (m / p).log() + m * (m / q).log()).sum(1).mean()
    return 1 - divergence.clamp(0, 1)
