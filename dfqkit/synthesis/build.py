"""From a recipe's section to a synthesizer: the checks and wrappers that every method gets alike."""

from __future__ import annotations

import torch

from dfqkit.config.registry import synthesizer, synthesizers
from dfqkit.synthesis.base import Demand, Synthesizer, SynthesizerConfig
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.structure import provides
from dfqkit_export.errors import RecipeError

#: What a teacher can lack; the rest of what methods need, the caller or the recipe supplies.
TEACHERS_PART = frozenset({"batchnorm", "linear_head", "features"})

_IN_WORDS = {
    "batchnorm": "BatchNorm layers with running statistics",
    "linear_head": "a linear layer that gives the logits",
    "features": "features in front of its last layer",
}


def build_synthesizer(
    config: SynthesizerConfig, teacher: Teacher, generator: torch.Generator, demand: Demand
) -> Synthesizer:
    """Make the synthesizer that a configuration describes.

    Raises:
        RecipeError: when it needs what the teacher lacks.
    """
    require_needs(config, teacher)
    made = synthesizer(config.method)(config, teacher, generator, demand)
    if config.low_pass is None:
        return made
    from dfqkit.synthesis.low_pass import LowPassed

    return LowPassed(made, config.low_pass)


def require_needs(config: SynthesizerConfig, teacher: Teacher) -> None:
    """Refuse a method that needs what the teacher lacks, before any compute is spent.

    Raises:
        RecipeError: says what is lacking, what there is, and which methods would do.
    """
    offered = provides(teacher)
    lacking = sorted((synthesizer(config.method).needs_of(config) & TEACHERS_PART) - offered)
    if not lacking:
        return
    would_do = [name for name, kind in synthesizers().items() if not (kind.needs & TEACHERS_PART) - offered]
    folded = " (folded into the convolutions, or another normalisation?)" if "batchnorm" in lacking else ""
    message = (
        f"Synthesizer '{config.method}' needs {' and '.join(_IN_WORDS[name] for name in lacking)}, which teacher "
        f"'{teacher.name}' does not have{folded}. It offers: {', '.join(sorted(offered)) or 'nothing but logits'}. Use "
        f"one of {', '.join(would_do)}{', or the checkpoint before folding' if folded else ''}."
    )
    raise RecipeError(message)
