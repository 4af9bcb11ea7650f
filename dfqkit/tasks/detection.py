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
from dfqkit_export.tasks.decoding import positions, priors
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

    def objectness(self, outputs: Tensors) -> Tensor:
        """Return the probability of each class at each position of all levels, level by level."""
        task = self.task
        assert isinstance(task, Detection)
        return torch.cat([_seen(task, outputs, level) for level in range(len(task.boxes))], 1)

    def object_sizes(self, outputs: Tensors) -> Tensor:
        """Return the root of the share of the image that each of their boxes takes, (N, positions)."""
        task = self.task
        assert isinstance(task, Detection)
        sides = torch.cat([_sides(task, outputs, level) for level in range(len(task.boxes))], 1)
        return sides.clamp_min(1e-6).prod(-1).sqrt()

    def _level(self, task: Detection, reference: Tensors, answer: Tensors, level: int, temperature: float) -> Tensor:
        if task.form == "rows":
            wanted, found = (side[task.boxes[level]] for side in (reference, answer))
            sure = wanted[..., 4].detach()
            apart = binary_kl(wanted[..., 4:5], found[..., 4:5], temperature, probabilities=True)
            return _weighted(apart.sum(-1), sure) + _moved(wanted[..., :4], found[..., :4], sure)
        (boxes, scores), (moved, others) = (positions(task, side, level) for side in (reference, answer))
        sure = _seen(task, reference, level).detach().amax(-1)
        apart = _divergence(task, scores, others, temperature)
        for name in task.objectness[level : level + 1]:
            wanted, found = (side[name].flatten(1) for side in (reference, answer))
            known = task.scores_are == "probabilities"
            apart = apart + binary_kl(wanted, found, temperature, probabilities=known)
        if task.form == "objectness_rows":
            wanted, found = (side[task.boxes[level]][..., 4] for side in (reference, answer))
            apart = apart + binary_kl(wanted, found, temperature, probabilities=True)
        if task.form != "distributions":
            return _weighted(apart, sure) + _moved(boxes, moved, sure)
        wanted, found = (F.log_softmax(side.unflatten(-1, (4, -1)), -1) for side in (boxes, moved))
        return _weighted(apart, sure) + _weighted((wanted.exp() * (wanted - found)).sum(-1).mean(-1), sure)


def _seen(task: Detection, outputs: Tensors, level: int) -> Tensor:
    """Return the probability of each class but the background at each position of a level, (N, positions, classes)."""
    if task.form == "rows":  # of one class each, which has no gradient
        return outputs[task.boxes[level]][..., 4:5]
    _, scores = positions(task, outputs, level)
    if task.scores_are == "softmax":
        scores = scores.softmax(-1)
    elif task.scores_are == "logits":
        scores = scores.sigmoid()
    for name in task.objectness[level : level + 1]:
        factor = outputs[name].flatten(1)[..., None]
        scores = scores * (factor if task.scores_are == "probabilities" else factor.sigmoid())
    if task.form == "objectness_rows":
        scores = scores * outputs[task.boxes[level]][..., 4:5]
    found: Tensor = scores[..., [kind for kind in range(scores.shape[-1]) if kind != task.background]]
    return found


def _sides(task: Detection, outputs: Tensors, level: int) -> Tensor:
    """Return width and height of the box at each position of a level, (N, positions, 2), as shares of the image's."""
    image = torch.tensor([task.size[1], task.size[0]], device=outputs[task.boxes[level]].device)
    values = outputs[task.boxes[level]] if task.form == "rows" else positions(task, outputs, level)[0]
    if task.of_positions:
        stride, size = (torch.from_numpy(each).to(values) for each in priors(task, level)[1:])
        if task.form == "anchors":
            return (values[..., 2:] * task.variances[1]).exp() * size / image
        if task.form == "distributions":
            bins = values.unflatten(-1, (4, -1)).softmax(-1)
            values = bins @ torch.arange(bins.shape[-1], dtype=bins.dtype, device=bins.device)
        return (values[..., :2] + values[..., 2:4]) * stride / image
    sides = values[..., 2:4] - values[..., :2] if task.form in ("corners", "rows") else values[..., 2:4]
    return sides / image if task.unit == "pixels" else sides


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
