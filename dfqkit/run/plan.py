"""What a run is going to do, before it does it: the text of `--dry-run`."""

from __future__ import annotations

from typing import Any

from dfqkit_export.targets import get_target

from ..recipe import Recipe


def plan(recipe: Recipe) -> str:
    """What `--dry-run` prints: the stages, their cost in image passes, and the resolved recipe."""
    config: Any = recipe.synthesis
    student: Any = recipe.student
    distill: Any = recipe.distill
    quant: Any = recipe.quant
    bank = recipe.bank
    rounds = getattr(config, "warmup", 0)
    batch = getattr(config, "batch", bank.batch)
    lines = [
        f"recipe      {recipe.name}: {recipe.why}",
        f"teacher     {recipe.teacher.factory}, weights {recipe.teacher.weights or 'random'}",
        f"target      {get_target(recipe.target).title}, {quant.bits}",
        "",
        f"synthesize  {rounds} rounds of {batch} images; stores {bank.calibration} for calibration, "
        f"{bank.held_out} held out, {bank.grading} for grading",
    ]
    if student is None:
        lines.append("train       no: the teacher itself is quantized")
    else:
        lines.append(
            f"train       {student.factory}, {student.steps} steps of {student.batch} images, a generator round every "
            f"{student.round_every}"
        )
    lines.append(f"quantize    {1 + len(distill.partners if distill else ())} student(s)")
    if distill is None:
        lines.append("distill     no: the calibrated student ships")
    else:
        steps, size = distill.steps, distill.batch
        lines.append(f"distill     {steps} steps of {size} images, a generator round every {distill.round_every}")
    lines += [
        "export      model.onnx, teacher.onnx",
        f"validate    {recipe.validation.data or 'synthetic images only'}",
    ]
    return "\n".join([*lines, "", recipe.to_yaml()])
