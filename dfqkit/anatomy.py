"""What a teacher is made of, as one image finds it: layers in the order of their calls, the linear head, last features.

What belongs here: facts that methods and inspection both need, read by running the teacher once, so that neither names
nor positions are guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .taps import batch_norms
from .teacher import Teacher

__all__ = ["Call", "last_convolution", "layer_calls", "linear_head", "provides"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of one module: its path, itself, and what it returned."""

    name: str
    layer: nn.Module
    output: Any


def layer_calls(teacher: Teacher) -> tuple[list[Call], Tensor]:
    """Run one grey image; every module call in the order in which they ended, and the logits (1, classes)."""
    calls: list[Call] = []

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(module: nn.Module, _: object, output: object) -> None:
            calls.append(Call(name=name, layer=module, output=output))

        return layer.register_forward_hook(note)

    handles = [watch(name, layer) for name, layer in teacher.model.named_modules()]
    device = next((parameter.device for parameter in teacher.model.parameters()), torch.device("cpu"))
    low, high = teacher.image.bounds()
    try:
        logits = teacher.logits(torch.full((1, *teacher.image.shape), (low + high) / 2, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return calls, logits


def linear_head(teacher: Teacher) -> tuple[str, nn.Linear] | None:
    """The linear layer whose output is the logits, with its module path; None where there is none.

    A network that ends in a 1x1 convolution per class (SqueezeNet) has features but no linear head.
    """
    return _head_of(*layer_calls(teacher))


def last_convolution(teacher: Teacher) -> str | None:
    """Module path of the convolution that is called last."""
    calls, _ = layer_calls(teacher)
    return next((call.name for call in reversed(calls) if isinstance(call.layer, nn.modules.conv._ConvNd)), None)


def provides(teacher: Teacher) -> frozenset[str]:
    """What it offers of "batchnorm", "linear_head" and "features"; see `Synthesizer.needs`."""
    calls, logits = layer_calls(teacher)
    head = _head_of(calls, logits) is not None
    weighted = [call.layer for call in calls if isinstance(call.layer, nn.Linear | nn.Conv2d)]
    classes = logits.shape[1]
    last = bool(weighted) and isinstance(weighted[-1], nn.Conv2d) and weighted[-1].out_channels == classes
    called = {id(call.layer) for call in calls}
    norms = any(id(layer) in called for layer in batch_norms(teacher.model).values())
    found = {"batchnorm": norms, "linear_head": head, "features": head or last}
    return frozenset(name for name, there in found.items() if there)


def _head_of(calls: list[Call], logits: Tensor) -> tuple[str, nn.Linear] | None:
    for call in reversed(calls):
        if isinstance(call.layer, nn.Linear) and isinstance(call.output, Tensor) and torch.equal(call.output, logits):
            return call.name, call.layer
    return None
