"""Classification, with tensors: the divergence between two predictions is the distance.

What belongs here: all that training knows of classes, apart from losses and methods whose mathematics is about them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dfqkit import losses
from dfqkit.tasks.base import Tensors, TorchTask
from dfqkit.tasks.measured import binary_kl
from dfqkit_export.measure.kinds import KL
from dfqkit_export.tasks.classification import LARGEST_ROUNDING, Classification


class TorchClassification(TorchTask):
    """The torch part of classification."""

    chosen_by: ClassVar[str] = KL.name
    rule: ClassVar[str] = "KL from the teacher"

    def distance(self, reference: Tensors, answer: Tensors, temperature: float = 1.0) -> Tensor:
        """Return tau^2 KL between the softened predictions, in nats; of labels summed over them."""
        task = self.task
        assert isinstance(task, Classification)
        found, wanted = (rows(side[task.output]) for side in (answer, reference))
        if task.form == "classes":
            return losses.kd_kl(as_logits(found), as_logits(wanted), temperature)
        known = task.scores == "probabilities"
        return binary_kl(wanted, found, temperature, probabilities=known).sum(1).mean()

    def for_losses(self, output: Tensor) -> Tensor:
        """Return logits (N, classes) where a network gives probabilities, or has axes of size 1 beside the classes."""
        assert isinstance(self.task, Classification)
        return as_logits(rows(output)) if self.task.form == "classes" else output

    def same(self, first: Tensors, second: Tensors) -> Tensor:
        """Return on which images both name the same class, bool (N,)."""
        task = self.task
        assert isinstance(task, Classification)
        if task.form != "classes":
            return super().same(first, second)
        return rows(first[task.output]).argmax(1) == rows(second[task.output]).argmax(1)


def rows(output: Tensor) -> Tensor:
    """Return a row of numbers an image; the same tensor where it is one."""
    return output if output.dim() == 2 else output.reshape(len(output), -1)


def as_logits(outputs: Tensor) -> Tensor:
    """Return probabilities (N, classes) as their logarithms, others as given, as the other half of the task does."""
    detached = outputs.detach()
    if bool((detached < 0).any()) or bool(((detached.sum(1) - 1).abs() > LARGEST_ROUNDING).any()):
        return outputs
    return outputs.clamp_min(torch.finfo(torch.float32).tiny).log()
