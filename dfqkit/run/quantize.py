"""The stage that builds the ensemble's fake-quantized students and calibrates them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit.run.stage import Plan, Stage, StageResult, each_target

if TYPE_CHECKING:
    from dfqkit.config.recipe import Recipe
    from dfqkit.run.context import Context


def calibrated_file(index: int = 0) -> str:
    """Return where the ensemble's member lies after calibration; member 0 is the deployed one."""
    return f"partner{index}.safetensors" if index else "calibrated.safetensors"


def _run(context: Context) -> StageResult:
    """Find ranges and correct biases on the calibration set; the held-out one shows which tensors stay in float."""
    from dfqkit.students.sensitivity import Imitated
    from dfqkit.students.student import calibrate_student, save_student

    batches = [images for images, _ in context.batches("calibration")]
    held_out = [images for images, _ in context.batches("held_out")]
    imitated = Imitated(graph=context.graph, task=context.teacher.torch_task)
    files = []
    with context.progress.stage(STAGE.name, total=len(context.schemes)) as bar:
        for index, scheme in enumerate(context.schemes):
            student = context.new_student(scheme)
            # Every member sees the batches in another order and its own half of them once more: another calibration.
            own = batches if index == 0 else [*batches[index % 2 :: 2], *batches[::-1]]
            calibrate_student(
                student,
                own,
                scheme,
                context.teacher.image,
                held_out=held_out,
                replan=context.replan(scheme),
                imitated=imitated,
            )
            save_student(student, context.file(calibrated_file(index)))
            files.append(context.file(calibrated_file(index)).name)
            bar.advance(1)
    return StageResult(files=files)


def _plan(recipe: Recipe) -> Plan:
    return Plan(text=f"{1 + len(recipe.distill.partners if recipe.distill else ())} student(s)")


STAGE = Stage(
    name="quantize", help="build the fake-quantized student and calibrate it", run=_run, plan=_plan, parts=each_target
)
