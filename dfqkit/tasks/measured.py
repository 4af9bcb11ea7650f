"""Distances of tasks other than classification: errors beside the size of what is imitated.

What belongs here: the torch part of tasks whose outputs are numbers, maps or vectors. Boxes have `detection`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dfqkit.tasks.base import Tensors, TorchTask
from dfqkit_export.tasks.embedding import Embedding
from dfqkit_export.tasks.keypoints import Keypoints
from dfqkit_export.tasks.segmentation import Segmentation
from dfqkit_export.tasks.sequence import Sequence

#: In place of a power of 0.
_LEAST = 1e-12


class TorchNumbers(TorchTask):
    """Any outputs: the mean squared error of each beside its power, summed over the outputs."""

    rule = "error beside the teacher's outputs"

    def distance(self, reference: Tensors, answer: Tensors, temperature: float = 1.0) -> Tensor:
        """Return the sum over the outputs of the mean squared error as a share of the reference's mean square."""
        return torch.stack([relative(reference[name], answer[name]) for name in self.task.names]).sum()


class TorchEmbedding(TorchTask):
    """A vector: one less the cosine."""

    rule = "angle from the teacher's vectors"

    def distance(self, reference: Tensors, answer: Tensors, temperature: float = 1.0) -> Tensor:
        """Return the mean over the images of 1 - cosine."""
        assert isinstance(self.task, Embedding)
        wanted, found = (side[self.task.output].flatten(1) for side in (reference, answer))
        return (1 - F.cosine_similarity(found, wanted, dim=1)).mean()


class TorchSegmentation(TorchTask):
    """A class for each position: the divergence of the predictions there."""

    rule = "KL from the teacher, over all positions"

    def distance(self, reference: Tensors, answer: Tensors, temperature: float = 1.0) -> Tensor:
        """Return tau^2 KL between the softened predictions, in nats, the mean over images and positions."""
        task = self.task
        assert isinstance(task, Segmentation)
        wanted, found = (as_channels(side[task.output], task) for side in (reference, answer))
        if wanted.shape[1] == 1:
            return binary_kl(wanted, found, temperature, probabilities=task.scores == "probabilities").mean()
        if task.scores == "probabilities":
            wanted, found = (side.clamp_min(torch.finfo(side.dtype).tiny).log() for side in (wanted, found))
        wanted, found = (F.log_softmax(side / temperature, 1) for side in (wanted, found))
        return temperature**2 * (wanted.exp() * (wanted - found)).sum(1).mean()

    def objectness(self, outputs: Tensors) -> Tensor:
        """Return the probability of each class but the background at each position, (N, positions, classes)."""
        task = self.task
        assert isinstance(task, Segmentation)
        scores = as_channels(outputs[task.output], task)
        if task.scores == "logits":
            scores = scores.sigmoid() if scores.shape[1] == 1 else scores.softmax(1)
        things = [kind for kind in range(scores.shape[1]) if scores.shape[1] == 1 or kind != task.background]
        return scores[:, things].flatten(2).mT


class TorchKeypoints(TorchTask):
    """Points: the error of heatmaps where the teacher's are large, or of coordinates."""

    rule = "points from the teacher's"

    def distance(self, reference: Tensors, answer: Tensors, temperature: float = 1.0) -> Tensor:
        """Return the mean squared error as a share of the reference's mean square.

        Of heatmaps positions weigh as much as the reference's map is above its mean there, and a tenth more.
        """
        task = self.task
        assert isinstance(task, Keypoints)
        wanted, found = (side[task.output] for side in (reference, answer))
        if task.form == "coordinates":
            return relative(wanted, found)
        known = wanted.detach()
        above = (known - known.mean((2, 3), keepdim=True)).clamp_min(0)
        weights = above / above.amax((2, 3), keepdim=True).clamp_min(_LEAST) + 0.1
        power = (weights * known.square()).mean().clamp_min(_LEAST)
        return (weights * (found - wanted).square()).mean() / power


class TorchSequence(TorchTask):
    """Text: the divergence of the predictions at each step."""

    rule = "KL from the teacher, over all steps"

    def distance(self, reference: Tensors, answer: Tensors, temperature: float = 1.0) -> Tensor:
        """Return tau^2 KL between the softened predictions, in nats, the mean over images and steps.

        Of ctc a step weighs as much as it is no blank, and a tenth more: most steps are blanks.
        """
        task = self.task
        assert isinstance(task, Sequence)
        wanted, found = (side[task.output] for side in (reference, answer))
        if task.scores == "probabilities":
            wanted, found = (side.clamp_min(torch.finfo(side.dtype).tiny).log() for side in (wanted, found))
        weights = torch.ones(wanted.shape[:2], device=wanted.device)
        if task.form == "ctc":
            weights = 1.1 - wanted.detach().softmax(-1)[..., task.blank]
        wanted, found = (F.log_softmax(side / temperature, -1) for side in (wanted, found))
        apart = (wanted.exp() * (wanted - found)).sum(-1)
        return temperature**2 * (weights * apart).sum() / weights.sum()


def as_channels(values: Tensor, task: Segmentation) -> Tensor:
    """Return scores of positions as (N, classes, h, w)."""
    if values.dim() == 3:
        return values[:, None]
    return values.movedim(-1, 1) if task.axis else values


def binary_kl(wanted: Tensor, found: Tensor, temperature: float = 1.0, *, probabilities: bool = False) -> Tensor:
    """Return tau^2 KL between two Bernoulli distributions of each element, in nats, of logits or probabilities."""
    if probabilities:
        wanted, found = (torch.logit(side, eps=1e-6) for side in (wanted, found))
    wanted, found = wanted / temperature, found / temperature
    likely = torch.sigmoid(wanted)
    on = F.logsigmoid(wanted) - F.logsigmoid(found)
    off = F.logsigmoid(-wanted) - F.logsigmoid(-found)
    return temperature**2 * (likely * on + (1 - likely) * off)


def relative(reference: Tensor, answer: Tensor) -> Tensor:
    """Return the mean squared error as a share of the reference's mean square."""
    return (answer - reference).square().mean() / reference.square().mean().clamp_min(_LEAST)
