"""The stages that make students: a smaller float one where a recipe asks for it, then quantized ones.

What belongs here: what `train`, `quantize` and `distill` read, do and write, and how their students are found again.
"""

from __future__ import annotations

from torch import fx

from dfqkit.config.distill import DistillConfig
from dfqkit.config.quant import QuantConfig
from dfqkit.run.context import FLOAT_STUDENT, Checkpoints, Context
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.student import (
    build_student,
    calibrate_student,
    equalized_graph,
    load_student,
    restore,
    save_student,
)
from dfqkit.synthesis.base import Synthesizer
from dfqkit.training.float_student import Shrinker, save_float_student, student_objective
from dfqkit.training.loop import Loop
from dfqkit.training.quantized_student import Distiller, measured_pairs
from dfqkit.training.stream import LiveStream
from dfqkit_export.errors import ArtefactError

__all__ = ["CALIBRATED", "FINAL", "distill", "quantize", "require_trainable", "stored_student", "train"]

#: Files of the deployed student: after calibration, and finished.
CALIBRATED, FINAL = "calibrated.safetensors", "student.safetensors"

#: Saved states of the synthesizer: after the warm-up, and after the game with a float student.
_WARM, _TRAINED = "synthesizer", "synthesizer_after_train"


def schemes_of(context: Context) -> list[QuantConfig]:
    """The schemes of the ensemble, the deployed student's first."""
    config = _section(context)
    partners = config.partners if config else ()
    schemes = [context.scheme, *(context.scheme.model_copy(update={"bits": bits}) for bits in partners)]
    for scheme in schemes:
        scheme.check(context.target)
    return schemes


def stored_student(context: Context, scheme: QuantConfig, name: str) -> fx.GraphModule:
    """The student that a stage of this run left in file ``name``."""
    student = build_student(context.graph, scheme, context.target, context.teacher.image)
    load_student(student, context.folder.path / name, scheme)
    return student


def require_trainable(context: Context) -> None:
    """Refuse, before any compute is spent, what the later stages could not do.

    Raises:
        DfqkitError: the networks cannot be captured or quantized, or have no such layers.
    """
    schemes_of(context)
    graph, config, section = context.teacher_graph, _section(context), context.student_section
    if section is not None:
        student = context.untrained_student()
        student_objective(student, context.teacher, section, context.rng("train"))
        graph = float_graph(student, context.teacher.image)
    if config is not None and config.layers is not None:
        measured_pairs(build_student(graph, context.scheme, context.target, context.teacher.image), config)


def train(context: Context) -> tuple[list[str], dict[str, object]]:
    """Train the smaller float student on a live stream and keep its best state; nothing to do without a section."""
    config = context.student_section
    if config is None:
        return [], {}
    main = _synthesizer(context, _WARM)
    before = main.cost
    student, stream = context.untrained_student(), LiveStream(main, config, context.rng("train augmentation"))
    loop = Shrinker(student, context.teacher, stream, context.batches("held_out"), config, context.rng("train"))
    _play(context, "train", loop)
    student.load_state_dict(loop.best)
    save_float_student(student, context.folder.path / FLOAT_STUDENT)
    context.folder.save_state(_TRAINED, main.state_dict(), {})
    facts: dict[str, object] = _facts(loop) | {
        "cost": main.cost - before,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
    }
    return [FLOAT_STUDENT, f"state/{_TRAINED}.safetensors"], facts


def quantize(context: Context) -> tuple[list[str], dict[str, object]]:
    """Build the ensemble's students, find ranges and correct biases on the calibration set."""
    batches = [images for images, _ in context.bank("calibration").batches(context.recipe.bank.batch, context.device)]
    schemes = schemes_of(context)
    files = []
    with context.progress.stage("quantize", total=len(schemes)) as bar:
        for index, scheme in enumerate(schemes):
            student = build_student(context.graph, scheme, context.target, context.teacher.image)
            # Every member sees the batches in another order and its own half of them once more: another calibration.
            own = batches if index == 0 else [*batches[index % 2 :: 2], *batches[::-1]]
            calibrate_student(student, own, scheme, context.teacher.image)
            files.append(_calibrated_file(index))
            save_student(student, context.folder.path / files[-1])
            bar.advance(1)
    return files, {}


def distill(context: Context) -> tuple[list[str], dict[str, object]]:
    """Play generators against students, keep the deployed student's best state; without a section, keep calibration.

    What is imitated is the float graph that was quantized: the teacher's, or the smaller float student's. What is kept
    is nearest to the teacher in both cases.
    """
    schemes = schemes_of(context)
    students = [stored_student(context, scheme, _calibrated_file(index)) for index, scheme in enumerate(schemes)]
    config = _section(context)
    facts: dict[str, object] = {"kept": "calibration", "judged": [], "curve": [], "cost": 0, "disagreement": None}
    if config is not None:
        main = _synthesizer(context, _WARM if context.student_section is None else _TRAINED)
        before = main.cost
        stream = LiveStream(main, config, context.rng("augmentation"))
        reference = equalized_graph(context.graph, context.scheme)
        distiller = Distiller(students, schemes, reference, stream, context.batches("held_out"), config)
        start_disagreement = distiller.disagreement()
        _play(context, "distill", distiller)
        facts = _facts(distiller) | {
            "cost": main.cost - before,
            "disagreement": {"before": start_disagreement, "after": distiller.disagreement()},
        }
        restore(students[0], distiller.best, context.scheme)
    freeze(students[0])
    save_student(students[0], context.folder.path / FINAL)
    return [FINAL], facts


def _section(context: Context) -> DistillConfig | None:
    return context.recipe.distill  # type: ignore[return-value]


def _synthesizer(context: Context, state: str) -> Synthesizer:
    """The recipe's synthesizer, as the stage before left it in the saved state of that name."""
    made = context.new_synthesizer()
    loaded = context.folder.load_state(state)
    if loaded is None:
        stage = "synthesize" if state == _WARM else "train"
        message = f"The synthesizer's state is missing from '{context.folder.path}'. Run `dfqkit {stage}` again."
        raise ArtefactError(message)
    made.load_state_dict(loaded[0])
    return made


def _play(context: Context, stage: str, loop: Loop[DistillConfig, fx.GraphModule] | Shrinker) -> None:
    """Run a loop to its end, from where an interrupted run left it."""
    saved = Checkpoints(context.folder, stage)
    saved.restore(loop.load_state)
    with context.progress.stage(stage, total=loop.config.steps, start=loop.step) as bar:
        while loop.step < loop.config.steps:
            bar.advance(1, **loop.run_step())
            saved.offer(loop.state)


def _facts(loop: Loop[DistillConfig, fx.GraphModule] | Shrinker) -> dict[str, object]:
    return {"judged": loop.judged, "kept": f"step {loop.kept_step}", "curve": loop.curve}


def _calibrated_file(index: int) -> str:
    """Where the ensemble's member ``index`` lies after calibration; member 0 is the deployed one."""
    return CALIBRATED if index == 0 else f"partner{index}.safetensors"
