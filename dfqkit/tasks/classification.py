"""Classification, with tensors: the divergence between two predictions is the distance.

What belongs here: all that training knows of classes, apart from losses and methods whose mathematics is about them.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dfqkit import losses
from dfqkit.tasks.base import Tensors, TorchTask
from dfqkit_export.measure.kinds import KL
from dfqkit_export.tasks.classification import LOGITS


class TorchClassification(TorchTask):
    """The torch part of classification."""

    chosen_by: ClassVar[str] = KL.name
    rule: ClassVar[str] = "KL from the teacher"

    def distance(self, reference: Tensors, answer: Tensors, temperature: float = 1.0) -> Tensor:
        """Return tau^2 KL between the softened predictions, in nats."""
        return losses.kd_kl(answer[LOGITS], reference[LOGITS], temperature)

    def same(self, first: Tensors, second: Tensors) -> Tensor:
        """Return on which images both name the same class, bool (N,)."""
        return first[LOGITS].argmax(1) == second[LOGITS].argmax(1)
