"""The model card of a bundle: what it is, how good, how it was made, and what it is not for.

What belongs here: Markdown from the manifest and the report. Names come from recipes and files, so everything that is
put in is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dfqkit_export.backends import DEFAULT
from dfqkit_export.images.pixels import LAYOUT, PIXELS
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import INTEGER_OPS, Metric
from dfqkit_export.report import Report
from dfqkit_export.report.rows import interval_text, made_from
from dfqkit_export.report.verdict import NOT_JUDGED
from dfqkit_export.sentinel import Sentinel
from dfqkit_export.tasks import Task

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~<>&@])")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_SUBJECTS = {"teacher": "float teacher", DEFAULT.name: "this file", "student": "student in torch"}


def escaped(text: object) -> str:
    r"""Return text as Markdown shows it: one line, no HTML, no markup, no links.

    Example:
        >>> escaped("<b>*a*</b>")
        '&lt;b&gt;\\*a\\*&lt;/b&gt;'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return _SPECIAL.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), line)


def model_card(manifest: Mapping[str, Any], report: Report | None, sentinel: Sentinel) -> str:
    """Return the card of a bundle with this manifest; without a report, the run was not measured."""
    task = sentinel.task
    parts = [
        f"# {escaped(manifest['name'])}",
        f"A quantized {task.title}, made by dfqkit {escaped(manifest['dfqkit'])} for the target "
        f"{escaped(manifest['target'])}.",
        *_warnings(manifest, report),
        "## Accuracy",
        _accuracy(report),
        "## What runs",
        _precision(report),
        "## Input and output",
        _image(manifest, task),
        "## Provenance",
        _table(("", ""), _provenance(manifest, report)),
        "## Checking it again",
        _check(manifest, sentinel),
        "## Limits",
        _limits(manifest, sentinel),
    ]
    return "\n\n".join(parts) + "\n"


def _warnings(manifest: Mapping[str, Any], report: Report | None) -> list[str]:
    found = list(report.warnings) if report else []
    if manifest["synthesis"]["noise"] and not found:
        found.append("Calibrated on random noise: a baseline, not a model to ship.")
    if report:
        found += [f"Failed its run's own checks: {finding.message}" for finding in report.findings]
    if report and report.verdict == NOT_JUDGED:
        found += [f"Not judged: {reason}" for reason in report.reasons]
    return [f"> **Warning.** {escaped(text)}" for text in found]


def _accuracy(report: Report | None) -> str:
    metrics = report.metrics if report else ()
    rows = [metric for metric in metrics if metric.kind.on_card and metric.subject in _SUBJECTS]
    if not rows:
        return "Not measured."
    return _table(("measured", "of", "on", "value", "standard error, or [95 %]", "images"), map(_cells, rows))


def _cells(metric: Metric) -> Sequence[str]:
    value = "none" if metric.value is None else f"{metric.value:.4g} {metric.unit}"
    error = interval_text(metric) or ("unknown" if metric.stderr is None else f"{metric.stderr:.2g}")
    return metric.name, _SUBJECTS[metric.subject], metric.data, value, error, f"{metric.n:,}"


def _precision(report: Report | None) -> str:
    found = report.metric(INTEGER_OPS.name, DEFAULT.name) if report else None
    if report is None or found is None or found.value is None:
        return "Which layers run in integers was not read from a runtime."
    environment = report.provenance.get("environment", {})
    packages = environment.get("packages", {}) if isinstance(environment, dict) else {}
    version = packages.get(DEFAULT.package, "") if isinstance(packages, dict) else ""
    floats = [row.name for row in report.layers if row.precision == "float"]
    named = f" In float: {', '.join(floats[:10])}{' and more' if len(floats) > 10 else ''}." if floats else ""
    return escaped(f"{found.value:.4g} {found.unit} of the layers run in integers in ONNX Runtime {version}.{named}")


def _image(manifest: Mapping[str, Any], task: Task) -> str:
    image = ImageSpec.from_dict(manifest["image"])
    shape = "x".join(str(size) for size in image.shape)
    order = f", channels {image.channels}" if image.shape[0] == 3 else ""
    taken = "Uint8" if image.dtype == PIXELS else "Float32"
    axes = image.layout if image.layout == LAYOUT else f"as N x H x W x C, {image.layout}"
    divided = " divided by 255" if image.pixel_range == 1 else ""
    parts = (f"{entry.name} ({entry.told})" for entry in image.inputs)
    inside = " The file does all of this itself." if image.dtype == PIXELS else ""
    several = f" Of these channels the inputs take: {', '.join(parts)}." if image.inputs else ""
    return escaped(
        f"{taken} images, N x {shape} ({axes}{order}): pixels from 0 to 255{divided}, less the mean "
        f"{list(image.mean)}, divided by the standard deviation {list(image.std)}, by channel.{inside}{several} "
        f"{task.told(image)}"
    )


def _provenance(manifest: Mapping[str, Any], report: Report | None) -> list[list[str]]:
    synthesis, told = manifest["synthesis"], report.provenance if report else {}
    real = report.synthesis.get("real_data") if report else None
    made = made_from(report) if report else "the teacher alone"
    free = {True: f"yes: made from {made}", False: "no", None: "not known"}[synthesis["data_free"]]
    rows = [
        ["teacher", manifest["teacher"]["name"]],
        ["sha256 of its weights", manifest["teacher"]["sha256"]],
        ["images made by", synthesis["method"]],
        ["data-free", f"{free}{f' ({real})' if real else ''}"],
        ["quantization", json.dumps(manifest["quant"], sort_keys=True)],
        ["recipe", f"{manifest['name']} (recipe.yaml)"],
        ["made by", manifest["command"]],
    ]
    known = {"seed": "seed", "device": "device", "measured in": "measured in"}
    return rows + [[label, str(told[key])] for key, label in known.items() if key in told]


def _check(manifest: Mapping[str, Any], sentinel: Sentinel) -> str:
    power = sentinel.power
    images = manifest["images"]
    counts = [f"{images['sentinel'].count(k)} {name}" for k, name in enumerate(images["origins"])]
    text = f"{len(sentinel)} images with the teacher's answers are in sentinel.safetensors: {', '.join(counts)}."
    if images["compared_with"]:
        text += f" None but those named so are like images of {', '.join(images['compared_with'])}."
    if power.get("minimum_detectable") is not None:
        text += (
            f" A loss of {power['minimum_detectable']} points of agreement with the teacher on images like these shows "
            f"in the {power['images']} sensitive ones; with as many images drawn at random it would take "
            f"{power['minimum_detectable_at_random']}."
        )
    return (
        f"`dfqkit check BUNDLE --baseline dfqkit-baseline.json` runs this file on them. {escaped(text)}\n\n"
        f"Programs that run it in {sentinel.task.samples.languages} and TensorRT are in `samples/`."
    )


def _limits(manifest: Mapping[str, Any], sentinel: Sentinel) -> str:
    lines = [
        "Numbers on synthetic images compare this file with its teacher; they are no accuracy on real images.",
        "What the teacher gets wrong, this file gets wrong as well; nothing here says what the teacher is fit for.",
        f"It was made for the target {manifest['target']}; another runtime may run layers in float, or refuse it.",
        f"The sentinel images come from {', '.join(sentinel.sources)}: a change that does not touch them stays unseen.",
    ]
    return "\n".join(f"- {escaped(line)}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [map(escaped, head), ["---"] * len(head), *(map(escaped, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
