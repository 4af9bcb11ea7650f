"""The models of a run answering images that grade: in this process, or ranges of images wherever parts are done.

What belongs here: which models there are, which sets, and their answers in order. What is made of those is `measuring`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from dfqkit.config.files import find_file
from dfqkit.config.recipe import Recipe
from dfqkit.progress import Bar
from dfqkit.run.context import Context
from dfqkit.run.distill import FINAL
from dfqkit.run.export import MODEL, TEACHER
from dfqkit.run.parts import InOrder, Tell
from dfqkit.run.quantize import calibrated_file
from dfqkit.run.shared import context_of, spread
from dfqkit.run.target_check import own_runtime
from dfqkit.students.freezing import freeze
from dfqkit.students.integer_student import IntegerStudent
from dfqkit.teacher.load import Teacher
from dfqkit_export.backends import DEFAULT
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes
from dfqkit_export.images import TORCHVISION
from dfqkit_export.images.label_kinds import is_kind, resolved
from dfqkit_export.images.labelled import LabelledImages, load_images
from dfqkit_export.tasks import Outputs
from dfqkit_export.tasks.answering import answer

#: Images of a range, at least: as many batches as hold them, so that every batch is that of one process.
RANGE = 1024

Images = NDArray[np.float32]
Answer = Callable[[Images], Outputs]
#: The context whose sets and models this process has ready, and these.
_READY: list[Any] = []


@dataclass(frozen=True, kw_only=True)
class GradingSet:
    """Images that grade, in batches, their labels where there are any, and the whole set of those that are real."""

    name: str
    count: int
    batches: Callable[[], Iterator[Images]]
    labels: NDArray[Any] | None
    real: LabelledImages | None = None


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """The models that answer, by the names that metrics give them."""

    student: fx.GraphModule
    teacher: OrtSession
    quantized: OrtSession
    answers: dict[str, Answer]


def real_images(recipe: Recipe, *, limit: int | None = None) -> LabelledImages | None:
    """Return the labelled images that a recipe names, or None; no more than ``limit``, to see whether they fit."""
    section = recipe.validation
    if (source := section.data) is None:
        return None
    if is_kind(source):
        source = resolved(source, lambda name: find_file(name, recipe.directory))
    elif not source.startswith(TORCHVISION):
        source = str(find_file(source, recipe.directory))
    least = min((bound for bound in (limit, section.limit) if bound is not None), default=None)
    return load_images(source, recipe.image.spec(), resize=section.resize, crop=section.crop, limit=least)


def require_labels(teacher: Teacher, images: LabelledImages | None) -> None:
    """Refuse labels that do not fit the teacher's task or its classes, by a few of the images.

    Raises:
        ArtefactError: Says what was found and what is needed.
    """
    if images is None or images.labels is None:
        return
    task = teacher.task
    if wrong := task.wrong_classes(images.classes):
        raise ArtefactError(wrong)
    few = next(images.batches(teacher.image, len(images)))
    answers = teacher.answers(torch.from_numpy(few).to(teacher.device))
    outputs = {name: value.float().cpu().numpy() for name, value in answers.items()}
    task.metrics(None, outputs, images.labels, subject="teacher", data=images.name)


def subjects_of(context: Context) -> Subjects:
    """Return the models of a run whose export is complete."""
    model, student = context.file(MODEL), context.stored_student(context.scheme, FINAL)
    calibrated = context.stored_student(context.scheme, calibrated_file())  # the bar that distillation must clear
    freeze(calibrated)
    quantized = OrtSession(model, optimized=not written(context))
    teacher = OrtSession(context.file(TEACHER))
    task, in_torch = context.teacher.task, partial(_torch_outputs, context)
    ours, bar = (each if written(context) else IntegerStudent(each).run for each in (student, calibrated))
    answers: dict[str, Answer] = {
        "teacher": partial(answer, teacher, task),
        "student": partial(in_torch, ours),
        DEFAULT.name: partial(answer, quantized, task),
        "calibrated": partial(in_torch, bar),
    }
    if context.recipe.student:  # then the network that was quantized is not the teacher
        answers["float_student"] = partial(in_torch, context.graph)
    own = own_runtime(model, context.target)
    if own is not None:
        answers[context.target.backend] = partial(answer, own, task)
    return Subjects(student=student, teacher=teacher, quantized=quantized, answers=answers)


def written(context: Context) -> bool:
    """Return whether the file must run without ONNX Runtime's optimizer, in float, as the student does then.

    It turns float biases into integers, which the runtimes that ask for float ones do not.
    """
    return context.target.bias == "float"


def answers_of(
    context: Context, item: GradingSet, answers: Mapping[str, Answer], bar: Bar, stage: str
) -> dict[str, Outputs]:
    """Return what every model answers to all images of a set, in their order, by its name."""
    batch = context.recipe.bank.batch
    step = -(-RANGE // batch) * batch
    ranges = [[start, min(start + step, item.count)] for start in range(0, item.count, step)]
    if item.real is None or isinstance(context.executor, InOrder) or len(ranges) == 1:
        return _answered(item.batches(), answers, bar.advance)
    sizes, common = [stop - start for start, stop in ranges], dict[str, Any](ranges=ranges)
    files = dict(spread(context, stage, range_part, sizes, bar, **common))
    return _joined([_read(Path(files[index]), answers) for index in range(len(ranges))])


def range_part(common: Mapping[str, Any], index: int, _tell: Tell) -> str:
    """Have all models answer one range of the labelled images; return the file of the answers."""
    context, (start, stop) = context_of(common), common["ranges"][index]
    if not _READY or _READY[0] is not context:
        _READY[:] = [context, grading_sets(context)[0].real, subjects_of(context).answers]
    _, real, answers = _READY
    batches = replace(real, images=real.images[start:stop]).batches(context.teacher.image, context.recipe.bank.batch)
    found = _answered(batches, answers, lambda _: None)
    path, stored = context.folder.path / "state" / f"answers.{context.part.name}.{index}.npz", io.BytesIO()
    arrays: dict[str, Any] = {f"{name}/{key}": each for name, given in found.items() for key, each in given.items()}
    np.savez(stored, **arrays)
    write_bytes(path, stored.getvalue())
    return str(path)


def _read(path: Path, names: Iterable[str]) -> dict[str, Outputs]:
    """Return the answers of a range by the models' names, and remove their file."""
    with np.load(path, allow_pickle=False) as stored:
        found = {tuple(key.split("/", 1)): stored[key] for key in stored.files}
    path.unlink()
    return {name: {key: each for (whose, key), each in found.items() if whose == name} for name in names}


def _answered(
    batches: Iterable[Images], answers: Mapping[str, Answer], advance: Callable[[int], None]
) -> dict[str, Outputs]:
    parts = []
    for batch in batches:
        parts.append({name: run(batch) for name, run in answers.items()})
        advance(len(batch))
    return _joined(parts)


def _joined(parts: list[dict[str, Outputs]]) -> dict[str, Outputs]:
    return {
        name: {key: np.concatenate([part[name][key] for part in parts]) for key in given}
        for name, given in parts[0].items()
    }


def grading_sets(context: Context) -> list[GradingSet]:
    """Real images where there are any, and the images of the synthesizer that trained nothing."""
    size, spec = context.recipe.bank.batch, context.teacher.image
    sets = []
    real = real_images(context.recipe)
    if real is not None:
        if wrong := context.teacher.task.wrong_classes(real.classes):
            raise ArtefactError(wrong)
        batches = partial(real.batches, spec, size)
        sets.append(
            GradingSet(name=f"real:{real.name}", count=len(real), batches=batches, labels=real.labels, real=real)
        )
    if not context.recipe.bank.grading:
        return sets
    bank = context.bank("grading")
    name = f"synthetic:{bank.source}"
    made = GradingSet(
        name=name, count=len(bank), batches=lambda: (x.numpy() for x, _ in bank.batches(size)), labels=None
    )
    return [*sets, made]


def _torch_outputs(context: Context, model: Callable[[Tensor], Any], images: Images) -> Outputs:
    with torch.no_grad():
        outputs = context.teacher.torch_task.named(model(torch.from_numpy(images).to(context.device)))
    return {name: value.float().cpu().numpy() for name, value in outputs.items()}
