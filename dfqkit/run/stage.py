"""The stages of a run, in order, each from the files of the one before to files of its own.

What belongs here: what a stage reads, does and writes; those that make students are `training`, the measuring is
`proof`. What all of them need is `context`, the folder `folder`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dfqkit.config.recipe import Recipe, parse_recipe
from dfqkit.images import ImageBank
from dfqkit.progress import Progress
from dfqkit.run.context import Checkpoints, Context, resolve_device, teacher_of
from dfqkit.run.folder import RunFolder
from dfqkit.run.plan import plan
from dfqkit.run.provenance import warnings_of
from dfqkit.run.training import FINAL, distill, quantize, require_trainable, stored_student, train
from dfqkit.students.onnx_file import write_float, write_qdq
from dfqkit.synthesis.optimizers import under
from dfqkit.teacher.load import Teacher
from dfqkit.training.stream import frozen
from dfqkit_export.env import environment
from dfqkit_export.errors import ArtefactError

#: Room for everything that does not grow with the number of images: students, optimizers, ONNX files, reports.
_MODEL_SPACE = 256 * 2**20

STAGES = ("synthesize", "train", "quantize", "distill", "export", "validate")


def execute(
    folder: RunFolder,
    recipe: Recipe,
    stages: Sequence[str],
    *,
    device: str,
    progress: Progress,
    teacher: Teacher | None = None,
) -> None:
    """Run stages of a recipe in order, skipping what is complete.

    Args:
        folder: the run's folder, made for this recipe.
        recipe: what to do.
        stages: names of `STAGES`.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: where progress is shown.
        teacher: a teacher already loaded; otherwise the recipe's is.

    Raises:
        ArtefactError: when a stage before the first of ``stages`` is missing.
    """
    context = Context(folder=folder, recipe=recipe, device=resolve_device(device), progress=progress, given=teacher)
    folder.require_space(_space(recipe))
    for stage in stages:
        if folder.done(stage):
            continue
        require_earlier(folder, stage)
        folder.begin(stage)
        files, facts = _RUNNERS[stage](context)
        folder.finish(stage, files, facts)


def require_earlier(folder: RunFolder, stage: str) -> None:
    """Refuse a stage whose predecessors are not complete.

    Raises:
        ArtefactError: names the first one that is missing, and the commands that do it.
    """
    for before in STAGES[: STAGES.index(stage)]:
        if not folder.done(before):
            message = (
                f"Stage '{stage}' of '{folder.path}' needs '{before}', which is not complete. Run `dfqkit {before} "
                f"{folder.path}` first, or all that is left with `dfqkit run --resume {folder.path}`."
            )
            raise ArtefactError(message)


def with_idle(folder: RunFolder, recipe: Recipe, stages: Sequence[str]) -> list[str]:
    """Put the stage that has nothing to do for this recipe before those that need it, so that nobody has to ask."""
    idle = "train"
    due = recipe.student is None and stages[0] == STAGES[STAGES.index(idle) + 1] and not folder.done(idle)
    return [idle, *stages] if due else list(stages)


def _space(recipe: Recipe) -> int:
    """Bytes that a run takes at the most: stored images, the memory in a checkpoint and its successor, and models."""
    pixels = math.prod(recipe.image.shape)
    stored = recipe.bank.calibration + recipe.bank.held_out + recipe.bank.grading
    return pixels * (stored + 2 * getattr(recipe.synthesis, "memory", 0)) + _MODEL_SPACE


def recipe_of(folder: RunFolder) -> Recipe:
    """The recipe that a run folder was made for."""
    directory = folder.run_facts().get("recipe_dir")
    recipe = parse_recipe(folder.recipe_text(), str(folder.path / "recipe.yaml"))
    return recipe.found_in(Path(str(directory)) if directory else None)


def run_facts(recipe: Recipe, command: str = "") -> dict[str, object]:
    """What the manifest records: what reproduces the run, the machine and the versions."""
    return {
        "command": command,
        "recipe_dir": None if recipe.directory is None else str(recipe.directory),
        "environment": environment(),
        "threads": torch.get_num_threads(),
    }


def _synthesize(context: Context) -> tuple[list[str], dict[str, object]]:
    """Run the synthesizer's warm-up, and that of a separate one for grading; store the images of both."""
    require_trainable(context)
    sizes = context.recipe.bank
    makers = {"main": context.new_synthesizer()}
    if sizes.grading:
        makers["grading"] = context.new_synthesizer(grading=True)
    saved = Checkpoints(context.folder, "synthesize")
    done = dict.fromkeys(makers, 0)
    curve: list[dict[str, float]] = []

    def put_back(tensors: dict[str, Tensor], values: dict[str, object]) -> None:
        for name, maker in makers.items():
            maker.load_state_dict(under(tensors, f"{name}."))
        done.update(values["done"])  # type: ignore[call-overload]
        curve.extend(values["curve"])  # type: ignore[arg-type]

    def state() -> tuple[dict[str, Tensor], dict[str, object]]:
        tensors = {f"{name}.{key}": t for name, maker in makers.items() for key, t in maker.state_dict().items()}
        return tensors, {"curve": curve, "done": done}

    saved.restore(put_back)
    total = sum(maker.warmup_rounds for maker in makers.values())
    with context.progress.stage("synthesize", total=total, start=sum(done.values())) as bar, frozen(context.opponents):
        for name, maker in makers.items():
            while done[name] < maker.warmup_rounds:
                terms = maker.synthesize(context.opponents)
                done[name] += 1
                if name == "main":
                    curve.append(terms)
                bar.advance(1, **terms)
                saved.offer(state)
    source = context.recipe.synthesis.method  # type: ignore[attr-defined]
    main, files = makers["main"], []
    for name, draw, count in (
        ("calibration", main.training_batch, sizes.calibration),
        ("held_out", main.sample, sizes.held_out),
        ("grading", makers.get("grading", main).sample, sizes.grading),
    ):
        if count:
            bank = ImageBank.collect(context.teacher, _drawn(draw, count, sizes.batch), f"{source}:{name}")
            files.append(f"images/{name}.safetensors")
            bank.save(context.folder.path / files[-1])
    context.folder.save_state("synthesizer", main.state_dict(), {})
    facts = {"curve": _thinned(curve), "cost": sum(maker.cost for maker in makers.values())}
    return [*files, "state/synthesizer.safetensors"], facts


def _drawn(draw: Callable[[int], Tensor], count: int, batch: int) -> Iterator[Tensor]:
    for start in range(0, count, batch):
        yield draw(min(batch, count - start))


def _thinned(curve: Sequence[dict[str, float]], points: int = 200) -> list[dict[str, float]]:
    stride = max(1, len(curve) // points)
    return [{"round": index + 1, **terms} for index, terms in enumerate(curve) if index % stride == 0]


def _export(context: Context) -> tuple[list[str], dict[str, object]]:
    """Write the student and the teacher as ONNX."""
    recipe, path = context.recipe, context.folder.path
    versions = {f"dfqkit.version.{k}": str(v) for k, v in environment()["packages"].items()}
    metadata = {
        "dfqkit.recipe": recipe.name,
        "dfqkit.recipe_sha256": recipe.digest(),
        "dfqkit.seed": str(recipe.seed),
        "dfqkit.synthesizer": recipe.synthesis.method,  # type: ignore[attr-defined]
        "dfqkit.teacher": context.teacher.name,
        "dfqkit.teacher_sha256": context.teacher.sha256,
        "dfqkit.target": recipe.target,
        "dfqkit.quant": json.dumps(context.scheme.model_dump(mode="json"), sort_keys=True),
        "dfqkit.image": json.dumps(context.teacher.image.to_dict(), sort_keys=True),
        **versions,
    }
    if warnings := warnings_of(recipe):
        metadata["dfqkit.warnings"] = json.dumps(warnings)
    if context.student_section is not None:
        metadata["dfqkit.student"] = context.student_section.factory
    with context.progress.stage("export", total=2) as bar:
        write_qdq(
            stored_student(context, context.scheme, FINAL), context.target, path / "model.onnx", metadata=metadata
        )
        bar.advance(1)
        write_float(context.teacher_graph, path / "teacher.onnx", metadata=metadata, opset=context.target.opset)
        bar.advance(1)
    return ["model.onnx", "teacher.onnx"], {}


def _validate(context: Context) -> tuple[list[str], dict[str, object]]:
    """Measure the file, and choose the images by which it is checked later.

    They are chosen here and not at the export, because that is where the images which only judge are used.
    """
    from dfqkit.run.sentinel import write_run_sentinel
    from dfqkit.run.validate import prove

    return [*prove(context), *write_run_sentinel(context)], {}


_RUNNERS: dict[str, Callable[[Context], tuple[list[str], dict[str, object]]]] = {
    "synthesize": _synthesize,
    "train": train,
    "quantize": quantize,
    "distill": distill,
    "export": _export,
    "validate": _validate,
}


__all__ = [
    "STAGES",
    "execute",
    "plan",
    "recipe_of",
    "require_earlier",
    "resolve_device",
    "run_facts",
    "teacher_of",
    "with_idle",
]
