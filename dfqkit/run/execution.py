"""Running stages: those that are wanted, in order, each when those before it are complete.

What belongs here: what is the same for every stage. Which ones there are is `stages`, what all of them need is
`context`, the folder `folder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from dfqkit.config.recipe import Recipe
from dfqkit.progress import Progress
from dfqkit.run.binding import bind_teacher, weights_changed
from dfqkit.run.context import Context, resolve_device
from dfqkit.run.folder import RunFolder
from dfqkit.run.parts import Executor, InOrder, Tell
from dfqkit.run.shared import context_of, spread
from dfqkit.run.stage import Part, StageResult, joined
from dfqkit.run.stages import STAGES, before, require_earlier
from dfqkit.teacher.load import Teacher
from dfqkit.training.ranks import Ranks
from dfqkit_export.env import environment

#: Room for everything that does not grow with the number of images: students, optimizers, ONNX files, reports.
_MODEL_SPACE = 256 * 2**20
#: What the first process says in the place of a stage's number.
_NO_MORE = -1.0


def execute(  # noqa: PLR0913 - what says how is named
    folder: RunFolder,
    recipe: Recipe,
    stages: Iterable[str],
    *,
    device: str,
    progress: Progress,
    teacher: Teacher | None = None,
    executor: Executor | None = None,
) -> None:
    """Run stages in order, but those that are complete; what comes before the first one must be.

    Of several processes that torchrun started, the first does that, and the others assist it. What an executor does
    elsewhere loads the recipe's own teacher there, which ``teacher`` must be then.
    """
    ranks = Ranks.joined(device)
    context = Context(
        folder=folder,
        recipe=recipe,
        device=resolve_device(device),
        progress=progress,
        given=teacher,
        stages=tuple(STAGES.values()),
        ranks=ranks,
        executor=executor or InOrder(),
    )
    if not ranks.first:
        _assist(context)
        return
    folder.require_space(_MODEL_SPACE + sum(stage.plan(recipe).size for stage in STAGES.values()))
    stages = list(stages)
    if teacher is not None or not all(map(folder.done, stages)) or weights_changed(folder, recipe):
        bind_teacher(context)
    for name in stages:
        if folder.done(name):
            continue
        require_earlier(folder, recipe, name)
        for idle in before(name):
            if not idle.applies(recipe) and not folder.done(idle.name):
                _finish(context, idle.name)
        _finish(context, name)
    with ranks.met():
        ranks.told(_NO_MORE)


def _assist(context: Context) -> None:
    """Do for the first process what it calls for, from what it has written by then."""
    stages, ranks = list(STAGES.values()), context.ranks
    while True:
        with ranks.met():
            number = ranks.told(_NO_MORE)
            if number == _NO_MORE:
                return
            stage, part = stages[int(number)], int(ranks.told(0))
            now = replace(context, folder=RunFolder.open(context.folder.path), _equalized={})
            assert stage.assist is not None
            stage.assist(now.about(stage.parts(context.recipe)[part]))


def _finish(context: Context, name: str) -> None:
    """Do a stage and list it as complete."""
    stage, folder, recipe = STAGES[name], context.folder, context.recipe
    context.progress.enter(name)
    folder.begin(name)
    result = joined(_results(context, name)) if stage.applies(recipe) else StageResult()
    folder.finish(name, result.files, result.facts)


def _results(context: Context, name: str) -> dict[Part, StageResult]:
    """Do the parts of a stage, in order or, where there are several, as the run's executor does them."""
    stage = STAGES[name]
    parts, results = stage.parts(context.recipe), {}
    if len(parts) > 1 and stage.apart and not isinstance(context.executor, InOrder):
        with context.progress.stage(f"{name}, targets", total=len(parts)) as bar:
            found = dict(spread(context, name, stage_part, [1] * len(parts), bar))
        return {part: found[index] for index, part in enumerate(parts)}
    for index, part in enumerate(parts):
        if stage.assist is None:
            results[part] = stage.run(context.about(part))
            continue
        with context.ranks.met():
            context.ranks.told(list(STAGES).index(name))
            context.ranks.told(index)
            results[part] = stage.run(context.about(part))
    return results


def stage_part(common: Mapping[str, Any], index: int, _tell: Tell) -> StageResult:
    """Do one part of a stage in the run's folder, whose other parts others do."""
    context, stage = context_of(common, tuple(STAGES.values())), STAGES[common["place"]["stage"]]
    return stage.run(context.about(stage.parts(context.recipe)[index]))


def run_facts(recipe: Recipe, command: str = "") -> dict[str, object]:
    """Return what the manifest records: what reproduces the run, the machine and the versions."""
    return {
        "command": command,
        "recipe_dir": None if recipe.directory is None else str(recipe.directory),
        "environment": environment(),
        "threads": torch.get_num_threads(),
    }
