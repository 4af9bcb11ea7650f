"""The stages of a run, in order: one table, from which the command line, the plan and resuming are made.

What belongs here: the table, and what follows from its order. A stage is a module with a `Stage` and a line here. No
import of torch: a stage imports what it computes with when it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit.run import distill, export, quantize, synthesize, train, validate
from dfqkit.run.stage import Stage, only
from dfqkit_export.errors import ArtefactError
from dfqkit_export.words import table

if TYPE_CHECKING:
    from dfqkit.config.recipe import Recipe
    from dfqkit.run.folder import RunFolder

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (synthesize.STAGE, train.STAGE, quantize.STAGE, distill.STAGE, export.STAGE, validate.STAGE)
}


def first() -> str:
    """Return the stage that a run begins with."""
    return next(iter(STAGES))


def before(name: str) -> list[Stage]:
    """Return the stages before one, in order."""
    names = list(STAGES)
    return [STAGES[earlier] for earlier in names[: names.index(name)]]


def following(name: str, recipe: Recipe) -> str | None:
    """Return the next stage that has something to do for a recipe; None after the last."""
    names = list(STAGES)
    return next((later for later in names[names.index(name) + 1 :] if STAGES[later].applies(recipe)), None)


def require_earlier(folder: RunFolder, recipe: Recipe, name: str) -> None:
    """Refuse a stage while one before it, which has something to do for the recipe, is not complete."""
    for stage in before(name):
        if stage.applies(recipe) and not folder.done(stage.name):
            message = (
                f"Stage '{name}' of '{folder.path}' needs '{stage.name}', which is not complete. Run "
                f"`{only(stage.name, folder.path)}` first, or all that is left with `dfqkit run --resume "
                f"{folder.path}`."
            )
            raise ArtefactError(message)


def plan(recipe: Recipe) -> str:
    """Return what `--dry-run` prints: what each stage does and costs, and the resolved recipe."""
    from dfqkit_export.backends import get_target  # not needed to list the stages

    lines = {
        "recipe": f"{recipe.name}: {recipe.why}",
        "teacher": f"{recipe.teacher.factory}, weights {recipe.teacher.weights or 'random'}",
        "target": f"{', '.join(get_target(name).title for name in recipe.targets)}, {recipe.quant.bits}",
        "": "",
        **{name: stage.plan(recipe).text for name, stage in STAGES.items()},
    }
    return "\n".join([*table([*lines.items()]), "", recipe.to_yaml()])
