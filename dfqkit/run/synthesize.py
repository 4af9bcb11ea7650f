"""The stage that makes images: the synthesizer's warm-up, and that of a separate one for grading.

What belongs here: which sets are drawn from which synthesizer, and what is refused before any compute is spent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dfqkit.run.stage import Plan, Stage, StageResult

if TYPE_CHECKING:
    from torch import Tensor

    from dfqkit.config.recipe import Recipe
    from dfqkit.run.context import Context
    from dfqkit.synthesis.base import Synthesizer


def _run(context: Context) -> StageResult:
    """Run the warm-ups; store the images of both synthesizers."""
    from dfqkit.images import ImageBank
    from dfqkit.run.ladder import judge_of
    from dfqkit.run.playing import WARM, Checkpoints, drawn
    from dfqkit.synthesis.optimizers import under
    from dfqkit.training.stream import frozen

    require_trainable(context)
    sizes = context.recipe.bank
    makers = makers_of(context)
    saved = Checkpoints(context.folder, STAGE.name)
    done = dict.fromkeys(makers, 0)
    curve: list[dict[str, float]] = []

    def put_back(tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        for name, maker in makers.items():
            maker.load_state_dict(under(tensors, f"{name}."))
        done.update(values["done"])
        curve.extend(values["curve"])

    def state() -> tuple[dict[str, Tensor], dict[str, object]]:
        tensors = {f"{name}.{key}": t for name, maker in makers.items() for key, t in maker.state_dict().items()}
        return tensors, {"curve": curve, "done": done}

    saved.restore(put_back)
    total = sum(maker.warmup_rounds for maker in makers.values())
    with context.progress.stage(STAGE.name, total=total, start=sum(done.values())) as bar, frozen(context.opponents):
        for name, maker in makers.items():
            while done[name] < maker.warmup_rounds:
                terms = maker.synthesize(context.opponents)
                done[name] += 1
                if name == "main":
                    curve.append(terms)
                bar.advance(1, **terms)
                saved.offer(state)
    main, files = makers["main"], []
    for made_by, name, count in sets_of(context.recipe):
        draw = main.training_batch if name == "calibration" else makers.get(made_by, main).sample
        if count:
            images = drawn(draw, count, sizes.batch)
            bank = ImageBank.collect(
                context.teacher,
                images,
                f"{(judge_of(context) if name == 'judging' else context.synthesis).method}:{name}",
            )
            files.append(f"images/{name}.safetensors")
            bank.save(context.folder.path / files[-1])
    context.folder.save_state(WARM, main.state_dict(), {})
    every = max(1, len(curve) // 200)
    shown = [{"round": index + 1, **terms} for index, terms in enumerate(curve) if index % every == 0]
    facts = {"curve": shown, "cost": sum(maker.cost for maker in makers.values())}
    return StageResult(files=[*files, f"state/{WARM}.safetensors"], facts=facts)


def makers_of(context: Context) -> dict[str, Synthesizer]:
    """Return the synthesizers of a run: one for training, and one each for what only grades and only judges."""
    from dfqkit.run.ladder import new_judge

    makers = {"main": context.new_synthesizer()}
    if context.recipe.bank.grading:
        makers["grading"] = context.new_synthesizer(grading=True)
    if context.recipe.ladder is not None:
        makers["judging"] = new_judge(context, context.recipe.ladder.images)
    return makers


def sets_of(recipe: Recipe) -> list[tuple[str, str, int]]:
    """Return from which synthesizer of a run which sets of how many images are drawn, in order."""
    bank, judging = recipe.bank, recipe.ladder.images if recipe.ladder else 0
    own = [("main", "calibration", bank.calibration), ("main", "held_out", bank.held_out)]
    return [*own, ("grading", "grading", bank.grading), ("judging", "judging", judging)]


def require_trainable(context: Context) -> None:
    """Refuse, before any compute is spent, what the later stages could not do."""
    from dfqkit.students.capture import float_graph
    from dfqkit.students.onnx_file import float_model
    from dfqkit.students.student import build_student
    from dfqkit.training.float_student import student_objective
    from dfqkit.training.quantized_student import measured_pairs

    _ = context.schemes, context.teacher_file
    config, section, teacher = context.recipe.distill, context.recipe.student, context.teacher
    graph = context.teacher_graph
    if section is not None:
        student = context.untrained_student()
        student_objective(student, teacher, section, context.rng("train"))
        graph = float_graph(student, teacher.image, teacher.task, teacher.names)
        float_model(graph, context.target.opset)
    if config is not None and config.layers is not None:
        measured_pairs(build_student(graph, context.scheme, context.target, teacher.image), config)


def _plan(recipe: Recipe) -> Plan:
    """Return the source with its rounds, and the sets; their bytes, and those of a memory in two checkpoints."""
    bank, config = recipe.bank, recipe.synthesis
    judging = recipe.ladder.images if recipe.ladder else 0
    stored = bank.calibration + bank.held_out + bank.grading + judging
    return Plan(
        text=f"{_source(config)}; stores {bank.calibration} images for calibration, {bank.held_out} held out, "
        f"{bank.grading} for grading{f', {judging} to judge candidates' if judging else ''}",
        size=math.prod(recipe.image.shape) * (stored + 2 * _remembered(config, recipe)),
    )


def _remembered(config: Any, recipe: Recipe) -> int:
    """Return how many images a source keeps, at most; one that makes sets keeps no more than are made."""
    from dfqkit.config.pools import PoolConfig  # pydantic; not needed to check or compare files

    if config.method == "mixture":
        return sum(_remembered(source, recipe) for source in config.active)
    memory: int = getattr(config, "memory", 0)
    if not isinstance(config, PoolConfig):
        return memory
    rounds = sum(section.rounds for section in (recipe.student, recipe.distill) if section)
    wanted = max(recipe.bank.calibration, recipe.bank.training or 0)
    return min(memory, wanted + (1 + rounds) * config.batch)


def _source(config: Any) -> str:
    """Return a source in one phrase; a mixture's parts with their shares."""
    if config.method == "mixture":
        parts = zip(config.active, config.shares, strict=True)
        return ", ".join(f"{100 * share:.3g} % {_source(source)}" for source, share in parts)
    fields = config.model_dump()
    makes_a_set = "game_steps" in fields  # where `warmup` is a learning rate's
    rounds = {"steps": "steps for every"} if makes_a_set else {"warmup": "warm-up rounds of"}
    known = [f"{fields[key]} {words}" for key, words in {**rounds, "batch": "images"}.items() if key in fields]
    return f"{config.method} ({' '.join(known)})" if known else str(config.method)


STAGE = Stage(name="synthesize", help="make the synthetic images of a recipe", run=_run, plan=_plan)
