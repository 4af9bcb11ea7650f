"""Whether a case is so many times as fast as in float, where a check demands that.

What belongs here: the row, and what is timed beside what. Both files run in the target's own runtime on this machine,
in turns; a file is only said to be too slow where the whole interval of 95 % says so, since time is never the same.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dfqkit_export.backends import DEFAULT, backend_of, find_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import open_session, realised_precision
from dfqkit_export.bundle.entries import plain_file
from dfqkit_export.bundle.reading import TEACHER_FILE
from dfqkit_export.errors import ArtefactError
from dfqkit_export.gate.measurement import Measurement, Subject
from dfqkit_export.gate.verdicts import Options, Row
from dfqkit_export.images.inputs import own_batch
from dfqkit_export.measure.kinds import AGREES, SPEEDUP
from dfqkit_export.measure.latency import Timing, measure_latency
from dfqkit_export.report.verdict import FAILED
from dfqkit_export.sentinel import normalized
from dfqkit_export.tasks.answering import answers

#: Timed calls of each file. Fewer than six hold no interval of 95 %.
REPEATS = 50
#: Share of the sentinel images, which are among the hardest, on which the float file must answer as the teacher did.
_SAME = 0.95


def speed_rows(measured: Measurement, options: Options) -> list[Row]:
    """Return the row of the speed-up where one is demanded: failed, or missing where nothing could be timed."""
    least = options.min_speedup
    if least is None:
        return []
    row = Row(metric=SPEEDUP.name, verdict="missing", unit=SPEEDUP.unit, floor=least)
    if measured.subject is None:
        return [replace(row, reason="A report cannot be run. Give the bundle or the run's folder.")]
    if not options.optimized:
        return [replace(row, reason="Graph optimizations are off, which runs every layer as written, in float.")]
    target = find_target(measured.subject.bundle.target)
    backend = backend_of(target) if target else DEFAULT
    if missing := backend.missing():
        return [replace(row, reason=f"Nothing is timed where the file is not to run: {missing}")]
    file = plain_file(measured.subject.bundle.root, TEACHER_FILE)
    if options.teacher:
        file = Path(options.teacher)
    if file is None:
        reason = f"It holds no {TEACHER_FILE} to be timed beside. Give the float file with --teacher FLOAT.onnx."
        return [replace(row, reason=reason)]
    _require_teacher(measured.subject, file)
    timing = timed(measured.subject, file, backend.name, options.threads)
    ratio, low, high = timing.ratio, timing.ratio_low, timing.ratio_high
    assert ratio is not None  # of `REPEATS` runs beside another file
    assert high is not None
    slow = not high >= least
    reason = f"{ratio:.2f} times as fast as in float [{low:.2f}, {high:.2f}], in {REPEATS} runs of each in turns"
    reason += f"; all of that is below {least:g}." if slow else "."
    return [replace(row, verdict=FAILED if slow else "ok", now=ratio, n=REPEATS, reason=reason)]


def timed(subject: Subject, file: Path, runtime: str, threads: int | None) -> Timing:
    """Time a subject's model and the float file in turns in one runtime, with as many images as it takes in a call."""
    sessions = {
        name: open_session(runtime, path, threads=threads)
        for name, path in (("float", file), ("file", subject.bundle.model))
    }
    images = normalized(subject.sentinel.images[: own_batch(subject.model) or 1], subject.bundle.image)
    return measure_latency(sessions, images, repeats=REPEATS, reference="float").timings["file"]


def _require_teacher(subject: Subject, file: Path) -> None:
    """Refuse a file that is not the teacher in float: beside another network, any file may be fast."""
    if not file.is_file():
        message = f"The float file '{file}' is not there. Give --teacher the ONNX file of the teacher in float."
        raise ArtefactError(message)
    if realised_precision(file).integer_ops:
        message = f"'{file}' runs in integers itself. Give --teacher the ONNX file of the teacher in float."
        raise ArtefactError(message)
    sentinel = subject.sentinel
    found = answers(OrtSession(file), sentinel.task, normalized(sentinel.images, subject.bundle.image))
    same = float(sentinel.task.per_image(sentinel.answers, found)[AGREES.key].mean())
    if not same >= _SAME:
        message = (
            f"'{file}' gives the teacher's stored answer on {same:.0%} of the sentinel images, so it is another "
            "network. Give --teacher the ONNX file of the bundle's own teacher."
        )
        raise ArtefactError(message)
