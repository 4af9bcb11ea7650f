"""What the error of each activation does to the outputs, and ranges that are chosen by it.

What belongs here: errors of tensors weighed by the task's own distance, to second order. A tensor's squared error, each
value weighted by the squared gradient of the distance, stands for what it adds to the distance (Li et al., "BRECQ:
Pushing the Limit of Post-Training Quantization by Block Reconstruction", 2021, equation 10, there of blocks). What is
large but moves no output weighs nothing so, and the rare peaks that are a detector's objects weigh what they are worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfqkit.students.inputs import is_input
from dfqkit.students.measured import IMAGES, MOST, is_eight_bits
from dfqkit.students.nodes import called, source
from dfqkit.students.quantizers import (
    activation_proxy,
    range_of,
    range_state,
    restore_range,
    set_range,
    zero_point_values,
)
from dfqkit.tasks.base import Tensors, TorchTask

#: Shares of both ends of a range that are tried.
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1)
#: Bins of a histogram over a range of 256 codes.
_BINS = 2048
#: How much of the answers (percent) is enough for nothing to be left in float.
_KEPT = 99.0
#: By what the ends of one range differ after rounding, at most.
_SAME = 0.01
#: Tensors that are cut together, to begin with and at least: each try is a pass.
_TOGETHER, _FEWEST = 16, 4
#: Images that are looked at with gradients, at most.
_LOOKED_AT = 64
#: Images in a pass with gradients, which keeps every activation.
_CHUNK = 4


@dataclass(frozen=True, kw_only=True)
class Imitated:
    """The float graph that students imitate, and the task that says how far their answers are from its own."""

    graph: fx.GraphModule
    task: TorchTask

    def distance(self, images: Tensor, answer: Any) -> Tensor:
        """Return how far what a student returns for images (n, C, H, W) is away: a scalar, the mean over the images."""
        return self.task.distance(self._answers(images), self.task.named(answer))

    def kept(self, images: Tensor, answer: Any) -> float:
        """Return how much of the answers for images what a student returns keeps, in percent."""
        return self.task.kept(self._answers(images), self.task.named(answer))

    def _answers(self, images: Tensor) -> Tensors:
        with torch.no_grad():
            return self.task.named(self.graph(images))


@dataclass(kw_only=True)
class _Weighted:
    """Values within a calibrated range in `_BINS` equal bins.

    Attributes:
        squares: Sum of the squared gradients of the values of each bin, (bins,).
        slopes: Sum of their gradients, image by image, (images, bins) each.
    """

    low: float
    high: float
    squares: Tensor
    slopes: list[Tensor] = field(default_factory=list)

    def error(self, quantizer: nn.Module) -> float:
        """Return what a quantizer's errors of them do to the outputs: as noise, and as far as they agree in sign."""
        places = torch.arange(_BINS, device=self.squares.device) + 0.5
        centres = self.low + places * ((self.high - self.low) / _BINS)
        with torch.no_grad():
            errors = quantizer(centres) - centres
        return float(self.squares @ errors.square() + (torch.cat(self.slopes) @ errors).square().sum())


def choose_ranges(student: fx.GraphModule, batches: Sequence[Tensor], imitated: Imitated) -> None:
    """Cut calibrated ranges, but the input's, at the shares of their ends that leave the least weighted error.

    What is cut far moves outputs further than second order tells: a few tensors at a time are cut, and only where the
    distance itself is lower then.

    Args:
        student: Calibrated so that ranges hold every value.
        batches: Normalised images (n, C, H, W), those that calibrated it.
        imitated: What it imitates.
    """
    images = torch.cat(list(batches))[:IMAGES]
    found = _weighted(student, batches, imitated)
    quantizers = {target: student.get_submodule(target) for target in found}
    cuts = {target: _least(quantizers[target], values) for target, values in found.items()}

    def apart() -> float:
        with torch.no_grad():
            return float(imitated.distance(images, student(images)))

    least, cut = apart(), [target for target, values in found.items() if cuts[target] != (values.low, values.high)]
    groups = [cut[start : start + _TOGETHER] for start in range(0, len(cut), _TOGETHER)]
    while groups:
        group = groups.pop(0)
        before = {target: range_state(quantizers[target]) for target in group}
        for target in group:
            set_range(quantizers[target], *cuts[target])
        now = apart()
        if now < least:
            least = now
            continue
        for target, state in before.items():
            restore_range(quantizers[target], state)
        if len(group) > _FEWEST:
            groups[:0] = [group[: len(group) // 2], group[len(group) // 2 :]]


def _least(quantizer: nn.Module, values: _Weighted) -> tuple[float, float]:
    """Return the cut range of the least weighted error; the quantizer stays as it is."""
    tried = [(low * values.low, high * values.high) for low, high in product(_SHARES, _SHARES)]
    if zero_point_values(quantizer) is None or not values.low < 0 < values.high:
        tried = [(share * values.low, share * values.high) for share in _SHARES]
    before, errors = range_state(quantizer), []
    for low, high in tried:
        set_range(quantizer, low, high)
        # A power of two is rounded up: beyond 6, where the quantizer clips in the place of ReLU6.
        grows = range_of(quantizer)[1] > values.high * (1 + _SAME)
        errors.append(math.inf if grows else values.error(quantizer))
    restore_range(quantizer, before)
    return tried[errors.index(min(errors))]


def costly(student: fx.GraphModule, batches: Sequence[Tensor], imitated: Imitated, limit: float) -> dict[str, float]:
    """Return the tensors whose 8 bits do more than a share ``limit`` of the weighted error of all, with their shares.

    No more than `MOST` of them: where many do as much, no tensor is to blame. None where the answers are kept as it is.

    Args:
        student: Calibrated.
        batches: Normalised images (n, C, H, W) that took no part in the calibration.
        imitated: What it imitates.
        limit: Within (0, 1].
    """
    images = torch.cat(list(batches))[:_LOOKED_AT]
    with torch.no_grad():
        if imitated.kept(images, student(images)) >= _KEPT:
            return {}
    found = _weighted(student, [images], imitated)
    quantizers = {target: student.get_submodule(target) for target in found}
    errors = {target: values.error(quantizers[target]) for target, values in found.items()}
    whole, most = sum(errors.values()), round(MOST * len(errors))
    largest = sorted((t for t in errors if is_eight_bits(quantizers[t])), key=lambda t: -errors[t])[:most]
    return {t.removeprefix("quant."): errors[t] / whole for t in largest if errors[t] > limit * whole}


def _weighted(student: fx.GraphModule, batches: Sequence[Tensor], imitated: Imitated) -> dict[str, _Weighted]:
    student.eval()
    found: dict[str, _Weighted] = {}
    for images in torch.split(torch.cat(list(batches))[:_LOOKED_AT], _CHUNK):
        run = _WithGradients(student)
        torch.autograd.backward(len(images) * imitated.distance(images, run.run(images)))
        for target, (x, quantized) in run.seen.items():
            if quantized.grad is None:
                continue  # nothing of it reaches an output that the distance looks at
            if target not in found:
                low, high = range_of(student.get_submodule(target))
                found[target] = _Weighted(low=low, high=high, squares=torch.zeros(_BINS, device=x.device))
            values, gradients = found[target], quantized.grad.flatten()
            width = (values.high - values.low) / _BINS
            bins = ((x.flatten(1) - values.low) / width).long().clamp(0, _BINS - 1)
            images_ = torch.arange(len(x), device=x.device)[:, None]
            values.squares += torch.bincount(bins.flatten(), gradients.square(), _BINS)
            slopes = torch.bincount((bins + images_ * _BINS).flatten(), gradients, len(x) * _BINS)
            values.slopes.append(slopes.reshape(len(x), _BINS))
        student.zero_grad()
    return found


class _WithGradients(fx.Interpreter):
    """Runs a student and keeps what each activation quantizer but the input's reads and gives, with its gradient."""

    def __init__(self, student: fx.GraphModule) -> None:
        super().__init__(student)
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}
        modules = dict(student.named_modules())
        self._quantizers = {
            node
            for node in student.graph.nodes
            if activation_proxy(called(node, modules)) is not None
            and not is_input(source(node))
            # Their ranges are wider than these images' averages, on purpose (`calibration.Dispersed`).
            and not isinstance(called(source(node), modules), nn.AdaptiveAvgPool2d)
        }

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._quantizers:
            value.requires_grad_() if value.is_leaf else value.retain_grad()
            self.seen[str(n.target)] = self.fetch_args_kwargs_from_env(n)[0][0].detach(), value
        return value
