"""Tasks: what the outputs of a network mean.

What belongs here: the table, a line a task, which other packages join under the entry point group `GROUP`. It is read
without numpy; what a task must be able to say is `base`, how it is found and named in files `lookup`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from dfqkit_export.lazy import attach

if TYPE_CHECKING:
    from dfqkit_export.tasks.base import CLASSES, Groups, Labels, Outputs, OutputSpec, Task
    from dfqkit_export.tasks.lookup import DEFAULT_TASK, entry_of, metadata_of, task_in, task_of
    from dfqkit_export.tasks.marks import Marks

__all__ = [
    "CLASSES", "DEFAULT_NAME", "DEFAULT_TASK", "GROUP", "Groups", "Labels", "Marks", "OutputSpec", "Outputs", "Task",
    "entry_of", "metadata_of", "task_in", "task_names", "task_of",
]  # fmt: skip

#: Entry point group under which other packages offer tasks: ``name = "package.module:Class"``.
GROUP = "dfqkit.tasks"

_TASKS = {
    "classification": "dfqkit_export.tasks.classification:Classification",
    "segmentation": "dfqkit_export.tasks.segmentation:Segmentation",
    "detection": "dfqkit_export.tasks.detection:Detection",
    "keypoints": "dfqkit_export.tasks.keypoints:Keypoints",
    "embedding": "dfqkit_export.tasks.embedding:Embedding",
    "sequence": "dfqkit_export.tasks.sequence:Sequence",
    "dense": "dfqkit_export.tasks.dense:Dense",
    "generic": "dfqkit_export.tasks.generic:Generic",
}

#: What a recipe or a file is about that does not say.
(DEFAULT_NAME, *_) = _TASKS

__getattr__, __dir__ = attach(
    __name__,
    {
        "dfqkit_export.tasks.base": "CLASSES Groups Labels OutputSpec Outputs Task",
        "dfqkit_export.tasks.lookup": "DEFAULT_TASK entry_of metadata_of task_in task_of",
        "dfqkit_export.tasks.marks": "Marks",
    },
)


def task_names() -> Mapping[str, str]:
    """Return every known name with its ``module:Class``; own names win over plugins'."""
    return {point.name: point.value for point in entry_points(group=GROUP)} | _TASKS
