"""The proof: the float teacher, the fake-quantized student and the exported file, on the same images.

What belongs here: which models meet which images, and the report that comes of it. Layers are compared in `layers`,
images shown in `sheets`, `provenance` says what stands beside the numbers; metrics, the runtime and the renderings are
`dfqkit_export`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dfqkit.config.recipe import Recipe, find_file
from dfqkit.images import ImageBank
from dfqkit.run.layers import LAYER_IMAGES, compare_layers
from dfqkit.run.provenance import provenance, selection, synthesis, warnings_of
from dfqkit.run.sheets import contact_sheets
from dfqkit.run.target_check import ask_runtime, own_runtime
from dfqkit.students.freezing import freeze
from dfqkit.students.student import equalized_graph
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.estimate import estimate_drop
from dfqkit_export.files import write_bytes
from dfqkit_export.images.labelled import LabelledImages, load_images
from dfqkit_export.measure import latency, metrics
from dfqkit_export.measure.kinds import LOGIT_SQNR_DB, SIZE, STUDENT_AGREEMENT, STUDENT_TOP1_GAP, TOP1, Metric
from dfqkit_export.report import Floor, Report, check_floors
from dfqkit_export.report.page import render_html

if TYPE_CHECKING:
    from dfqkit.run.context import Context

Images = NDArray[np.float32]
_NO_RUNTIME = frozenset({"teacher", "student", "calibrated", "float_student"})


@dataclass(frozen=True, kw_only=True)
class GradingSet:
    """Images that grade, in batches, and their labels where there are any."""

    name: str
    count: int
    batches: Callable[[], Iterator[Images]]
    labels: NDArray[np.int64] | None


def real_images(recipe: Recipe, *, limit: int | None = None) -> LabelledImages | None:
    """The labelled images that a recipe names, or None.

    Args:
        recipe: names them.
        limit: read fewer than the recipe says, to see whether they are there and fit.

    Raises:
        RecipeError: when the file is missing; says where it was looked for.
        ArtefactError: when it does not hold such images.
    """
    section = recipe.validation
    if section.data is None:
        return None
    source: str | Path = section.data
    if not str(source).startswith("torchvision:"):
        source = find_file(str(source), recipe.directory)
    least = min((bound for bound in (limit, section.limit) if bound is not None), default=None)
    return load_images(source, recipe.image.spec(), resize=section.resize, crop=section.crop, limit=least)


def prove(context: Context) -> list[str]:
    """Measure everything, write ``report.json`` and ``report.html``; returns the names of both."""
    from dfqkit.run.training import CALIBRATED, FINAL, stored_student

    recipe, path = context.recipe, context.folder.path
    student = stored_student(context, context.scheme, FINAL)
    calibrated = stored_student(context, context.scheme, CALIBRATED)  # the bar that distillation must clear
    freeze(calibrated)
    smaller = context.student_section is not None  # then the network that was quantized is not the teacher
    sets = _grading_sets(context)
    # ONNX Runtime's optimizer turns float biases into integers, which the runtimes that ask for float ones do not.
    as_written = context.target.bias == "float"
    quantized = OrtSession(path / "model.onnx", optimized=not as_written)
    teacher = OrtSession(path / "teacher.onnx")
    answers: dict[str, Callable[[Images], NDArray[Any]]] = {
        "teacher": teacher.run,
        "student": partial(_torch_logits, student, device=context.device),
        "onnxruntime": quantized.run,
        "calibrated": partial(_torch_logits, calibrated, device=context.device),
    }
    if smaller:
        answers["float_student"] = partial(_torch_logits, context.graph, device=context.device)
    own = own_runtime(path / "model.onnx", context.target)
    if own is not None:
        answers[context.target.runtime] = own.run
    found: list[Metric] = []
    estimated: dict[str, Any] = {}
    with context.progress.stage("validate", total=sum(item.count for item in sets)) as bar:
        for item in sets:
            logits: dict[str, list[NDArray[Any]]] = {name: [] for name in answers}
            for batch in item.batches():
                for name, answer in answers.items():
                    logits[name].append(answer(batch))
                bar.advance(len(batch))
            together = {name: np.concatenate(parts) for name, parts in logits.items()}
            found += compare(together, item)
            # The errors of another network are not those of quantization.
            if item.name.startswith("synthetic:") and not smaller:
                estimated = _estimate(together, recipe, found)
    first = next(sets[0].batches())
    account = ask_runtime(path / "model.onnx", context.target)
    found += [*_sizes(path), *account.metrics()]
    timing = None
    if context.target.runtime == "onnxruntime":
        timing = _latency(recipe, teacher, quantized, first[:1])
    found += timing.metrics(data="1x" + "x".join(map(str, recipe.image.shape))) if timing else []
    labelled = any(item.labels is not None for item in sets)
    floors = [
        Floor(metric=floor.metric, subject=floor.subject, value=floor.value, data=floor.data)
        for floor in recipe.floors
        if labelled or not floor.needs_labels
    ]
    findings = [*account.findings, *check_floors(found, account.answerable(floors))]
    report = Report(
        title=recipe.name,
        verdict="failed" if findings else "ok",
        metrics=found,
        findings=findings,
        floors=floors,
        layers=account.tell(
            compare_layers(
                student,
                path,
                first[:LAYER_IMAGES],
                context.device,
                as_written=as_written,
                reference=equalized_graph(context.graph, context.scheme)
                if context.scheme.equalize or smaller
                else None,
            )
        ),
        precision=account.realised.to_dict() if account.realised else {},
        latency=timing.to_dict() if timing else {},
        provenance=provenance(context),
        synthesis=synthesis(context),
        selection=selection(context),
        estimate=estimated,
        recipe=recipe.to_yaml(),
        warnings=(*warnings_of(recipe), *account.warnings),
    )
    write_bytes(path / "report.json", report.to_json().encode())
    write_bytes(path / "report.html", render_html(report, sheets=contact_sheets(path / "images")).encode())
    return ["report.json", "report.html"]


def compare(logits: dict[str, NDArray[Any]], grading: GradingSet) -> list[Metric]:
    """Every metric of every subject on one set of images.

    Args:
        logits: (N, K) by subject, ``teacher`` among them; all of the same images.
        grading: names the set, and gives its labels where there are any.
    """
    found: list[Metric] = []
    reference, data = logits["teacher"], grading.name
    for subject, values in logits.items():
        where: dict[str, Any] = {"subject": subject, "data": data}
        if grading.labels is not None:
            found.append(metrics.top1(values, grading.labels, **where))
        if subject == "teacher":
            continue
        if grading.labels is not None:
            found.append(metrics.paired_drop(reference, values, grading.labels, **where))
        found.append(metrics.agreement(reference, values, **where))
        found.append(metrics.kl(reference, values, **where))
        found.append(LOGIT_SQNR_DB.metric(value=metrics.sqnr_db(reference, values), n=len(values), **where))
    for subject in (name for name in logits if name not in _NO_RUNTIME):
        found += _beside_the_student(logits["student"], logits[subject], grading, subject)
    return found


def _beside_the_student(
    student: NDArray[Any], values: NDArray[Any], grading: GradingSet, subject: str
) -> Iterator[Metric]:
    """How far a runtime is from the fake-quantized student that its file was written from."""
    where: dict[str, Any] = {"subject": subject, "data": grading.name}
    yield metrics.agreement(student, values, kind=STUDENT_AGREEMENT, **where)
    if grading.labels is None:
        return
    ours, theirs = (metrics.top1(logits, grading.labels, **where).value or 0.0 for logits in (student, values))
    yield STUDENT_TOP1_GAP.metric(value=abs(ours - theirs), n=len(values), **where)


def _estimate(logits: dict[str, NDArray[Any]], recipe: Recipe, found: list[Metric]) -> dict[str, Any]:
    """The drop on real images as the synthetic ones tell it; a known accuracy only says whether it may be told."""
    known = next((m.value for m in found if (m.name, m.subject) == (TOP1.name, "teacher")), None)
    made_by: str = recipe.synthesis.method  # type: ignore[attr-defined]
    return estimate_drop(logits["teacher"], logits["onnxruntime"], synthesizer=made_by, teacher_top1=known).to_dict()


def _grading_sets(context: Context) -> list[GradingSet]:
    """Real images where there are any, and the images of the synthesizer that trained nothing."""
    size, spec = context.recipe.bank.batch, context.teacher.image
    sets = []
    real = real_images(context.recipe)
    if real is not None:
        batches = partial(real.batches, spec, size)
        sets.append(GradingSet(name=f"real:{real.name}", count=len(real), batches=batches, labels=real.labels))
    if not context.recipe.bank.grading:
        return sets
    bank = context.bank("grading")
    made = partial(_numpy_batches, bank, size)
    sets.append(GradingSet(name=f"synthetic:{bank.source}", count=len(bank), batches=made, labels=None))
    return sets


def _numpy_batches(bank: ImageBank, size: int) -> Iterator[Images]:
    return (images.numpy() for images, _ in bank.batches(size))


def _torch_logits(model: nn.Module, images: Images, device: torch.device) -> NDArray[Any]:
    with torch.no_grad():
        return model(torch.from_numpy(images).to(device)).float().cpu().numpy()  # type: ignore[no-any-return]


def _sizes(path: Path) -> list[Metric]:
    files = {"teacher": path / "teacher.onnx", "onnxruntime": path / "model.onnx"}
    return [
        SIZE.metric(subject=subject, data="file", value=float(file.stat().st_size), n=1)
        for subject, file in files.items()
    ]


def _latency(recipe: Recipe, teacher: OrtSession, quantized: OrtSession, image: Images) -> latency.Latency | None:
    repeats = recipe.validation.latency_repeats
    if not repeats:
        return None
    sessions = {"teacher": teacher, "onnxruntime": quantized}
    return latency.measure_latency(sessions, image, repeats=repeats, reference="teacher")


__all__ = ["GradingSet", "compare", "prove", "real_images"]
