"""Detection, with tensors: scores as predictions, boxes where the teacher sees something.

What belongs here: a distance that has no loop over boxes and no suppression, so that it has a gradient everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dfqkit.tasks.base import Tensors, TorchTask
from dfqkit.tasks.measured import binary_kl
from dfqkit_export.tasks.decoding import positions
from dfqkit_export.tasks.detection import Detection

#: What a position weighs at which the teacher sees nothing, beside one of which it is sure: there are many more.
_NOTHING = 0.01


class TorchDetection(TorchTask):
    """Boxes: the divergence of their scores, and their error where the teacher has a box."""

    rule = "scores and boxes from the teacher's"

    def distance(self, reference: Tensors, answer: Tensors, temperature: float = 1.0) -> Tensor:
        """Return the mean over the levels of the divergence of scores and of the error of boxes.

        Both are means over images and positions, weighted by the teacher's largest probability of an object there.
        Scores: tau^2 KL, of each class for itself or of the softmax. Boxes: of distributions their KL; of other forms
        the smooth L1 error (beta 0.1) as a share of the reference's weighted mean size.
        """
        task = self.task
        assert isinstance(task, Detection)
        return torch.stack(
            [self._level(task, reference, answer, level, temperature) for level in range(len(task.boxes))]
        ).mean()

    def _level(self, task: Detection, reference: Tensors, answer: Tensors, level: int, temperature: float) -> Tensor:
        if task.form == "rows":
            wanted, found = (side[task.boxes[level]] for side in (reference, answer))
            sure = wanted[..., 4].detach()
            apart = binary_kl(wanted[..., 4:5], found[..., 4:5], temperature, probabilities=True)
            return _weighted(apart.sum(-1), sure) + _moved(wanted[..., :4], found[..., :4], sure)
        (boxes, scores), (moved, others) = (positions(task, side, level) for side in (reference, answer))
        sure = _objects(task, scores.detach())
        apart = _divergence(task, scores, others, temperature)
        for name in task.objectness[level : level + 1]:
            wanted, found = (side[name].flatten(1) for side in (reference, answer))
            known = task.scores_are == "probabilities"
            apart = apart + binary_kl(wanted, found, temperature, probabilities=known)
            sure = sure * (wanted.detach() if known else wanted.detach().sigmoid())
        if task.form == "objectness_rows":
            wanted, found = (side[task.boxes[level]][..., 4] for side in (reference, answer))
            apart = apart + binary_kl(wanted, found, temperature, probabilities=True)
            sure = sure * wanted.detach()
        if task.form != "distributions":
            return _weighted(apart, sure) + _moved(boxes, moved, sure)
        wanted, found = (F.log_softmax(side.unflatten(-1, (4, -1)), -1) for side in (boxes, moved))
        return _weighted(apart, sure) + _weighted((wanted.exp() * (wanted - found)).sum(-1).mean(-1), sure)


def _objects(task: Detection, scores: Tensor) -> Tensor:
    """Return the largest probability of an object at each position, (N, positions)."""
    if task.scores_are == "softmax":
        scores = scores.softmax(-1)
    elif task.scores_are == "logits":
        scores = scores.sigmoid()
    kinds = [kind for kind in range(scores.shape[-1]) if kind != task.background]
    return scores[..., kinds].amax(-1)


def _divergence(task: Detection, wanted: Tensor, found: Tensor, temperature: float) -> Tensor:
    """Return tau^2 KL of the scores at each position, in nats, (N, positions)."""
    if task.scores_are != "softmax":
        known = task.scores_are == "probabilities"
        return binary_kl(wanted, found, temperature, probabilities=known).sum(-1)
    wanted, found = (F.log_softmax(side / temperature, -1) for side in (wanted, found))
    return temperature**2 * (wanted.exp() * (wanted - found)).sum(-1)


def _moved(boxes: Tensor, moved: Tensor, sure: Tensor) -> Tensor:
    """Return the error of boxes (N, positions, 4) as a share of their size, weighted."""
    size = _weighted(boxes.detach().abs().mean(-1), sure).clamp_min(1e-6)
    apart: Any = F.smooth_l1_loss(moved / size, boxes / size, reduction="none", beta=0.1)
    return _weighted(apart.mean(-1), sure)


def _weighted(values: Tensor, sure: Tensor) -> Tensor:
    """Return the mean over images and positions, each weighted by the teacher's confidence."""
    weights = sure + _NOTHING
    return (values * weights).sum() / weights.sum()
