"""The proof: the float teacher, the fake-quantized student and the exported file, on the same images.

What belongs here: which models meet which images, and the report that comes of it. Metrics, the runtime and the renderings
are `dfqkit_export`'s.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from dfqkit_export import latency, metrics
from dfqkit_export.activations import layer_outputs
from dfqkit_export.datasets import LabelledImages, load_images
from dfqkit_export.env import environment
from dfqkit_export.files import write_bytes
from dfqkit_export.graph import realised_precision
from dfqkit_export.metrics import Metric
from dfqkit_export.report import Floor, LayerRow, Report, check_floors, layer_rows
from dfqkit_export.report_html import render_html
from dfqkit_export.runtimes.ort import OrtSession

from ..imagebank import ImageBank
from ..recipe import Recipe, find_file
from ..students.freezing import freeze

if TYPE_CHECKING:
    from .stages import Context

#: Images of the per-layer comparison: enough for a ratio, few enough to hold every activation in memory.
LAYER_IMAGES = 32

Images = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class GradingSet:
    """Images that grade, in batches, and their labels where there are any."""

    name: str
    batches: list[Images]
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.batches)


def real_images(recipe: Recipe) -> LabelledImages | None:
    """The labelled images that a recipe names, or None.

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
    return load_images(source, recipe.image.spec(), resize=section.resize, crop=section.crop, limit=section.limit)


def prove(context: Context) -> list[str]:
    """Measure everything, write ``report.json`` and ``report.html``; returns the names of both."""
    from .stages import final_student

    recipe, path = context.recipe, context.folder.path
    student = final_student(context)
    calibrated = _calibrated(context)
    sets = _grading_sets(context)
    quantized, teacher = OrtSession(path / "model.onnx"), OrtSession(path / "teacher.onnx")
    found: list[Metric] = []
    with context.progress.stage("validate", total=sum(len(item) for item in sets)) as bar:
        for item in sets:
            logits: dict[str, list[Any]] = {"teacher": [], "student": [], "onnxruntime": [], "calibrated": []}
            for batch in item.batches:
                logits["teacher"].append(teacher.run(batch))
                logits["student"].append(_torch_logits(student, batch, context.device))
                logits["calibrated"].append(_torch_logits(calibrated, batch, context.device))
                logits["onnxruntime"].append(quantized.run(batch))
                bar.advance(len(batch))
            found += compare({name: np.concatenate(parts) for name, parts in logits.items()}, item)
    realised = realised_precision(path / "model.onnx")
    found.append(realised.metric(subject="onnxruntime", data="model.onnx"))
    found += _sizes(path)
    timing = _latency(recipe, teacher, quantized, sets[0].batches[0][:1])
    found += timing.metrics(data="1x" + "x".join(map(str, recipe.image.shape))) if timing else []
    labelled = any(item.labels is not None for item in sets)
    floors = [
        Floor(metric=floor.metric, subject=floor.subject, value=floor.value)
        for floor in recipe.floors
        if labelled or not floor.needs_labels
    ]
    findings = check_floors(found, floors)
    report = Report(
        title=recipe.name,
        verdict="failed" if findings else "ok",
        metrics=found,
        findings=findings,
        layers=_layers(student, path, sets[0].batches[0][:LAYER_IMAGES], context.device),
        precision=realised.to_dict(),
        latency=timing.to_dict() if timing else {},
        provenance=_provenance(context),
        synthesis=_synthesis(context),
        selection=_selection(context),
        recipe=recipe.to_yaml(),
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
        where = {"subject": subject, "data": data}
        if grading.labels is not None:
            found.append(metrics.top1(values, grading.labels, **where))
        if subject == "teacher":
            continue
        if grading.labels is not None:
            found.append(metrics.paired_drop(reference, values, grading.labels, **where))
        found.append(metrics.agreement(reference, values, **where))
        found.append(metrics.kl(reference, values, **where))
        found.append(
            Metric(
                name="logit_sqnr_db", value=metrics.sqnr_db(reference, values), unit="dB", n=len(values),
                higher_is_better=True, **where,
            )  # fmt: skip
        )
    where = {"subject": "onnxruntime", "data": data}
    found.append(metrics.agreement(logits["student"], logits["onnxruntime"], name="student_agreement", **where))
    if grading.labels is not None:
        student, runtime = (next(m for m in found if (m.name, m.subject) == ("top1", s)) for s in ("student", "onnxruntime"))
        found.append(
            Metric(
                name="student_top1_gap", value=abs((student.value or 0) - (runtime.value or 0)), unit="points",
                n=student.n, higher_is_better=False, **where,
            )  # fmt: skip
        )
    return found


def _grading_sets(context: Context) -> list[GradingSet]:
    """Real images where there are any, and the images of the synthesizer that trained nothing."""
    size, spec = context.recipe.bank.batch, context.teacher.image
    sets = []
    real = real_images(context.recipe)
    if real is not None:
        sets.append(GradingSet(name=f"real:{real.name}", batches=list(real.batches(spec, size)), labels=real.labels))
    bank = context.bank("grading")
    batches = [images.numpy() for images, _ in bank.batches(size)]
    sets.append(GradingSet(name=f"synthetic:{bank.source}", batches=batches, labels=None))
    return sets


def _calibrated(context: Context) -> fx.GraphModule:
    """What calibration alone would have shipped: the bar that distillation must clear."""
    from .stages import load_ensemble

    student = load_ensemble(context)[0][0]
    freeze(student, integer_biases=context.target.bias == "int32")
    return student


def _torch_logits(model: nn.Module, images: Images, device: torch.device) -> NDArray[Any]:
    with torch.no_grad():
        return model(torch.from_numpy(images).to(device)).float().cpu().numpy()  # type: ignore[no-any-return]


def _sizes(path: Path) -> list[Metric]:
    files = {"teacher": path / "teacher.onnx", "onnxruntime": path / "model.onnx"}
    return [
        Metric(
            name="size", subject=subject, data=file.name, value=float(file.stat().st_size), unit="bytes", n=1,
            higher_is_better=False,
        )  # fmt: skip
        for subject, file in files.items()
    ]


def _latency(recipe: Recipe, teacher: OrtSession, quantized: OrtSession, image: Images) -> latency.Latency | None:
    repeats = recipe.validation.latency_repeats
    if not repeats:
        return None
    sessions = {"teacher": teacher, "onnxruntime": quantized}
    return latency.measure(sessions, image, repeats=repeats, reference="teacher")


def _layers(student: fx.GraphModule, path: Path, images: Images, device: torch.device) -> tuple[LayerRow, ...]:
    """Per layer: the student against the teacher, and the runtime against the student, both in dB."""
    real, runtime = layer_outputs(path / "teacher.onnx", images), layer_outputs(path / "model.onnx", images)
    torch_side = _student_layers(student, torch.from_numpy(images).to(device))
    student_db = {n: metrics.sqnr_db(real[n], torch_side[n]) for n in torch_side if n in real}
    runtime_db = {n: metrics.sqnr_db(torch_side[n], runtime[n]) for n in torch_side if n in runtime}
    return layer_rows(realised_precision(path / "model.onnx").layers, student_db=student_db, runtime_db=runtime_db)


def _student_layers(student: fx.GraphModule, images: Tensor) -> dict[str, NDArray[np.float32]]:
    """Output of every layer, behind the activation and the quantizer that follow it, as a runtime shows it."""
    modules = dict(student.named_modules())

    def follows(node: fx.Node) -> bool:
        return node.op == "call_module" and (
            str(node.target).startswith("quant.") or isinstance(modules[str(node.target)], (nn.ReLU, nn.ReLU6))
        )

    wanted: dict[fx.Node, str] = {}
    for node in student.graph.nodes:
        if node.target is torch.add or isinstance(modules.get(str(node.target)), (nn.Conv2d, nn.Linear)):
            last = node
            while len(last.users) == 1 and follows(next(iter(last.users))):
                last = next(iter(last.users))
            wanted[last] = node.name if node.target is torch.add else str(node.target)
    values: dict[str, NDArray[np.float32]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in wanted:
                values[wanted[n]] = value.float().cpu().numpy()
            return value

    with torch.no_grad():
        Recorder(student).run(images)
    return values


def _provenance(context: Context) -> dict[str, Any]:
    recipe, teacher = context.recipe, context.teacher
    return {
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest(),
        "command": context.command,
        "seed": recipe.seed,
        "teacher": teacher.name,
        "teacher_sha256": teacher.sha256,
        "weights": teacher.weights_source,
        "target": recipe.target,
        "synthesizer": recipe.synthesis.method,  # type: ignore[attr-defined]
        "device": str(context.device),
        "threads": torch.get_num_threads(),
        "seconds": {stage: context.folder.seconds(stage) for stage in ("synthesize", "quantize", "distill", "export")},
        "environment": environment(),
    }


def _synthesis(context: Context) -> dict[str, Any]:
    made, played = context.folder.facts("synthesize"), context.folder.facts("distill")
    curve = [
        {"round": int(entry["round"]), "terms": {k: v for k, v in entry.items() if k != "round"}}
        for entry in made.get("curve", [])  # type: ignore[union-attr]
    ]
    offset = curve[-1]["round"] if curve else 0
    curve += [
        {"round": offset + int(entry["step"]), "terms": {k: v for k, v in entry.items() if k != "step"}}
        for entry in played.get("curve", [])  # type: ignore[union-attr]
    ]
    cost = {"synthesis_image_passes": made.get("cost", 0), "game_image_passes": played.get("cost", 0)}
    return {"losses": curve, "cost": cost, "disagreement": played.get("disagreement")}


def _selection(context: Context) -> dict[str, Any]:
    played = context.folder.facts("distill")
    return {
        "rule": "lowest KL from the teacher on held-out synthetic images, calibration alone being a candidate",
        "kept": played.get("kept"),
        "judged": played.get("judged"),
    }


def contact_sheets(folder: Path, *, columns: int = 16, rows: int = 6) -> dict[str, bytes]:
    """One PNG a stored set: images in the order of the teacher's class, so that a missing class shows."""
    sheets = {}
    for file in sorted(folder.glob("*.safetensors")):
        bank = ImageBank.load(file)
        confidence, label = bank.logits.softmax(1).max(1)
        order = torch.argsort(label, stable=True)
        chosen = order[torch.linspace(0, len(order) - 1, min(len(order), columns * rows)).long()]
        caption = f"{bank.source}: {len(bank)} images, mean teacher confidence {float(confidence.mean()):.2f}"
        sheets[caption] = _png(bank.images[chosen], columns)
    return sheets


def _png(images: Tensor, columns: int) -> bytes:
    """A grid of uint8 images (N, C, H, W), small ones enlarged, as PNG."""
    from PIL import Image

    count, channels, height, width = images.shape
    scale = max(1, math.ceil(48 / width))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + 1), columns * (width + 1), 3), 255, np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image if channels == 3 else image[..., :1]
    picture = Image.fromarray(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


__all__ = ["GradingSet", "compare", "contact_sheets", "prove", "real_images"]
