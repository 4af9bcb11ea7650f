"""From a recipe's section to a synthesizer: the checks and wrappers that every method gets alike."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib import import_module

import torch

from dfqkit.config.registry import synthesizer_configs
from dfqkit.config.synthesis import Demand, SynthesizerConfig
from dfqkit.synthesis.base import Synthesizer
from dfqkit.synthesis.given import GivenImages
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.structure import grey_images, provides
from dfqkit_export.errors import RecipeError
from dfqkit_export.images.entries import drawn

_IN_WORDS = {
    "batchnorm": "BatchNorm layers with running statistics",
    "classes": "classes to make images of",
    "linear_head": "a linear layer that gives the logits",
    "features": "features in front of its last layer",
    "objects": "a task that finds objects",
    "tokens": "attention between tokens",
}
#: What a teacher can lack; the rest of what methods need, the caller or the recipe supplies.
TEACHERS_PART = frozenset(_IN_WORDS)


def build_synthesizer(
    config: SynthesizerConfig, teacher: Teacher, generator: torch.Generator, demand: Demand
) -> Synthesizer:
    """Make the synthesizer that a configuration describes; the teacher must have what it needs.

    A teacher that gives probabilities gives their logarithms here, which every method takes for logits.
    """
    require_needs(config, teacher)
    probe = teacher.logits(grey_images(teacher, 2))
    if teacher.torch_task.for_losses(probe) is not probe:
        teacher = replace(teacher, model=copy.deepcopy(teacher.model))
        teacher.model.register_forward_hook(lambda _model, _given, output: teacher.torch_task.for_losses(output))
    made = implementation(type(config))(config, teacher, generator, demand)
    if config.low_pass is not None:
        from dfqkit.synthesis.low_pass import LowPassed

        made = LowPassed(made, config.low_pass)
    if drawn(teacher.image.inputs) and not isinstance(made, GivenImages):
        from dfqkit.synthesis.finishing import SidesDrawn

        made = SidesDrawn(made)
    return made


def implementation(kind: type[SynthesizerConfig]) -> type[Synthesizer]:
    """Return the class that does what sections of this kind describe."""
    where = f"{kind.__module__}.{kind.__qualname__}"
    named = getattr(kind, "implementation", None)
    module, _, attribute = str(named).partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        message = f"{where}.implementation is {named!r}, which cannot be imported: {error}. Name module:Class."
        raise RecipeError(message) from error
    if not (isinstance(found, type) and issubclass(found, Synthesizer)):
        message = f"{where}.implementation is {named!r}, no subclass of dfqkit.synthesis.base.Synthesizer."
        raise RecipeError(message)
    return found


def require_needs(config: SynthesizerConfig, teacher: Teacher) -> None:
    """Refuse a method that needs what the teacher lacks, before any compute is spent, and say which would do."""
    offered = provides(teacher)
    lacking = sorted((config.needed & TEACHERS_PART) - offered)
    if not lacking:
        return
    would_do = [name for name, kind in synthesizer_configs().items() if not (kind.needs & TEACHERS_PART) - offered]
    folded = " (folded into the convolutions, or another normalisation?)" if "batchnorm" in lacking else ""
    of_classes = getattr(getattr(config, "weights", None), "of_classes", ())
    terms = {"classes": sorted(of_classes), "objects": ["objects"]}.get(lacking[0], ()) if len(lacking) == 1 else ()
    off = " and ".join(f"weights.{name}: 0" for name in terms)
    message = (
        f"Synthesizer '{config.method}' needs {' and '.join(_IN_WORDS[name] for name in lacking)}, which teacher "
        f"'{teacher.name}' does not have{folded}. It offers: {', '.join(sorted(offered)) or 'outputs alone'}. Use "
        f"one of {', '.join(would_do)}{', or the checkpoint before folding' if folded else ''}"
        f"{f', or set {off} to make do without' if off else ''}."
    )
    raise RecipeError(message)
