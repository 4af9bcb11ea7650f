"""What a teacher is made of, as one image finds it: layers in the order of their calls, the linear head, last features.

What belongs here: facts that methods and inspection both need, read by running the teacher once, so that neither names
nor positions are guessed.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dfqkit.tasks.classification import as_logits
from dfqkit.teacher.attention import AttentionTap
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.taps import batch_norms
from dfqkit_export.errors import TeacherError
from dfqkit_export.tasks import CLASSES


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of one module: its path, itself, what it was given first, and what it returned."""

    name: str
    layer: nn.Module
    given: Any
    output: Any


#: Rounding of a softmax's sum, and of its logarithms.
NORMALISED = 1e-4


def grey_images(teacher: Teacher, n: int = 1) -> Tensor:
    """Images (n, C, H, W) halfway between black and white, on the teacher's device."""
    return torch.full((n, *teacher.image.shape), sum(teacher.image.bounds()) / 2, device=teacher.device)


def layer_calls(teacher: Teacher) -> tuple[list[Call], Tensor]:
    """Run one grey image; every module call in the order in which they ended, and the first output (1, ...)."""
    calls: list[Call] = []

    def note(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        calls.append(Call(name=name, layer=layer, given=next(iter(inputs), None), output=output))

    with ExitStack() as hooks:
        for name, layer in teacher.model.named_modules():
            hooks.enter_context(layer.register_forward_hook(partial(note, name)))
        output = teacher.logits(grey_images(teacher))
    return calls, output


def linear_head(teacher: Teacher) -> tuple[str, nn.Linear] | None:
    """Return the linear layer whose output is the logits, with its module path; None where there is none.

    A network that ends in a 1x1 convolution per class (SqueezeNet) has features but no linear head, and one whose task
    has no classes has neither.
    """
    return _head_of(*layer_calls(teacher)) if CLASSES in teacher.task.offers else None


def required_head(teacher: Teacher, reader: str) -> tuple[str, nn.Linear]:
    """Return the same; a teacher without one is refused in the name of the method that would read it."""
    head = linear_head(teacher)
    if head is None:
        message = f"Teacher '{teacher.name}' has no linear head for {reader} to read. Use another method."
        raise TeacherError(message)
    return head


def last_layer(teacher: Teacher) -> str:
    """Return the path of the layer whose input are the features: the linear head, or a convolution with all classes."""
    calls, logits = layer_calls(teacher)
    head = _head_of(calls, logits)
    name = head[0] if head is not None else _last_of_classes(calls, logits.shape[1])
    if name is None:
        message = (
            f"Teacher '{teacher.name}' has no features in front of its last layer: neither does a linear layer give "
            "its logits, nor does it end in a convolution with one output per class. Use a method, or weights, that "
            "need logits or BatchNorm statistics only."
        )
        raise TeacherError(message)
    return name


def provides(teacher: Teacher) -> frozenset[str]:
    """Return what it offers of what `build.TEACHERS_PART` lists."""
    calls, output = layer_calls(teacher)
    classes = CLASSES in teacher.task.offers
    head = classes and _head_of(calls, output) is not None
    last = classes and _last_of_classes(calls, output.shape[1]) is not None
    called = {id(call.layer) for call in calls}
    norms = any(id(layer) in called for layer in batch_norms(teacher.model).values())
    found = {"batchnorm": norms, "linear_head": head, "features": head or last}
    with AttentionTap() as tap:
        answers = teacher.answers(grey_images(teacher))
    found |= {"objects": teacher.torch_task.objectness(answers) is not None, "tokens": bool(tap.tokens)}
    return teacher.task.offers | {name for name, there in found.items() if there}


def _last_of_classes(calls: list[Call], classes: int) -> str | None:
    """Return the convolution that is called last of all layers with weights, if it gives one map a class."""
    last = next((call for call in reversed(calls) if isinstance(call.layer, nn.Linear | nn.Conv2d)), None)
    fits = last is not None and isinstance(last.layer, nn.Conv2d) and last.layer.out_channels == classes
    return last.name if last is not None and fits else None


def _head_of(calls: list[Call], logits: Tensor) -> tuple[str, nn.Linear] | None:
    """Return the linear layer that gives the logits; a softmax behind it is looked through."""
    for call in reversed(calls):
        if isinstance(call.layer, nn.Linear) and isinstance(call.output, Tensor) and call.output.shape == logits.shape:
            wanted = as_logits(logits)
            normalised = float(wanted.logsumexp(1).abs().max()) < NORMALISED  # what a softmax gave, or its logarithm
            found = call.output.log_softmax(1)
            if torch.equal(call.output, logits) or (normalised and torch.allclose(found, wanted, atol=NORMALISED)):
                return call.name, call.layer
    return None
