"""Tasks with tensors: the part of them that training asks.

What belongs here: the table, which other packages join under the entry point group `GROUP`, by the names that they have
in `dfqkit_export.tasks`.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from dfqkit.tasks.base import Tensors, TorchTask, found_in, named, placed
from dfqkit.tasks.classification import TorchClassification
from dfqkit.tasks.detection import TorchDetection
from dfqkit.tasks.measured import TorchEmbedding, TorchKeypoints, TorchNumbers, TorchSegmentation, TorchSequence
from dfqkit_export.errors import TeacherError
from dfqkit_export.tasks import DEFAULT_TASK, Task
from dfqkit_export.tasks.classification import Classification
from dfqkit_export.tasks.dense import Dense
from dfqkit_export.tasks.detection import Detection
from dfqkit_export.tasks.embedding import Embedding
from dfqkit_export.tasks.generic import Generic
from dfqkit_export.tasks.keypoints import Keypoints
from dfqkit_export.tasks.segmentation import Segmentation
from dfqkit_export.tasks.sequence import Sequence

__all__ = ["GROUP", "Tensors", "TorchTask", "found_in", "named", "placed", "torch_task"]

#: Entry point group under which other packages offer the torch part of a task: ``name = "package.module:Class"``.
GROUP = "dfqkit.torch_tasks"

_TASKS: dict[str, type[TorchTask]] = {
    Classification.name: TorchClassification,
    Segmentation.name: TorchSegmentation,
    Detection.name: TorchDetection,
    Keypoints.name: TorchKeypoints,
    Embedding.name: TorchEmbedding,
    Sequence.name: TorchSequence,
    Dense.name: TorchNumbers,
    Generic.name: TorchNumbers,
}


@cache
def torch_task(task: Task = DEFAULT_TASK) -> TorchTask:
    """Return the torch part of a task.

    Raises:
        TeacherError: Nobody offers one.
    """
    if task.name in _TASKS:
        return _TASKS[task.name](task)
    points = entry_points(group=GROUP, name=task.name)
    if not points:
        message = (
            f"Task '{task.name}' has no torch part, so that nothing can be made for it. Its package must offer one "
            f"under the entry point group '{GROUP}'."
        )
        raise TeacherError(message)
    kind: type[TorchTask] = next(iter(points)).load()
    return kind(task)
