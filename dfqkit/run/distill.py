"""The stage that trains quantized students with the teacher's answers, and keeps the deployed one's best state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit.run.quantize import calibrated_file
from dfqkit.run.stage import Plan, Stage, StageResult, each_target

if TYPE_CHECKING:
    from dfqkit.config.recipe import Recipe
    from dfqkit.run.context import Context
    from dfqkit.synthesis.base import Synthesizer
    from dfqkit.training.quantized_student import QuantizedStudentTrainer

#: File of the deployed student, finished.
FINAL = "student.safetensors"


def _run(context: Context) -> StageResult:
    """Play generators against students; without a section, keep what was calibrated.

    What is imitated is the float graph that was quantized: the teacher's, or the smaller float student's. What is kept
    is nearest to the teacher in both cases.
    """
    from dfqkit.run.playing import found_out, play
    from dfqkit.students.freezing import freeze
    from dfqkit.students.student import restore, save_student

    facts: dict[str, object] = {"kept": "calibration", "judged": [], "curve": [], "cost": 0, "disagreement": None}
    if context.recipe.distill is None:
        student = context.stored_student(context.scheme, calibrated_file())
    else:
        trainer, main = _loop(context)
        before, start_disagreement = main.cost, trainer.disagreement()
        play(context, STAGE.name, trainer)
        facts = found_out(trainer) | {
            "cost": main.cost - before,
            "disagreement": {"before": start_disagreement, "after": trainer.disagreement()},
        }
        student = trainer.students[0]
        restore(student, trainer.best, context.scheme)
    freeze(student)
    save_student(student, context.file(FINAL))
    return StageResult(files=[context.file(FINAL).name], facts=facts)


def _assist(context: Context) -> None:
    """Take every step together with the first process, which keeps what comes of it."""
    from dfqkit.run.playing import play

    if context.recipe.distill is not None:
        play(context, STAGE.name, _loop(context)[0])


def _loop(context: Context) -> tuple[QuantizedStudentTrainer, Synthesizer]:
    from dfqkit.run.playing import TRAINED, WARM, saved_synthesizer
    from dfqkit.training.quantized_student import QuantizedStudentTrainer
    from dfqkit.training.stream import LiveStream

    config = context.recipe.distill
    assert config is not None
    students = [context.stored_student(s, calibrated_file(index)) for index, s in enumerate(context.schemes)]
    main = saved_synthesizer(context, WARM if context.recipe.student is None else TRAINED)
    stream = LiveStream(main, config, context.rng("augmentation"))
    trainer = QuantizedStudentTrainer(
        students, context.schemes, context.reference(context.scheme), stream, context.held_out(), config
    )
    trainer.spread(context.ranks)
    return trainer, main


def _plan(recipe: Recipe) -> Plan:
    config = recipe.distill
    if config is None:
        return Plan(text="no: the calibrated student ships")
    return Plan(text=f"{config.steps} steps of {config.batch} images, a generator round every {config.round_every}")


STAGE = Stage(
    name="distill",
    help="train the student with its teacher's answers",
    run=_run,
    plan=_plan,
    parts=each_target,
    assist=_assist,
)
