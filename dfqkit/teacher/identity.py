"""What a teacher is, so that another in its place is noticed: its weights, and the code that makes and runs them.

What belongs here: the identity alone; whoever keeps results of a teacher compares it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

from dfqkit.teacher.load import Teacher
from dfqkit_export.tasks import entry_of


def identity_of(teacher: Teacher) -> dict[str, Any]:
    """Return the sha256 of a teacher's weights and buffers, of each module of source of its classes, and its task.

    Layers of torch itself are left out (its version stands in a run's facts), and so is what has no source. Of a script
    or notebook that is running only the classes count, since the rest of it may change at will.
    """
    # As JSON holds it, since it is compared with what was read.
    task = json.loads(json.dumps(entry_of(teacher.task)))
    return {"sha256": teacher.sha256, "code": code_of(teacher.model, teacher.factory), **task}


def code_of(model: nn.Module | None, factory: str | None) -> dict[str, str]:
    """Return the sha256 of the source of every module that a network's classes and its factory come from, by name."""
    kinds = {kind for part in (model.modules() if model is not None else ()) for kind in type(part).__mro__}
    found = {f"{kind.__module__}.{kind.__qualname__}": _text(kind) for kind in kinds if kind.__module__ == "__main__"}
    places = {kind.__module__ for kind in kinds} - {"__main__"}
    places.add((factory or "").partition(":")[0])
    found |= {place: _source(place) for place in places if _counts(place)}
    return {name: digest for name, digest in sorted(found.items()) if digest}


def _counts(place: str) -> bool:
    top = place.partition(".")[0]
    return bool(top) and top != "torch" and top not in sys.stdlib_module_names


def _source(place: str) -> str:
    try:
        spec = importlib.util.find_spec(place)
        return hashlib.sha256(Path(str(spec.origin)).read_bytes()).hexdigest() if spec and spec.has_location else ""
    except (ImportError, ValueError, OSError):
        return ""


def _text(kind: type) -> str:
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()
    except (OSError, TypeError):  # typed into an interpreter
        return ""
