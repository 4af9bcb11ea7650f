"""Which images notice that a file became worse, and what they can notice.

What belongs here: the rule by which a sentinel set is chosen from candidates, and its power. What is done to a file to
find out is `probes`, the set itself `file`.

The rule. The gap of an image is its margin (`Task.margins`), of a classifier the logit of the teacher's class less the
largest of the others; where it falls below zero, the image flips. Let ``s`` be the root mean square of how far the
file's gaps are from the teacher's, and ``s_p`` the same for a probe p. For an image whose gap is m (the smaller of the
teacher's and the file's), a file as good as this one flips it with probability b = Phi(-m / s), and a worse one with h,
the mean over the probes of (Phi(-m / s_p) + [p flips it]) / 2. Chosen are the images with the largest

    (h - b) / sqrt(b (1 - b) + 0.01),

the number of standard deviations by which one image tells the two apart: near the decision boundary, and where students
of fewer bits part, but not so near that a good file flips them too. No class and no source has more than twice its even
share.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.backends import as_written
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import FLIPS
from dfqkit_export.onnxfile.model import load_onnx
from dfqkit_export.sentinel.candidates import LEAST, Candidates, spread_out
from dfqkit_export.sentinel.file import PLAIN, SENSITIVE, Sentinel, normalized
from dfqkit_export.sentinel.probes import Probe, probed
from dfqkit_export.tasks import DEFAULT_TASK, Outputs, Task
from dfqkit_export.tasks.answering import answers

_HEADER = 8192  # bytes kept free for the file's header
_STEADY = 0.01  # in the denominator, so that images which never flip are not divided by nothing
_BITS = (7, 6, 5, 4, 3, 2)
#: Drops of agreement, in points, that the power is told for.
_POINTS = (0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How large a set is.

    Attributes:
        sensitive: Images chosen, at the most.
        plain: Images drawn at random, at the most.
        limit: Bytes of the file; large images are fewer.
        seed: Of what is drawn.
    """

    sensitive: int = 384
    plain: int = 192
    limit: int = 2_000_000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TeacherFile:
    """The float teacher: its ONNX file, what it is called, and what tells it from others."""

    path: Path
    name: str
    sha256: str


def choose(model: str | Path, teacher: TeacherFile, candidates: Candidates, choice: Choice | None = None) -> Sentinel:
    """Choose a file's sentinel set.

    Args:
        model: The QDQ file that shall be checked. Of one without 8-bit weight codes, gaps alone decide.
        teacher: What it is compared with.
        candidates: Images that neither trained nor selected it.
        choice: How large the set is; None for `usual_choice`.

    Raises:
        ArtefactError: A file cannot be run on these images, or not six images fit into the limit.
    """
    choice = choice or usual_choice(candidates.spec, task=candidates.task)
    x = normalized(candidates.images, candidates.spec)
    task = candidates.task
    reference = answers(OrtSession(teacher.path), task, x)
    proto = load_onnx(model)
    target = next((entry.value for entry in proto.metadata_props if entry.key == "dfqkit.target"), "")
    optimized = not as_written(target)

    def answered(probe: Probe) -> Outputs:
        worse = probed(proto, probe) or proto  # `_probes` leaves out those that change nothing
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "probe.onnx")
            onnx.save(worse, path)
            return answers(OrtSession(path, optimized=optimized), task, x)

    own = answers(OrtSession(model, optimized=optimized), task, x)
    choosing, judging = _probes(proto, choice.seed)
    plain_count, count = _counts(candidates, choice)
    drawn = np.random.default_rng(choice.seed).permutation(len(x))[:plain_count]
    same, worse = likely_flips(task, reference, own, [answered(probe) for probe in choosing])
    found = (worse - same) / np.sqrt(same * (1 - same) + _STEADY)
    found[drawn] = -math.inf
    groups = task.groups(reference, candidates.spec)
    chosen = spread_out(found, groups.of, candidates, count)
    places = np.concatenate([np.sort(chosen), np.sort(drawn)])
    flips = [~task.same_answer(reference, each) for each in (own, *map(answered, judging))]
    return Sentinel(
        spec=candidates.spec,
        teacher_name=teacher.name,
        teacher_sha256=teacher.sha256,
        images=candidates.images[places],
        answers={name: values[places].astype(np.float32) for name, values in reference.items()},
        sources=candidates.sources,
        source=candidates.source[places],
        kind=np.repeat(np.array([SENSITIVE, PLAIN], np.uint8), [len(chosen), len(drawn)]),
        rule=_told((len(chosen), len(drawn), len(x)), choosing, groups.one),
        power=power(flips[0], flips[1:], chosen, same),
        task=task,
    )


def usual_choice(spec: ImageSpec, seed: int = 0, task: Task = DEFAULT_TASK) -> Choice:
    """2 MB of images (576 of 32 x 32), or 64 images where so many do not fit (10 MB of 224 x 224).

    Fewer than 64 could not tell a loss of several points from chance.
    """
    return Choice(limit=max(Choice.limit, 64 * _bytes(spec, task) + _HEADER), seed=seed)


def likely_flips(
    task: Task, teacher: Outputs, own: Outputs, probes: Sequence[Outputs]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how likely a file as good as this one flips each image, and how likely a worse one: b and h, see the top.

    With no probe, a file four times as far from the teacher is imagined.
    """
    gap, own_gap = task.margins(teacher, teacher), task.margins(teacher, own)
    least, distance = np.minimum(gap, own_gap), _rms(own_gap - gap)
    worse = [
        (_phi(-least / max(_rms(task.margins(teacher, each) - gap), distance)) + ~task.same_answer(teacher, each)) / 2
        for each in probes
    ]
    return _phi(-least / distance), np.mean(worse or [_phi(-least / (4 * distance))], axis=0)


def power(
    own: NDArray[np.bool_], probes: Sequence[NDArray[np.bool_]], chosen: NDArray[np.int64], same: NDArray[np.float64]
) -> dict[str, Any]:
    """Return what the chosen images notice, read off probes that had no part in choosing them.

    All is counted from a file as good as this one, not from this very file, which the images were chosen not to be
    flipped by.

    Args:
        own: Which of all candidates the file flips, (N,).
        probes: The same for each probe.
        chosen: Places of the sensitive images.
        same: How likely a file as good flips each, (N,).

    Returns:
        ``points``: losses of agreement with the teacher on plain candidates, in percentage points;
        ``flips``: how many sensitive images are expected to be flipped then, between probes by straight lines;
        ``equal_flips`` and ``equal_disagreement`` (in %): those of a file as good; ``own_flips``,
        ``own_disagreement``: this file's; ``images``: how many sensitive ones there are;
        ``minimum_detectable``: the least loss with which flips are two standard errors above those of a file as good,
        None where no probe was so bad; ``minimum_detectable_at_random``: the same for as many images drawn at random.
        Empty without probes.
    """
    if not probes:
        return {}
    n, equal_share = len(chosen), float(np.maximum(own.mean(), same.mean()))
    equal = max(float(own[chosen].sum()), float(same[chosen].sum()))
    lost = np.array([0.0, *(100 * (flips.mean() - equal_share) for flips in probes)])
    flipped = np.array([equal, *(flips[chosen].sum() for flips in probes)], np.float64)
    order = np.argsort(lost, kind="stable")
    order = order[lost[order] >= 0]
    lost, flipped = lost[order], np.maximum.accumulate(flipped[order])
    points = [point for point in _POINTS if point <= lost[-1]]
    grid = np.linspace(0, lost[-1], 2001)
    enough = np.flatnonzero(np.interp(grid, lost, flipped) >= equal + 2 * _noise(equal, n))
    return {
        "points": points,
        FLIPS.name: [round(float(value), 1) for value in np.interp(points, lost, flipped)],
        "equal_flips": round(equal, 1),
        "equal_disagreement": round(100 * equal_share, 2),
        "own_flips": int(own[chosen].sum()),
        "own_disagreement": round(100 * float(own.mean()), 2),
        "images": n,
        "minimum_detectable": round(float(grid[enough[0]]), 2) if len(enough) else None,
        "minimum_detectable_at_random": round(200 * _noise(n * equal_share, n) / n, 2),
    }


def _noise(flips: float, n: int) -> float:
    """Return the error of a number of flips; one flip and one image more are assumed: none is not certainty."""
    share = (flips + 1) / (n + 2)
    return math.sqrt(n * share * (1 - share))


def _bytes(spec: ImageSpec, task: Task) -> int:
    """Return what one image takes with the teacher's answer, source and kind."""
    return math.prod(spec.shape) + task.image_bytes(spec) + 3


def _counts(candidates: Candidates, choice: Choice) -> tuple[int, int]:
    """Return how many are drawn and how many chosen; at most half of what is left is chosen, or nothing would be."""
    one = _bytes(candidates.spec, candidates.task)
    fitting, n = max(0, choice.limit - _HEADER) // one, len(candidates.images)
    if fitting < LEAST:
        message = (
            f"{fitting} images of {one:,} bytes fit into the {choice.limit:,} bytes of a sentinel set; at least "
            f"{LEAST} are needed. Allow more with --limit."
        )
        raise ArtefactError(message)
    plain = max(1, min(choice.plain, fitting // 3, n // 3))
    return plain, max(1, min(choice.sensitive, fitting - plain, (n - plain) // 2))


def _probes(model: onnx.ModelProto, seed: int) -> tuple[list[Probe], list[Probe]]:
    """Probes that choose, and others that tell what the choice is worth, which the first would flatter."""
    bits = [b for b in _BITS if probed(model, Probe(kind="weights", bits=b)) is not None]
    choosing = [Probe(kind="weights", bits=b) for b in (bits[1:4:2] if len(bits) > 2 else bits[:1])]
    judging = [Probe(kind="weights", bits=b, seed=seed + 1) for b in (bits[:3:2] if len(bits) > 2 else bits[:1])]
    if probed(model, Probe(kind="activations", seed=seed)) is not None:
        choosing.append(Probe(kind="activations", seed=seed))
        judging.append(Probe(kind="activations", seed=seed + 1))
    return choosing, judging


def _rms(values: NDArray[np.float64]) -> float:
    return max(1e-6, float(np.sqrt(np.square(values).mean())))


def _phi(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in values.tolist()])


def _told(counts: tuple[int, int, int], probes: Sequence[Probe], group: str) -> str:
    chosen, drawn, candidates = counts
    made = ", ".join(f"{p.bits}-bit weights" if p.kind == "weights" else "other activation ranges" for p in probes)
    return (
        f"{chosen} images with the largest (h - b) / sqrt(b (1 - b) + {_STEADY}), b and h the probabilities that a "
        f"file as good as this one and a worse one give another {group or 'answer'} than the teacher; worse ones: "
        f"{made or 'four times the distance from the teacher'}; no {group or 'group'} or source above twice its share. "
        f"And {drawn} "
        f"drawn at random; all from {candidates} images that neither trained nor selected the student."
    )
