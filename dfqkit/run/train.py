"""The stage that trains a smaller float student, which is quantized in the teacher's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit.run.stage import Plan, Stage, StageResult

if TYPE_CHECKING:
    from dfqkit.config.recipe import Recipe
    from dfqkit.run.context import Context


def _run(context: Context) -> StageResult:
    """Train on a live stream and keep the best state."""
    from dfqkit.run.context import FLOAT_STUDENT
    from dfqkit.run.playing import TRAINED, WARM, found_out, play, saved_synthesizer
    from dfqkit.students.student import save_student
    from dfqkit.training.float_student import FloatStudentTrainer
    from dfqkit.training.stream import LiveStream

    config = context.recipe.student
    assert config is not None
    main = saved_synthesizer(context, WARM)
    before = main.cost
    student, stream = context.untrained_student(), LiveStream(main, config, context.rng("train augmentation"))
    trainer = FloatStudentTrainer(student, context.teacher, stream, context.held_out(), config, context.rng("train"))
    play(context, STAGE.name, trainer)
    student.load_state_dict(trainer.best)
    save_student(student, context.folder.path / FLOAT_STUDENT)
    context.folder.save_state(TRAINED, main.state_dict(), {})
    facts = found_out(trainer) | {
        "cost": main.cost - before,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
    }
    return StageResult(files=[FLOAT_STUDENT, f"state/{TRAINED}.safetensors"], facts=facts)


def _plan(recipe: Recipe) -> Plan:
    config = recipe.student
    if config is None:
        return Plan(text="no: the teacher itself is quantized")
    return Plan(
        text=f"{config.factory}, {config.steps} steps of {config.batch} images, a generator round every "
        f"{config.round_every}"
    )


STAGE = Stage(
    name="train",
    help="train the smaller float student, where the recipe asks for one",
    run=_run,
    plan=_plan,
    applies=lambda recipe: recipe.student is not None,
)
