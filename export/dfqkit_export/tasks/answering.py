"""A task's outputs of files and of stored sets.

What belongs here: running a session on any number of images, and reading what a set's teacher answered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.backends.session import FileSession, Session
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.images.stored import StoredBank
from dfqkit_export.tasks.base import Groups, Task
from dfqkit_export.tasks.lookup import task_of


def answer(session: Session, task: Task, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return a file's outputs for one batch (n, C, H, W), normalised, by the task's names."""
    found = session.run_all(images)
    return {ours: found[theirs] for ours, theirs in zip(task.names, task.named_in(tuple(found)), strict=True)}


def answers(session: FileSession, task: Task, images: NDArray[np.float32], batch: int = 64) -> dict[str, NDArray[Any]]:
    """Return a file's outputs for any number of images (N, C, H, W), normalised, at least one."""
    parts = [answer(session, task, part) for part in session.whole_batches(images, batch)]
    return {name: np.concatenate([part[name] for part in parts])[: len(images)] for name in task.names}


def grouped(images: StoredBank) -> Groups:
    """Return what a stored set's images are sorted by, shard by shard."""
    task = task_of(images.task)
    found = [task.groups(outputs, images.spec) for _, outputs in images.each_shard()] or [_of_none(task, images.spec)]
    first = found[0]
    confidence = None
    if first.confidence is not None:
        confidence = np.concatenate([one.confidence for one in found if one.confidence is not None])
    return Groups(
        of=np.concatenate([one.of for one in found]),
        count=first.count,
        confidence=confidence,
        one=first.one,
        many=first.many,
    )


def _of_none(task: Task, image: ImageSpec) -> Groups:
    shapes = {output.name: [size or 1 for size in output.sizes(image)] for output in task.outputs}
    return task.groups({name: np.empty((0, *shape), np.float32) for name, shape in shapes.items()}, image)
