"""Tasks by name: what the outputs of a network mean.

What belongs here: the table, which other packages join under the entry point group `GROUP`. What a task must be able to
say is `base`; each task has a module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from dfqkit_export.errors import ArtefactError
from dfqkit_export.tasks.base import CLASSES, Groups, Labels, Outputs, OutputSpec, Task
from dfqkit_export.tasks.classification import Classification
from dfqkit_export.words import did_you_mean

__all__ = [
    "CLASSES", "DEFAULT_TASK", "GROUP", "METADATA", "Groups", "Labels", "OutputSpec", "Outputs", "Task", "entry_of",
    "metadata_of", "task_classes", "task_in", "task_of",
]  # fmt: skip

#: Entry point group under which other packages offer tasks: ``name = "package.module:Class"``.
GROUP = "dfqkit.tasks"

#: The entry of an ONNX file's metadata, JSON; a file without it is a classifier.
METADATA = "dfqkit.task"

_TASKS: tuple[type[Task], ...] = (Classification,)

#: What a recipe, a file or a set is about that does not say.
DEFAULT_TASK: Task = Classification()


@cache
def task_classes() -> Mapping[str, type[Task]]:
    """Return every task by name; own ones win over plugins'.

    Raises:
        ArtefactError: A plugin's task cannot be imported, or is none.
    """
    found: dict[str, type[Task]] = {}
    for point in entry_points(group=GROUP):
        try:
            kind = point.load()
        except (ImportError, AttributeError) as error:
            message = f"Task '{point.name}' ({point.value}) cannot be imported: {error}. Repair or remove its package."
            raise ArtefactError(message) from error
        if not (isinstance(kind, type) and issubclass(kind, Task) and kind.name == point.name):
            message = f"Task '{point.name}' ({point.value}) is no Task of that name. Repair or remove its package."
            raise ArtefactError(message)
        found[point.name] = kind
    return found | {kind.name: kind for kind in _TASKS}


def task_of(entry: Mapping[str, Any] | None) -> Task:
    """Make the task that a recipe or file names.

    Args:
        entry: ``name`` and the task's own parameters; nothing for the default.

    Raises:
        ArtefactError: There is no such task, or it does not take these parameters.
    """
    if not entry:
        return DEFAULT_TASK
    known, name = task_classes(), entry.get("name")
    if not isinstance(name, str) or name not in known:
        message = f"Unknown task {name!r:.80}.{did_you_mean(str(name), known)} Known: {', '.join(sorted(known))}."
        raise ArtefactError(message)
    try:
        return known[name](**{key: value for key, value in entry.items() if key != "name"})
    except (TypeError, ValueError) as error:
        message = f"Task {name!r} cannot be made of {dict(entry)!s:.200}: {error}."
        raise ArtefactError(message) from error


def task_in(metadata: Mapping[str, str]) -> Task:
    """Return the task that the metadata of an ONNX file name; the default where they name none.

    Raises:
        ArtefactError: What stands there is no task.
    """
    try:
        entry = json.loads(metadata.get(METADATA, "null"))
    except (ValueError, RecursionError):
        entry = metadata[METADATA]
    if entry is not None and not isinstance(entry, dict):
        message = f"The file's metadata name the task {entry!r:.80}, which is none. Export it again."
        raise ArtefactError(message)
    return task_of(entry)


def metadata_of(task: Task) -> dict[str, str]:
    """Return what `task_in` reads, for the metadata of an ONNX file; nothing for the default."""
    return {} if task == DEFAULT_TASK else {METADATA: json.dumps(task.to_dict(), sort_keys=True)}


def entry_of(task: Task) -> dict[str, dict[str, Any]]:
    """Return what is written beside other facts of a file, under ``task``; nothing for the default."""
    return {} if task == DEFAULT_TASK else {"task": task.to_dict()}
