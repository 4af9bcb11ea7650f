"""The stage that builds the ensemble's fake-quantized students and calibrates them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit.run.stage import Plan, Stage, StageResult, each_target

if TYPE_CHECKING:
    from dfqkit.config.recipe import Recipe
    from dfqkit.run.context import Context


#: The int8 file of a ladder's first candidate, for whoever does not wait for the others; `model.onnx` replaces it.
FIRST = "first.onnx"


def calibrated_file(index: int = 0) -> str:
    """Return where the ensemble's member lies after calibration; member 0 is the deployed one."""
    return f"partner{index}.safetensors" if index else "calibrated.safetensors"


def _run(context: Context) -> StageResult:
    """Find ranges and correct biases on the calibration set; the held-out one shows which tensors stay in float.

    Where there is a ladder, its candidates are calibrated in turn, and the nearest one is deployed.
    """
    from dfqkit.run.ladder import calibrated, climb
    from dfqkit.students.student import rounded_layers, save_student

    ladder, scheme, facts = context.recipe.ladder, context.recipe.quant, {}
    if ladder is not None:
        stage = f"{STAGE.name}.{context.part.name}" if context.part.name else STAGE.name
        facts = climb(context, ladder, stage, context.file(calibrated_file()), context.file(FIRST))
        scheme = ladder.schemes(scheme)[facts["chosen"]]
    schemes = context.ensemble(scheme)
    files = [context.file(calibrated_file(index)) for index in range(len(schemes))]
    new = dict(enumerate(schemes)) if ladder is None else dict(enumerate(schemes[1:], 1))
    rounded = sum(rounded_layers(context.graph, member) for member in new.values())
    with context.progress.stage(STAGE.name, total=len(schemes) + rounded) as bar:
        for index, _ in enumerate(schemes):
            if index in new:
                save_student(calibrated(context, new[index], bar.advance, index), files[index])
            bar.advance(1)
    return StageResult(files=[file.name for file in files], facts=facts)


def _plan(recipe: Recipe) -> Plan:
    text = f"{1 + len(recipe.distill.partners if recipe.distill else ())} student(s)"
    tried = f", the nearest of up to {len(recipe.ladder.candidates)} candidates" if recipe.ladder else ""
    return Plan(text=text + tried)


STAGE = Stage(
    name="quantize", help="build the fake-quantized student and calibrate it", run=_run, plan=_plan, parts=each_target
)
