"""What a check measures: the sentinel images through the file, compared with the teacher's stored answers.

What belongs here: `Subject`, everything a check reads of a bundle or a run's folder, and `Measurement`, everything it
measures of it; reading a report's metrics in their place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.backends import DEFAULT, as_written
from dfqkit_export.backends.onnxruntime.blocks import block_of
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.bundle import Bundle, open_bundle
from dfqkit_export.bundle.entries import printable, read_text
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import sha256_of_file
from dfqkit_export.gate.signature import Signature, read_signature
from dfqkit_export.gate.significance import ImageValues, image_values, noise_stderr_db
from dfqkit_export.measure.kinds import AGREES, FLIPS, INTEGER_OPS, PLAIN_AGREEMENT, Metric
from dfqkit_export.measure.metrics import integer_share, share
from dfqkit_export.onnxfile.model import load_onnx, metadata_in
from dfqkit_export.report import Report
from dfqkit_export.report.verdict import NOT_JUDGED
from dfqkit_export.sentinel import SENTINEL_FILE, Sentinel, normalized
from dfqkit_export.tasks import Outputs
from dfqkit_export.tasks.answering import answers


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A bundle or a run's folder, as far as a check reads it.

    Attributes:
        bundle: What its manifest says, the normalisation too, is what a user of the bundle applies.
        model: The ONNX file, read.
        sentinel: The sentinel set.
        damaged: Files whose hash is not the manifest's.
        unlisted: Files that the manifest of a bundle does not list.
    """

    bundle: Bundle
    model: onnx.ModelProto
    sentinel: Sentinel
    damaged: tuple[str, ...]
    unlisted: tuple[str, ...] = ()

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The ONNX file's own text properties."""
        return metadata_in(self.model)

    @property
    def as_written(self) -> bool:
        """Whether the file is run without optimizations: see `backends.as_written`."""
        return as_written(self.bundle.target)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured of one case.

    Attributes:
        name: Name of the case.
        metrics: By name.
        unmeasured: Metrics that could not be measured, with the reason.
        images: Values per image; None for a report.
        outputs: The file's outputs, by name; None for a report.
        signature: What is kept of the layers; None for a report.
        files: sha256 of "model", "sentinel" and "teacher"; empty for a report.
        subject: What was measured; None for a report.
        session: The file as it was run, for experiments; None for a report.
        findings: Floors that a report found broken, as sentences.
        unjudged: Why a report has no verdict, as sentences.
        in_float: Layers that run in no integer kernel; empty where that was not asked.
    """

    name: str
    metrics: Mapping[str, Metric]
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    images: ImageValues | None = None
    outputs: Outputs | None = None
    signature: Signature | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    subject: Subject | None = None
    session: OrtSession | None = None
    findings: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()


@contextlib.contextmanager
def open_subject(path: str | Path) -> Iterator[Subject]:
    """Open a bundle's folder or .zip, or a run's folder, and read what a check needs.

    Raises:
        ArtefactError: It is none, has no sentinel set, or its sentinel set is stale or damaged; its model is no ONNX.
    """
    with open_bundle(path) as bundle:
        sentinel = bundle.sentinel
        if sentinel is None:
            message = (
                f"'{path}' has no {SENTINEL_FILE}, which a check measures with. Make the bundle with `dfqkit bundle`."
            )
            raise ArtefactError(message)
        damaged = tuple(bundle.damaged())
        if SENTINEL_FILE in damaged:
            message = (
                f"The sentinel set of '{path}' is not the file that its manifest lists (another sha256), so nothing "
                "measured with it could be trusted. Copy the bundle again, or make it again with `dfqkit bundle`."
            )
            raise ArtefactError(message)
        unlisted = tuple(sorted(bundle.unlisted())) if bundle.whole else ()
        model = load_onnx(bundle.model, weights=False)
        subject = Subject(bundle=bundle, model=model, sentinel=sentinel, damaged=damaged, unlisted=unlisted)
        _require_same_teacher(subject)
        yield subject


def _require_same_teacher(subject: Subject) -> None:
    stated = {
        "the manifest": str(subject.bundle.teacher.get("sha256") or ""),
        "the ONNX file": subject.metadata.get("dfqkit.teacher_sha256", ""),
    }
    for place, sha256 in stated.items():
        if sha256 and sha256 != subject.sentinel.teacher_sha256:
            message = (
                f"The sentinel set of '{subject.bundle.path}' is stale: it holds the answers of teacher "
                f"{subject.sentinel.teacher_sha256[:12]}, while {place} names teacher {sha256[:12]}. Make the "
                "sentinel set again with the teacher that the file was made from (`dfqkit bundle`), then record it "
                "with --update."
            )
            raise ArtefactError(message)


def measure_subject(subject: Subject, *, threads: int | None = None, optimized: bool = True) -> Measurement:
    """Run a subject's sentinel images and compare with the teacher's answers.

    Without the runtime's graph optimizations `integer_ops` is not measured, nor is it of a file whose target needs to
    be run so (`Subject.as_written`).

    Raises:
        ArtefactError: The runtime does not accept the file, or its outputs do not fit the teacher's or are not finite.
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    sentinel = subject.sentinel
    optimized = optimized and not subject.as_written
    # Before the session that stays: two of a large file, or it and its weights, would be too much memory at once.
    try:
        signature = read_signature(subject.model, block=block_of(subject.model))
    except Exception:  # of a file that no runtime takes it is the runtime that says what is wrong; else raised
        images = normalized(sentinel.images[:1], subject.bundle.image)
        OrtSession(subject.bundle.model, threads=threads, optimized=optimized, lean=True).run(images)
        raise
    realised = realised_precision(subject.bundle.model) if optimized else None
    session = OrtSession(subject.bundle.model, threads=threads, optimized=optimized, lean=True)
    outputs = answers(session, sentinel.task, normalized(sentinel.images, subject.bundle.image))
    found, values = _metrics(sentinel, outputs)
    unmeasured: dict[str, str] = {}
    in_float: tuple[str, ...] = ()
    if realised is not None:
        found.append(integer_share(realised, subject=DEFAULT.name))
        in_float = tuple(layer.name for layer in realised.layers if layer.precision == "float")
    elif not subject.as_written:
        unmeasured[INTEGER_OPS.name] = "Graph optimizations are off, which runs every layer as written, in float."
    return Measurement(
        name=subject.bundle.name,
        metrics={metric.name: metric for metric in found},
        unmeasured=unmeasured,
        images=image_values((metric.kind for metric in found), values, sentinel.sensitive),
        outputs=outputs,
        signature=signature,
        files={
            "model": sha256_of_file(subject.bundle.model),
            "sentinel": _sentinel_digest(sentinel),
            "teacher": sentinel.teacher_sha256,
        },
        subject=subject,
        session=session,
        in_float=in_float,
    )


def measure_report(source: str | Path | Report) -> Measurement:
    """Read the metrics of a report or its file instead of running anything; times and sizes are left out."""
    report = source
    if not isinstance(report, Report):
        path = Path(report)
        if not path.is_file():
            message = f"Report '{path}' is not there. Give the report.json of a run or bundle."
            raise ArtefactError(message)
        report = Report.from_json(read_text(path))
    rows = [m for m in report.metrics if m.higher_is_better is not None and m.kind.gated]
    named = {f"{m.name} of {m.subject} on {m.data}": m for m in rows}
    if not all(printable(text) for text in (report.title, *named)):
        message = f"Report {report.title!r:.80} has a title or metric that is no plain text. Give the report of a run."
        raise ArtefactError(message)
    return Measurement(
        name=f"{report.title} (report)",
        metrics=named,
        findings=tuple(finding.message for finding in report.findings),
        unjudged=tuple(report.reasons) if report.verdict == NOT_JUDGED else (),
    )


def _metrics(sentinel: Sentinel, outputs: Outputs) -> tuple[list[Metric], dict[str, NDArray[Any]]]:
    """Return what the task measures without labels, and on how many images of each kind the answer is the teacher's."""
    task, sensitive, plain = sentinel.task, sentinel.sensitive, sentinel.plain
    where = {"subject": DEFAULT.name, "data": "sentinel"}
    measured = task.metrics(sentinel.answers, outputs, None, **where)
    values = task.per_image(sentinel.answers, outputs)
    found = []
    for metric in measured:
        each = metric.kind.per_image
        if each is not None and each.total == "dB":  # the noise of each image gives a ratio its standard error
            metric = replace(metric, stderr=noise_stderr_db(values[each.key]))
        found.append(metric)
    same = values[AGREES.key]
    if plain.any():
        found.append(share(PLAIN_AGREEMENT, same[plain], **where))
    if sensitive.any():
        kept = share(FLIPS, same[sensitive], **where)
        flipped = float(np.count_nonzero(~same[sensitive]))
        found.append(replace(kept, value=flipped, stderr=kept.n * (kept.stderr or 0.0) / 100))
    return found, values


def _sentinel_digest(sentinel: Sentinel) -> str:
    """Return the sha256 of what is measured with, which is the same whatever else stands in the file's header."""
    digest = hashlib.sha256(json.dumps(sentinel.spec.to_dict(), sort_keys=True).encode())
    for array in (sentinel.images, *(sentinel.answers[name] for name in sentinel.task.names), sentinel.kind):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
