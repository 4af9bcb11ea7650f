"""Images that a sentinel set may be chosen from: none that trained or selected the student.

What belongs here: gathering them from stored sets, what is refused, and keeping a choice spread over groups (classes)
and sources. How well an image serves is `choice`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.readers import spread
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.images.stored import StoredBank, image_digest
from dfqkit_export.tasks import DEFAULT_TASK, Task, task_of

#: Images that a set needs.
LEAST = 6
# Candidates run through every probe: this many at the most and at the least, and in between as many as have so many
# values, so that choosing takes seconds for small images and not hours for large ones.
_MOST, _FEWEST, _VALUES = 1024, 96, 1024 * 3 * 32 * 32
#: Sets that trained or selected a student, by the end of their source's name.
_USED = (":calibration", ":held_out")


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Images to choose from.

    Attributes:
        spec: Shape and normalisation.
        images: uint8 (N, C, H, W), all different.
        source: int16 (N,), an index into sources.
        sources: What made them.
        task: Of the teacher that answered to them.
    """

    spec: ImageSpec
    images: NDArray[np.uint8]
    source: NDArray[np.int16]
    sources: tuple[str, ...]
    task: Task = DEFAULT_TASK


def candidates_of(
    sets: Sequence[StoredBank], exclude: Iterable[StoredBank] = (), most: int | None = None
) -> Candidates:
    """Gather candidates, evenly spread over the sets and over each of them, each image once.

    Args:
        sets: Of one specification, at least one.
        exclude: Sets whose images are left out, such as those that trained the student.
        most: Images, at the most; None for 1024, and down to 96 for images larger than 32 x 32.

    Raises:
        ArtefactError: A set trained or selected a student, or is of another specification; or nothing is left.
    """
    spec, task = sets[0].spec, task_of(sets[0].task)
    most = most or min(_MOST, max(_FEWEST, _VALUES // math.prod(spec.shape)))
    seen = {image_digest(code) for used in exclude for codes, _ in used.each_shard() for code in codes}
    sources = tuple(dict.fromkeys(item.source for item in sets))
    images, source = [], []
    for item in sets:
        if item.source.endswith(_USED):
            message = (
                f"The images of '{item.path}' are {item.source}: they made or selected a student, and cannot judge it. "
                "Give images/grading.safetensors of a run, or a set of `dfqkit synthesize`."
            )
            raise ArtefactError(message)
        if item.spec != spec or task_of(item.task) != task:
            message = (
                f"'{item.path}' holds images of {item.spec}, '{sets[0].path}' of {spec}. Give sets of one kind, made "
                "for one task."
            )
            raise ArtefactError(message)
        for code in item.take(spread(len(item), max(1, most // len(sets))))[0]:
            digest = image_digest(code)
            if digest not in seen:
                seen.add(digest)
                images.append(code)
                source.append(sources.index(item.source))
    if len(images) < LEAST:
        message = f"Only {len(images)} different images to choose from; at least {LEAST} are needed. Give more images."
        raise ArtefactError(message)
    return Candidates(spec=spec, images=np.stack(images), source=np.array(source, np.int16), sources=sources, task=task)


def spread_out(
    found: NDArray[np.float64], groups: NDArray[np.int64], candidates: Candidates, count: int
) -> NDArray[np.int64]:
    """Return the places with the largest scores; while there are others, none of a group with twice its share.

    Scores (N,) that are not finite cannot be chosen; groups (N,) are the teacher's.
    """
    order = np.argsort(-found, kind="stable")
    order = order[np.isfinite(found[order])]
    sorts = [sort[order].tolist() for sort in (groups, candidates.source)]
    most = [math.ceil(2 * count / len(set(sort))) for sort in sorts]
    used: tuple[Counter[int], ...] = (Counter(), Counter())
    taken: list[int] = []
    left: list[int] = []
    for place, *own in zip(order.tolist(), *sorts, strict=True):
        if any(counts[group] >= limit for counts, group, limit in zip(used, own, most, strict=True)):
            left.append(place)
            continue
        taken.append(place)
        for counts, group in zip(used, own, strict=True):
            counts[group] += 1
    return np.array((taken + left)[:count], np.int64)
