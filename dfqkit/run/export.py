"""The stage that writes the student as a QDQ ONNX file, and the teacher beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dfqkit.run.distill import FINAL
from dfqkit.run.stage import Plan, Stage, StageResult, each_target, named

if TYPE_CHECKING:
    from dfqkit.config.recipe import Recipe
    from dfqkit.run.context import Context

#: The files.
MODEL, TEACHER = "model.onnx", "teacher.onnx"


def _run(context: Context) -> StageResult:
    from dfqkit.students.onnx_file import write_model, write_qdq

    model, teacher, metadata = context.file(MODEL), context.file(TEACHER), _metadata(context)
    with context.progress.stage(STAGE.name, total=2) as bar:
        student = context.stored_student(context.scheme, FINAL)
        write_qdq(student, context.target, model, metadata=metadata)
        bar.advance(1)
        write_model(context.teacher_file, teacher, metadata=metadata)
        bar.advance(1)
    return StageResult(files=[model.name, teacher.name])


def _metadata(context: Context) -> dict[str, str]:
    """Return what both files say about themselves."""
    from dfqkit.run.provenance import warnings_of
    from dfqkit_export.env import environment
    from dfqkit_export.tasks import metadata_of

    recipe, teacher = context.recipe, context.teacher
    metadata = {
        "dfqkit.recipe": recipe.name,
        "dfqkit.recipe_sha256": recipe.digest(),
        "dfqkit.seed": str(recipe.seed),
        "dfqkit.synthesizer": context.synthesis.method,
        "dfqkit.teacher": teacher.name,
        "dfqkit.teacher_sha256": teacher.sha256,
        "dfqkit.target": recipe.target,
        "dfqkit.quant": json.dumps(context.scheme.model_dump(mode="json"), sort_keys=True),
        "dfqkit.image": json.dumps(teacher.image.to_dict(), sort_keys=True),
        **metadata_of(teacher.task),
        **{f"dfqkit.version.{name}": str(version) for name, version in environment()["packages"].items()},
    }
    if warnings := warnings_of(recipe):
        metadata["dfqkit.warnings"] = json.dumps(warnings)
    if recipe.student is not None:
        metadata["dfqkit.student"] = recipe.student.factory
    return metadata


def _plan(recipe: Recipe) -> Plan:
    return Plan(text=", ".join(named(name, part) for part in each_target(recipe) for name in (MODEL, TEACHER)))


STAGE = Stage(name="export", help="write the student as a QDQ ONNX file", run=_run, plan=_plan, parts=each_target)
