"""What images without labels show of a file beside its float teacher.

What belongs here: `Seen`, which is measured from both sides' outputs on the same images. What follows is `judging`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks import CLASSES, Outputs, Task
from dfqkit_export.tasks.base import Limits

#: In place of minus infinity, which JSON cannot hold.
_LEAST_DB = -200.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one set of images shows.

    Attributes:
        data: The set.
        n: Images.
        agreement: Share with the same answer, in percent.
        firm_agreement: The same of the half of the images about which the teacher is surest.
        signal_db: Of each output, the power of what differs from image to image in the teacher's answers beside that of
            the file's error, in dB; the least of them. None where both are equal.
        groups: Groups (classes) that the teacher sorts the images into; 1 where the task sorts nothing.
        largest: Share of the images that are in the largest group, in percent.
        count: Groups that there are.
        confidence: How sure the teacher is of its answers, on average, from 0 to 1; None where it does not say.
        classes: Whether the outputs are numbers of classes, as those were from which the limits of `judging` come.
        limits: The task's own, for other outputs.
        kept: How much of the teacher's answers stays, in percent, where a task measures that; None elsewhere.
        empty: Share of the images in which the teacher finds nothing, in percent.
        answer: What an answer is called.
    """

    data: str
    n: int
    agreement: float
    firm_agreement: float
    signal_db: float | None
    groups: int
    largest: float
    count: int
    confidence: float | None
    classes: bool
    limits: Limits = Task.limits
    kept: float | None = None
    empty: float = 0.0
    answer: str = Task.answer


def seen(task: Task, image: ImageSpec, teacher: Outputs, file: Outputs, *, data: str) -> Seen:
    """Measure what a file's outputs show beside the teacher's, of the same images in the same order.

    Raises:
        ArtefactError: There is no image.
    """
    n = len(next(iter(teacher.values())))
    if not n:
        message = f"There is no image in {data}, so nothing can be seen on it. Give at least one."
        raise ArtefactError(message)
    same, sure = task.same_answer(teacher, file), task.margins(teacher, teacher)
    sorted_by = task.groups(teacher, image)
    return Seen(
        data=data,
        n=n,
        agreement=100.0 * float(same.mean()),
        firm_agreement=100.0 * float(same[sure >= np.median(sure)].mean()),
        signal_db=min((db for name in task.names if (db := _signal_db(teacher, file, name)) is not None), default=None),
        groups=int(np.count_nonzero(sorted_by.counts)),
        largest=100.0 * float(sorted_by.counts.max()) / n,
        count=sorted_by.count,
        confidence=None if sorted_by.confidence is None else float(sorted_by.confidence.mean()),
        classes=CLASSES in task.offers,
        limits=task.limits,
        kept=task.kept(teacher, file),
        empty=0.0 if sorted_by.nothing is None else 100.0 * float(sorted_by.counts[sorted_by.nothing]) / n,
        answer=task.answer,
    )


def nothing_lost(data: str) -> str:
    """Say why labelled images tell nothing of a file, where the task measured no loss on them."""
    return (
        f"On the labelled images of {data} the teacher itself is hardly right, or they show nothing, so that no loss "
        "can be seen on them. Check the labels and their classes, mean and std, and the weights."
    )


def _signal_db(teacher: Outputs, file: Outputs, name: str) -> float | None:
    first, second = (np.asarray(side[name], np.float64) for side in (teacher, file))
    error = float(np.square(first - second).sum())
    signal = float(np.square(first - first.mean(axis=0)).sum())
    if not error:
        return None
    return max(_LEAST_DB, 10.0 * math.log10(signal / error)) if signal else _LEAST_DB
