"""Classification, with tensors: the divergence between two predictions is the distance.

What belongs here: all that training knows of classes, apart from losses and methods whose mathematics is about them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dfqkit import losses
from dfqkit.tasks.base import Tensors, TorchTask
from dfqkit_export.measure.kinds import KL
from dfqkit_export.tasks.classification import LARGEST_ROUNDING, LOGITS


class TorchClassification(TorchTask):
    """The torch part of classification."""

    chosen_by: ClassVar[str] = KL.name
    rule: ClassVar[str] = "KL from the teacher"

    def distance(self, reference: Tensors, answer: Tensors, temperature: float = 1.0) -> Tensor:
        """Return tau^2 KL between the softened predictions, in nats."""
        return losses.kd_kl(as_logits(answer[LOGITS]), as_logits(reference[LOGITS]), temperature)

    def for_losses(self, output: Tensor) -> Tensor:
        """Return logits where a network gives probabilities."""
        return as_logits(output)

    def same(self, first: Tensors, second: Tensors) -> Tensor:
        """Return on which images both name the same class, bool (N,)."""
        return first[LOGITS].argmax(1) == second[LOGITS].argmax(1)


def as_logits(outputs: Tensor) -> Tensor:
    """Return probabilities (N, classes) as their logarithms, others as given, as the other half of the task does."""
    detached = outputs.detach()
    if bool((detached < 0).any()) or bool(((detached.sum(1) - 1).abs() > LARGEST_ROUNDING).any()):
        return outputs
    return outputs.clamp_min(torch.finfo(torch.float32).tiny).log()
