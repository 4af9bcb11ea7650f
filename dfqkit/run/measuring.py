"""A run measured: the float teacher, the fake-quantized student and the exported file, on the same images.

What belongs here: which models meet which images, and layer beside layer. The report that comes of it is `validate`'s;
what the target's own runtime says of the file, `target_check`'s; metrics and the runtime are `dfqkit_export`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from dfqkit.config.files import find_file
from dfqkit.config.recipe import Recipe
from dfqkit.run.bits_of_layers import layer_bits
from dfqkit.run.context import Context
from dfqkit.run.distill import FINAL
from dfqkit.run.export import MODEL, TEACHER
from dfqkit.run.quantize import calibrated_file
from dfqkit.run.target_check import Account, ask_runtime, kernel_times, kernels_elsewhere, own_runtime
from dfqkit.students.freezing import freeze
from dfqkit.students.integer_student import IntegerStudent, watch_integers
from dfqkit.students.naming import tensor_names
from dfqkit.students.nodes import watch
from dfqkit.students.onnx_file import write_float
from dfqkit.students.onnx_nodes import float_layers
from dfqkit.teacher.load import Teacher
from dfqkit_export.backends import DEFAULT, backend_of
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.errors import ArtefactError
from dfqkit_export.estimate import estimate_of
from dfqkit_export.images import TORCHVISION
from dfqkit_export.images.label_kinds import is_kind, resolved
from dfqkit_export.images.labelled import LabelledImages, load_images
from dfqkit_export.measure import latency
from dfqkit_export.measure.activations import layer_outputs, layer_tensors
from dfqkit_export.measure.breakdown import Breakdown
from dfqkit_export.measure.kinds import DROPS, SIZE, TOP1, Metric
from dfqkit_export.measure.metrics import sqnr_db
from dfqkit_export.onnxfile.model import load_onnx
from dfqkit_export.report import LayerRow, layer_rows
from dfqkit_export.report.evidence import Seen, nothing_lost, seen
from dfqkit_export.tasks import Outputs, Task
from dfqkit_export.tasks.answering import answer

#: Images of the comparison of layers: enough for a ratio, few enough to hold every activation in memory.
LAYER_IMAGES = 32

_LOG = logging.getLogger(__name__)

Images = NDArray[np.float32]
Answer = Callable[[Images], Outputs]
_NO_RUNTIME = frozenset({"teacher", "student", "calibrated", "float_student"})


@dataclass(frozen=True, kw_only=True)
class GradingSet:
    """Images that grade, in batches, and their labels where there are any."""

    name: str
    count: int
    batches: Callable[[], Iterator[Images]]
    labels: NDArray[Any] | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of a run.

    Attributes:
        account: What the target's runtime, or one of its family, said of the file.
        labelled: Whether any images have labels.
        estimate: The drop on real images as the synthetic ones tell it (`estimate_of`), where they do.
        drops: Of each runtime, on labelled images, from the network that was quantized: what is judged.
        seen: What images without labels show of each runtime beside that network.
        doubts: Why labelled images tell nothing, a sentence each.
        breakdowns: What a metric of each runtime is made of.
        kept: Why tensors of the student stay in float, by name: what was measured, and too coarse an input.
        floats: The same of those that rules leave there, and of the layers that read them.
    """

    metrics: list[Metric]
    layers: tuple[LayerRow, ...]
    account: Account
    labelled: bool
    timing: latency.Latency | None
    estimate: dict[str, Any]
    drops: list[Metric]
    seen: list[Seen]
    doubts: list[str]
    breakdowns: list[Breakdown]
    kept: dict[str, str]
    floats: dict[str, str]

    @property
    def in_float(self) -> dict[str, str]:
        """Why tensors and layers stay in float, by name, whoever left them there."""
        return self.kept | self.floats

    @property
    def as_placed(self) -> bool:
        """Whether no layer runs in float but those that were left there; without layers nobody can say."""
        left = self.in_float
        return bool(self.layers) and all(row.precision == "int8" or row.name in left for row in self.layers)


@dataclass(kw_only=True)
class _Graded:
    """What the sets of images gave; see `Measured`."""

    metrics: list[Metric] = field(default_factory=list)
    estimate: dict[str, Any] = field(default_factory=dict)
    drops: list[Metric] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    breakdowns: list[Breakdown] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Subjects:
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


def measure(context: Context, shown_as: str) -> Measured:
    """Run every model of a run, its export complete, on every set of images, and time the files."""
    recipe, model = context.recipe, context.file(MODEL)
    sets, subjects = _grading_sets(context), _subjects(context)
    found = (graded := _graded(context, sets, subjects.answers, shown_as)).metrics
    first, account = next(sets[0].batches()), ask_runtime(model, context.target)
    portable, tables = kernels_elsewhere(model, recipe.validation.prove, first, sets[0].name, context.teacher.task)
    timing, repeats = None, recipe.validation.latency_repeats
    if repeats and backend_of(context.target) is DEFAULT:
        sessions = {"teacher": subjects.teacher, DEFAULT.name: subjects.quantized}
        timing = latency.measure_latency(sessions, first[:1], repeats=repeats, reference="teacher")
    found += [*_sizes(context), *account.metrics(), *portable]
    found += timing.metrics(data="1x" + "x".join(map(str, recipe.image.shape))) if timing else []
    rows = compare_layers(
        subjects.student,
        model,
        context.file(TEACHER),
        first[:LAYER_IMAGES],
        as_written=_as_written(context),
        reference=context.reference(context.scheme) if context.scheme.rescales or recipe.student else None,
    )
    left = subjects.student.meta["kept"] | subjects.student.meta["floats"]
    return Measured(
        metrics=found,
        layers=account.tell(rows, kernel_times(model, first[:1], repeats if timing else 0)),
        account=account,
        labelled=any(item.labels is not None for item in sets),
        timing=timing,
        estimate=graded.estimate,
        drops=graded.drops,
        seen=graded.seen,
        breakdowns=[*graded.breakdowns, *tables, *layer_bits(subjects.student)],
        doubts=list(dict.fromkeys(graded.doubts)),
        kept=subjects.student.meta["kept"],
        floats=float_layers(subjects.student, left) | subjects.student.meta["floats"],
    )


def _subjects(context: Context) -> _Subjects:
    model, student = context.file(MODEL), context.stored_student(context.scheme, FINAL)
    calibrated = context.stored_student(context.scheme, calibrated_file())  # the bar that distillation must clear
    freeze(calibrated)
    quantized = OrtSession(model, optimized=not _as_written(context))
    teacher = OrtSession(context.file(TEACHER))
    task, in_torch = context.teacher.task, partial(_torch_outputs, context)
    ours, bar = (each if _as_written(context) else IntegerStudent(each).run for each in (student, calibrated))
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
    return _Subjects(student=student, teacher=teacher, quantized=quantized, answers=answers)


def _as_written(context: Context) -> bool:
    """Return whether the file must run without ONNX Runtime's optimizer, in float, as the student does then.

    It turns float biases into integers, which the runtimes that ask for float ones do not.
    """
    return context.target.bias == "float"


def _graded(context: Context, sets: list[GradingSet], answers: dict[str, Answer], shown_as: str) -> _Graded:
    """Return every subject on every set, and what the synthetic images tell of real ones."""
    found = _Graded()
    task = context.teacher.task
    with context.progress.stage(shown_as, total=sum(item.count for item in sets)) as bar:
        for item in sets:
            parts: dict[str, list[Outputs]] = {name: [] for name in answers}
            for batch in item.batches():
                for name, run in answers.items():
                    parts[name].append(run(batch))
                bar.advance(len(batch))
            together = {name: _joined(given) for name, given in parts.items()}
            found.metrics += compare(task, together, item)
            _judged(found, context, together, item)
            # The errors of another network are not those of quantization.
            if item.name.startswith("synthetic:") and not context.recipe.student:
                found.estimate = estimated_drop(task, together, context.synthesis.method, found.metrics)
    return found


def _judged(found: _Graded, context: Context, outputs: dict[str, Outputs], item: GradingSet) -> None:
    """Add what each runtime shows beside the float network that was quantized."""
    teacher, task = context.teacher, context.teacher.task
    reference = outputs.get("float_student", outputs["teacher"])
    for subject in (name for name in outputs if name not in _NO_RUNTIME):
        parts = task.breakdown(outputs["teacher"], outputs[subject], subject=subject, data=item.name)
        found.breakdowns += [] if parts is None else [parts]
        if item.labels is None:
            found.seen.append(seen(task, teacher.image, reference, outputs[subject], data=item.name))
        else:
            labelled = task.metrics(reference, outputs[subject], item.labels, subject=subject, data=item.name)
            drops = [metric for metric in labelled if metric.name in DROPS]
            found.drops += drops
            found.doubts += [] if drops else [nothing_lost(item.name)]


def compare(task: Task, outputs: dict[str, Outputs], grading: GradingSet) -> list[Metric]:
    """Return every metric of every subject, ``teacher`` among them, on one set of images."""
    found: list[Metric] = []
    labels, data = grading.labels, grading.name
    for subject, given in outputs.items():
        reference = None if subject == "teacher" else outputs["teacher"]
        found += task.metrics(reference, given, labels, subject=subject, data=data)
    for subject in (name for name in outputs if name not in _NO_RUNTIME):
        found += task.beside(outputs["student"], outputs[subject], labels, subject=subject, data=data)
    return found


def _joined(parts: list[Outputs]) -> Outputs:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def estimated_drop(task: Task, outputs: dict[str, Outputs], method: str, found: list[Metric]) -> dict[str, Any]:
    """Return the drop on real images as the outputs on synthetic ones, by subject, tell it.

    A known accuracy in ``found`` only says whether the drop may be told.
    """
    known = next((m.value for m in found if (m.name, m.subject) == (TOP1.name, "teacher")), None)
    both = outputs["teacher"], outputs[DEFAULT.name]
    return estimate_of(task, *both, synthesizer=method, teacher_top1=known)


def _grading_sets(context: Context) -> list[GradingSet]:
    """Real images where there are any, and the images of the synthesizer that trained nothing."""
    size, spec = context.recipe.bank.batch, context.teacher.image
    sets = []
    real = real_images(context.recipe)
    if real is not None:
        if wrong := context.teacher.task.wrong_classes(real.classes):
            raise ArtefactError(wrong)
        batches = partial(real.batches, spec, size)
        sets.append(GradingSet(name=f"real:{real.name}", count=len(real), batches=batches, labels=real.labels))
    if not context.recipe.bank.grading:
        return sets
    bank = context.bank("grading")

    def made() -> Iterator[Images]:
        return (images.numpy() for images, _ in bank.batches(size))

    sets.append(GradingSet(name=f"synthetic:{bank.source}", count=len(bank), batches=made, labels=None))
    return sets


def _torch_outputs(context: Context, model: Callable[[Tensor], Any], images: Images) -> Outputs:
    with torch.no_grad():
        outputs = context.teacher.torch_task.named(model(torch.from_numpy(images).to(context.device)))
    return {name: value.float().cpu().numpy() for name, value in outputs.items()}


def _sizes(context: Context) -> list[Metric]:
    files = {"teacher": context.file(TEACHER), DEFAULT.name: context.file(MODEL)}
    return [
        SIZE.metric(subject=subject, data="file", value=float(file.stat().st_size), n=1)
        for subject, file in files.items()
    ]


def compare_layers(
    student: fx.GraphModule,
    model: Path,
    teacher: Path,
    images: Images,
    *,
    as_written: bool = False,
    reference: fx.GraphModule | None = None,
) -> tuple[LayerRow, ...]:
    """Per layer: the student against the teacher, and the runtime against the student, both in dB.

    A layer inside of what is one operator in torch (the first product of an attention) has no value in the student; the
    file, run as it is written, stands in.

    Args:
        student: Frozen.
        model: The file that was written from it.
        teacher: That of the float teacher.
        images: (N, C, H, W), normalised.
        as_written: Run the file without ONNX Runtime's optimizations, and the student in float.
        reference: Takes the place of the teacher where its features are scaled otherwise (`equalized_graph`).
    """
    if reference is not None:
        with TemporaryDirectory(prefix="dfqkit-") as folder:
            teacher = Path(folder) / "reference.onnx"
            write_float(reference, teacher, metadata={})
            real = layer_outputs(teacher, images)
    else:
        real = layer_outputs(teacher, images)
    runtime = layer_outputs(model, images, optimized=not as_written)
    ours = student_layers(student, model, torch.from_numpy(images), as_written=as_written)
    if not ours.keys() >= runtime.keys():
        ours = layer_outputs(model, images, optimized=False) | ours
    return layer_rows(
        realised_precision(model).layers,
        student_db={name: _layer_db(name, real[name], ours[name]) for name in ours if name in real},
        runtime_db={name: _layer_db(name, ours[name], runtime[name]) for name in ours},
    )


def _layer_db(layer: str, reference: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Return the SQNR of a layer's outputs of two models; equal infinities (masks) are no signal and no noise."""
    if reference.shape == other.shape:
        masked = np.isinf(reference) & (reference == other)
        return sqnr_db(np.where(masked, 0, reference), np.where(masked, 0, other))
    _LOG.warning(
        "Layer '%s' has outputs of shape %s and %s in the two models that are compared, so that it has no SQNR. "
        "Please report it with the model.", layer, reference.shape, other.shape,
    )  # fmt: skip
    return None


def student_layers(
    student: fx.GraphModule, model: Path, images: Tensor, *, as_written: bool = False
) -> dict[str, NDArray[np.float32]]:
    """Return what the student has in place of each layer's output in its file, which the file's names tell."""
    nodes = {tensor: node for node, tensor in tensor_names(student).items()}
    wanted = {layer: nodes[tensor] for layer, tensor in layer_tensors(load_onnx(model)).items() if tensor in nodes}
    values: dict[fx.Node, NDArray[np.float32]] = {}

    def see(node: fx.Node, value: Tensor) -> None:
        if node in kept:
            values[node] = value.float().cpu().numpy()

    kept = set(wanted.values())
    (watch if as_written else watch_integers)(student, images, see)
    return {layer: values[node] for layer, node in wanted.items()}
