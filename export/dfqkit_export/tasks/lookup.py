"""Tasks made of what a recipe or file says of them, and said so that they can be made again.

What belongs here: what stands under ``task`` in recipes and files, in both directions. Which tasks there are is
`dfqkit_export.tasks`, what a task must be able to say `base`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from dfqkit_export.errors import ArtefactError
from dfqkit_export.tasks import DEFAULT_NAME, GROUP, task_names
from dfqkit_export.tasks.base import Task
from dfqkit_export.words import did_you_mean

#: The entry of an ONNX file's metadata, JSON; a file without it is of the default task.
METADATA = "dfqkit.task"


@cache
def task_class(name: str) -> type[Task]:
    """Return the task called ``name``."""
    known = task_names()
    if name not in known:
        message = f"Unknown task {name!r:.80}.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}."
        raise ArtefactError(message)
    module, _, attribute = known[name].partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # whatever another's module raises when it is imported
        message = (
            f"Task {name!r} ({known[name]}) cannot be imported: {error}. Repair or remove the package that offers it "
            f"under the entry point {GROUP!r}."
        )
        raise ArtefactError(message) from error
    if not (isinstance(found, type) and issubclass(found, Task) and found.name == name):
        message = f"Task {name!r} ({known[name]}) is no dfqkit_export.tasks.Task of that name."
        raise ArtefactError(message)
    return found


#: What a recipe, a file or a set is about that does not say.
DEFAULT_TASK: Task = task_class(DEFAULT_NAME)()


def task_of(entry: Mapping[str, Any] | None) -> Task:
    """Make the task that a recipe or file names, with its own parameters; the default where it names none."""
    if not entry:
        return DEFAULT_TASK
    kind = task_class(str(entry.get("name")))
    try:
        return kind(**{key: _frozen(value) for key, value in entry.items() if key != "name"})
    except (TypeError, ValueError) as error:
        message = f"Task {kind.name!r} cannot be made of {dict(entry)!s:.200}: {error}."
        raise ArtefactError(message) from error


def _frozen(value: Any) -> Any:
    """Return lists of JSON as the tuples that they were."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def task_in(metadata: Mapping[str, str]) -> Task:
    """Return the task that the metadata of an ONNX file name; the default where they name none."""
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
