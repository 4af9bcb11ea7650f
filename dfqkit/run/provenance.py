"""What a report says beside its numbers: warnings, what made the file, how images and the kept state came about.

What belongs here: facts that are read off the recipe and off what the stages noted; nothing is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from dfqkit_export.env import environment
from dfqkit_export.targets import Target

from ..recipe import Recipe
from ..registry import synthesizer

if TYPE_CHECKING:
    from .context import Context


def warnings_of(recipe: Recipe) -> tuple[str, ...]:
    """What a report on this recipe's result must open with: of its sources, and images that both make and measure."""
    config: Any = recipe.synthesis
    found: tuple[str, ...] = synthesizer(config.method).warnings_of(config)
    if recipe.validation.data is not None and recipe.validation.data in _texts(config.model_dump()):
        found += (
            f"validate.data is '{recipe.validation.data}', which the synthesis section names too: accuracy was "
            "measured on images that took part in making the result, so it says little about others.",
        )
    return found


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested mappings and sequences."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def provenance(context: Context) -> dict[str, Any]:
    """What made the file and where: `Report.provenance`."""
    recipe, teacher = context.recipe, context.teacher
    warned = warnings_of(recipe)
    section = context.student_section
    student = {"float_student": section.factory, "float_student_args": section.args} if section else {}
    stages = ("synthesize", *(["train"] if section else []), "quantize", "distill", "export")
    return {
        **({"warnings": list(warned)} if warned else {}),
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest(),
        "command": context.folder.run_facts().get("command", ""),
        "seed": recipe.seed,
        "teacher": teacher.name,
        "teacher_sha256": teacher.sha256,
        "weights": teacher.weights_source,
        **student,
        "target": recipe.target,
        "measured in": _measured_in(context.target),
        "synthesizer": recipe.synthesis.method,  # type: ignore[attr-defined]
        "device": str(context.device),
        "threads": torch.get_num_threads(),
        "seconds": {stage: context.folder.seconds(stage) for stage in stages},
        "environment": environment(),
    }


def _measured_in(target: Target) -> str:
    if target.runtime == "onnxruntime":
        return "ONNX Runtime, the target itself"
    return (
        f"ONNX Runtime on CPU, which computes what the file says; {target.title} itself has not run it, so nothing "
        "here is about its speed or its fused layers"
    )


def synthesis(context: Context) -> dict[str, Any]:
    """Loss curves, cost and disagreement of the stages: `Report.synthesis`."""
    made, trained, played = (context.folder.facts(stage) for stage in ("synthesize", "train", "distill"))
    curve: list[dict[str, Any]] = []
    for facts in (made, trained, played):
        offset = curve[-1]["round"] if curve else 0
        curve += [
            {
                "round": offset + int(entry.get("round", entry.get("step"))),
                "terms": {key: value for key, value in entry.items() if key not in ("round", "step")},
            }
            for entry in facts.get("curve", [])  # type: ignore[attr-defined]
        ]
    cost = {"synthesis_image_passes": made.get("cost", 0), "game_image_passes": played.get("cost", 0)}
    if trained:
        cost["train_image_passes"] = trained["cost"]
    config: Any = context.recipe.synthesis
    methods = [source.config.method for source in getattr(config, "active", ())] or [config.method]
    return {
        "losses": curve,
        "cost": cost,
        "disagreement": played.get("disagreement"),
        "data_free": "images" not in methods,
    }


def selection(context: Context) -> dict[str, Any]:
    """How the kept state was chosen: `Report.selection`."""
    played, trained = context.folder.facts("distill"), context.folder.facts("train")
    student = {"float_student_kept": trained["kept"], "float_student_judged": trained["judged"]} if trained else {}
    return {
        **student,
        "rule": "lowest KL from the teacher on held-out synthetic images, calibration alone being a candidate",
        "kept": played.get("kept"),
        "judged": played.get("judged"),
        "held_out_classes": torch.bincount(
            context.bank("held_out").logits.argmax(1), minlength=context.teacher.image.classes
        ).tolist(),
    }


__all__ = ["provenance", "selection", "synthesis", "warnings_of"]
