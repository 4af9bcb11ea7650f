"""A run measured: the float teacher, the fake-quantized student and the exported file, on the same images.

What belongs here: which models meet which images, and layer beside layer. The report that comes of it is `validate`'s;
what the target's own runtime says of the file, `target_check`'s; metrics and the runtime are `dfqkit_export`'s.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from dfqkit.run.answering import Answer, GradingSet, Images, answers_of, grading_sets, subjects_of, written
from dfqkit.run.bits_of_layers import layer_bits
from dfqkit.run.context import Context
from dfqkit.run.export import MODEL, TEACHER
from dfqkit.run.target_check import Account, ask_runtime, kernel_times, kernels_elsewhere
from dfqkit.students.integer_student import watch_integers
from dfqkit.students.naming import tensor_names
from dfqkit.students.nodes import watch
from dfqkit.students.onnx_file import write_float
from dfqkit.students.onnx_nodes import float_layers
from dfqkit_export.backends import DEFAULT, backend_of
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.estimate import estimate_of
from dfqkit_export.measure import latency
from dfqkit_export.measure.activations import layer_outputs, layer_tensors
from dfqkit_export.measure.breakdown import Breakdown
from dfqkit_export.measure.kinds import DROPS, SIZE, TOP1, Metric
from dfqkit_export.measure.metrics import sqnr_db
from dfqkit_export.onnxfile.model import load_onnx
from dfqkit_export.report import LayerRow, layer_rows
from dfqkit_export.report.evidence import Seen, nothing_lost, seen
from dfqkit_export.tasks import Outputs, Task

#: Images of the comparison of layers: enough for a ratio, few enough to hold every activation in memory.
LAYER_IMAGES = 32

_LOG = logging.getLogger(__name__)

_NO_RUNTIME = frozenset({"teacher", "student", "calibrated", "float_student"})


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


def measure(context: Context, shown_as: str) -> Measured:
    """Run every model of a run, its export complete, on every set of images, and time the files."""
    recipe, model = context.recipe, context.file(MODEL)
    sets, subjects = grading_sets(context), subjects_of(context)
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
        as_written=written(context),
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


def _graded(context: Context, sets: list[GradingSet], answers: dict[str, Answer], shown_as: str) -> _Graded:
    """Return every subject on every set, and what the synthetic images tell of real ones."""
    found = _Graded()
    task = context.teacher.task
    with context.progress.stage(shown_as, total=sum(item.count for item in sets)) as bar:
        for item in sets:
            together = answers_of(context, item, answers, bar, shown_as)
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


def estimated_drop(task: Task, outputs: dict[str, Outputs], method: str, found: list[Metric]) -> dict[str, Any]:
    """Return the drop on real images as the outputs on synthetic ones, by subject, tell it.

    A known accuracy in ``found`` only says whether the drop may be told.
    """
    known = next((m.value for m in found if (m.name, m.subject) == (TOP1.name, "teacher")), None)
    both = outputs["teacher"], outputs[DEFAULT.name]
    return estimate_of(task, *both, synthesizer=method, teacher_top1=known)


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
