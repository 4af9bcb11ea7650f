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
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.backends import DEFAULT, as_written
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.bundle import Bundle, open_bundle
from dfqkit_export.bundle.entries import printable, read_text
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import sha256_of_file
from dfqkit_export.gate.signature import Signature, read_signature
from dfqkit_export.gate.significance import ImageValues, image_values, noise_stderr_db
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import AGREES, FLIPS, INTEGER_OPS, PLAIN_AGREEMENT, Metric
from dfqkit_export.measure.metrics import integer_share, share
from dfqkit_export.onnxfile.model import load_onnx
from dfqkit_export.report import Report
from dfqkit_export.sentinel import SENTINEL_FILE, Sentinel, normalized
from dfqkit_export.tasks import Outputs
from dfqkit_export.tasks.answering import answers


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A bundle or a run's folder, as far as a check reads it.

    Attributes:
        name: Name of the case.
        path: What was given.
        model_path: The ONNX file.
        model: The ONNX file, read.
        sentinel: The sentinel set.
        image: Normalisation that the manifest states, which is what a user of the bundle applies.
        metadata: The ONNX file's own text properties.
        synthesis: What the manifest says of the images' origin.
        teacher_sha256: The manifest's teacher; "" where it names none.
        damaged: Files whose hash is not the manifest's.
        recipe: The recipe as text, YAML; "" where there is none.
        target: What the file was made for.
    """

    name: str
    path: Path
    model_path: Path
    model: onnx.ModelProto
    sentinel: Sentinel
    image: ImageSpec
    metadata: Mapping[str, str]
    synthesis: Mapping[str, Any]
    teacher_sha256: str
    damaged: tuple[str, ...]
    recipe: str = ""
    target: str = ""

    @property
    def as_written(self) -> bool:
        """Whether the file is run without optimizations: see `backends.as_written`."""
        return as_written(self.target)


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
        yield _subject(bundle, Path(path), sentinel, damaged)


def _subject(bundle: Bundle, path: Path, sentinel: Sentinel, damaged: tuple[str, ...]) -> Subject:
    model = load_onnx(bundle.model)
    subject = Subject(
        name=bundle.name,
        path=path,
        model_path=bundle.model,
        model=model,
        sentinel=sentinel,
        image=bundle.image,
        metadata={entry.key: entry.value for entry in model.metadata_props},
        synthesis=dict(bundle.synthesis),
        teacher_sha256=str(bundle.teacher.get("sha256") or ""),
        damaged=damaged,
        recipe=bundle.recipe or "",
        target=bundle.target,
    )
    _require_same_teacher(subject)
    return subject


def _require_same_teacher(subject: Subject) -> None:
    stated = {
        "the manifest": subject.teacher_sha256,
        "the ONNX file": subject.metadata.get("dfqkit.teacher_sha256", ""),
    }
    for place, sha256 in stated.items():
        if sha256 and sha256 != subject.sentinel.teacher_sha256:
            message = (
                f"The sentinel set of '{subject.path}' is stale: it holds the answers of teacher "
                f"{subject.sentinel.teacher_sha256[:12]}, while {place} names teacher {sha256[:12]}. Make the "
                "sentinel set again with the teacher that the file was made from (`dfqkit bundle`), then record it "
                "with --update."
            )
            raise ArtefactError(message)


def measure_subject(subject: Subject, *, threads: int | None = None, optimized: bool = True) -> Measurement:
    """Run a subject's sentinel images and compare with the teacher's answers.

    Args:
        subject: What to measure.
        threads: Threads inside one operator; None leaves the choice to the runtime.
        optimized: False switches the runtime's graph optimizations off; then `integer_ops` is not measured, nor is it
            of a file whose target needs that (`Subject.as_written`).

    Raises:
        ArtefactError: The runtime does not accept the file, or its outputs do not fit the teacher's or are not finite.
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    sentinel = subject.sentinel
    session = OrtSession(subject.model_path, threads=threads, optimized=optimized and not subject.as_written)
    outputs = answers(session, sentinel.task, normalized(sentinel.images, subject.image))
    found, values = _metrics(sentinel, outputs)
    unmeasured = {}
    if session.optimized:
        found.append(integer_share(realised_precision(subject.model_path), subject=DEFAULT.name))
    elif not subject.as_written:
        unmeasured[INTEGER_OPS.name] = "Graph optimizations are off, which runs every layer as written, in float."
    return Measurement(
        name=subject.name,
        metrics={metric.name: metric for metric in found},
        unmeasured=unmeasured,
        images=image_values((metric.kind for metric in found), values, sentinel.sensitive),
        outputs=outputs,
        signature=read_signature(subject.model),
        files={
            "model": sha256_of_file(subject.model_path),
            "sentinel": _sentinel_digest(sentinel),
            "teacher": sentinel.teacher_sha256,
        },
        subject=subject,
        session=session,
    )


def measure_report(source: str | Path | Report) -> Measurement:
    """Read a report's metrics instead of running anything; times and sizes are left out.

    Args:
        source: The report or its file.

    Raises:
        ArtefactError: It is no report.
    """
    report = source if isinstance(source, Report) else _read_report(source)
    rows = [m for m in report.metrics if m.higher_is_better is not None and m.kind.gated]
    named = {f"{m.name} of {m.subject} on {m.data}": m for m in rows}
    if not all(printable(text) for text in (report.title, *named)):
        message = f"Report {report.title!r:.80} has a title or metric that is no plain text. Give the report of a run."
        raise ArtefactError(message)
    return Measurement(
        name=f"{report.title} (report)",
        metrics=named,
        findings=tuple(finding.message for finding in report.findings),
    )


def _read_report(path: str | Path) -> Report:
    if not Path(path).is_file():
        message = f"Report '{path}' is not there. Give the report.json of a run or bundle."
        raise ArtefactError(message)
    return Report.from_json(read_text(Path(path)))


def _metrics(sentinel: Sentinel, outputs: Outputs) -> tuple[list[Metric], dict[str, NDArray[Any]]]:
    """Return what the task measures without labels, and on how many images of each kind the answer is the teacher's."""
    task, sensitive, plain = sentinel.task, sentinel.sensitive, sentinel.plain
    where = {"subject": DEFAULT.name, "data": "sentinel"}
    measured = task.metrics(sentinel.answers, outputs, None, **where)
    values = task.per_image(sentinel.answers, outputs)
    found = [_with_stderr(metric, values) for metric in measured]
    same = values[AGREES.key]
    if plain.any():
        found.append(share(PLAIN_AGREEMENT, same[plain], **where))
    if sensitive.any():
        kept = share(FLIPS, same[sensitive], **where)
        flipped = float(np.count_nonzero(~same[sensitive]))
        found.append(replace(kept, value=flipped, stderr=kept.n * (kept.stderr or 0.0) / 100))
    return found, values


def _with_stderr(metric: Metric, values: Mapping[str, NDArray[Any]]) -> Metric:
    """Return a ratio in dB with the standard error that the noise of each image gives it."""
    each = metric.kind.per_image
    if each is None or each.total != "dB":
        return metric
    return replace(metric, stderr=noise_stderr_db(values[each.key]))


def _sentinel_digest(sentinel: Sentinel) -> str:
    """Return the sha256 of what is measured with, which is the same whatever else stands in the file's header."""
    digest = hashlib.sha256(json.dumps(sentinel.spec.to_dict(), sort_keys=True).encode())
    for array in (sentinel.images, *(sentinel.answers[name] for name in sentinel.task.names), sentinel.kind):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
