"""The stage that writes the student as a QDQ ONNX file, and the teacher beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit.run.distill import FINAL
from dfqkit.run.quantize import FIRST
from dfqkit.run.stage import Plan, Stage, StageResult, each_target, named

if TYPE_CHECKING:
    from dfqkit.config.recipe import Recipe
    from dfqkit.run.context import Context

#: The files.
MODEL, TEACHER = "model.onnx", "teacher.onnx"


def _run(context: Context) -> StageResult:
    from dfqkit.run.disclosure import file_metadata
    from dfqkit.students.onnx_file import write_model, write_qdq

    model, teacher, metadata = context.file(MODEL), context.file(TEACHER), file_metadata(context, context.scheme)
    with context.progress.stage(STAGE.name, total=2) as bar:
        student = context.stored_student(context.scheme, FINAL)
        write_qdq(student, context.target, model, metadata=metadata)
        bar.advance(1)
        write_model(context.teacher_file, teacher, metadata=metadata)
        bar.advance(1)
    context.file(FIRST).unlink(missing_ok=True)
    return StageResult(files=[model.name, teacher.name])


def _plan(recipe: Recipe) -> Plan:
    return Plan(text=", ".join(named(name, part) for part in each_target(recipe) for name in (MODEL, TEACHER)))


STAGE = Stage(name="export", help="write the student as a QDQ ONNX file", run=_run, plan=_plan, parts=each_target)
