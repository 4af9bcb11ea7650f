"""What a run is going to do, before it does it: the text of `--dry-run`."""

from __future__ import annotations

from typing import Any

from dfqkit.config.recipe import Recipe
from dfqkit_export.backends.targets import get_target


def plan(recipe: Recipe) -> str:
    """What `--dry-run` prints: the stages, their cost in image passes, and the resolved recipe."""
    config: Any = recipe.synthesis
    student: Any = recipe.student
    distill: Any = recipe.distill
    quant: Any = recipe.quant
    bank = recipe.bank
    lines = [
        f"recipe      {recipe.name}: {recipe.why}",
        f"teacher     {recipe.teacher.factory}, weights {recipe.teacher.weights or 'random'}",
        f"target      {get_target(recipe.target).title}, {quant.bits}",
        "",
        f"synthesize  {_source(config)}; stores {bank.calibration} images for calibration, {bank.held_out} held out, "
        f"{bank.grading} for grading",
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


def _source(config: Any) -> str:
    """A source in one phrase; a mixture's parts with their shares."""
    if config.method == "mixture":
        parts = zip(config.active, config.shares, strict=True)
        return ", ".join(f"{100 * share:.3g} % {_source(source.config)}" for source, share in parts)
    fields = config.model_dump()
    makes_a_set = "game_steps" in fields  # where `warmup` is a learning rate's
    rounds = {"steps": "steps for every"} if makes_a_set else {"warmup": "warm-up rounds of"}
    known = [f"{fields[key]} {words}" for key, words in {**rounds, "batch": "images"}.items() if key in fields]
    return f"{config.method} ({' '.join(known)})" if known else str(config.method)
