"""The stage that trains quantized students with the teacher's answers, and keeps the deployed one's best state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit.run.quantize import calibrated_file
from dfqkit.run.stage import Plan, Stage, StageResult, each_target

if TYPE_CHECKING:
    from dfqkit.config.recipe import Recipe
    from dfqkit.run.context import Context

#: File of the deployed student, finished.
FINAL = "student.safetensors"


def _run(context: Context) -> StageResult:
    """Play generators against students; without a section, keep what was calibrated.

    What is imitated is the float graph that was quantized: the teacher's, or the smaller float student's. What is kept
    is nearest to the teacher in both cases.
    """
    from dfqkit.run.playing import TRAINED, WARM, found_out, play, saved_synthesizer
    from dfqkit.students.freezing import freeze
    from dfqkit.students.student import restore, save_student
    from dfqkit.training.quantized_student import QuantizedStudentTrainer
    from dfqkit.training.stream import LiveStream

    students = [context.stored_student(s, calibrated_file(index)) for index, s in enumerate(context.schemes)]
    config = context.recipe.distill
    facts: dict[str, object] = {"kept": "calibration", "judged": [], "curve": [], "cost": 0, "disagreement": None}
    if config is not None:
        main = saved_synthesizer(context, WARM if context.recipe.student is None else TRAINED)
        before = main.cost
        stream = LiveStream(main, config, context.rng("augmentation"))
        trainer = QuantizedStudentTrainer(
            students, context.schemes, context.reference(context.scheme), stream, context.held_out(), config
        )
        start_disagreement = trainer.disagreement()
        play(context, STAGE.name, trainer)
        facts = found_out(trainer) | {
            "cost": main.cost - before,
            "disagreement": {"before": start_disagreement, "after": trainer.disagreement()},
        }
        restore(students[0], trainer.best, context.scheme)
    freeze(students[0])
    save_student(students[0], context.file(FINAL))
    return StageResult(files=[context.file(FINAL).name], facts=facts)


def _plan(recipe: Recipe) -> Plan:
    config = recipe.distill
    if config is None:
        return Plan(text="no: the calibrated student ships")
    return Plan(text=f"{config.steps} steps of {config.batch} images, a generator round every {config.round_every}")


STAGE = Stage(
    name="distill", help="train the student with its teacher's answers", run=_run, plan=_plan, parts=each_target
)
