"""The runtimes that execute a file, with the targets that each serves: one folder a runtime, one line in the table.

What belongs here: the table, and looking things up in it. Other packages join it through the entry point group
``dfqkit.backends``, each name of which leads to a `Backend`. No runtime is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit_export.backends import onnxruntime, openvino, tensorrt, tensorrt_rtx
from dfqkit_export.backends.base import Backend
from dfqkit_export.backends.target import Target
from dfqkit_export.errors import TargetError
from dfqkit_export.words import did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "DEFAULT", "DEFAULT_TARGET", "GROUP", "UNOPTIMIZED", "all_backends", "all_targets", "as_written", "backend_of",
    "find_target", "get_backend", "get_target", "witness_for",
]  # fmt: skip

#: Entry point group under which other packages offer backends: ``name = "package.module:BACKEND"``.
GROUP = "dfqkit.backends"

#: The backend in which every file is measured, whatever it was made for.
DEFAULT = onnxruntime.CPU
#: The one that executes Q/DQ as written, in float: what the file says, without a runtime's fusions.
UNOPTIMIZED = onnxruntime.UNOPTIMIZED
#: What a file is made for where nobody says.
DEFAULT_TARGET = DEFAULT.targets[0]

_OURS = {
    backend.name: backend
    for backend in (
        onnxruntime.CPU,
        onnxruntime.UNOPTIMIZED,
        onnxruntime.CUDA,
        onnxruntime.TENSORRT,
        onnxruntime.QNN,
        onnxruntime.OPENVINO,
        openvino.OPENVINO,
        tensorrt.TENSORRT,
        tensorrt_rtx.TENSORRT_RTX,
    )
}


def all_backends() -> dict[str, Backend]:
    """Return every backend by its name; own names win over other packages'.

    What another package offers and cannot be used is among them: its `missing` says why.
    """
    from importlib.metadata import entry_points  # slow to load, and not needed for own names

    return _OURS | {point.name: _plugged(point) for point in entry_points(group=GROUP) if point.name not in _OURS}


def get_backend(name: str) -> Backend:
    """Return a backend, whether or not its runtime is installed.

    Raises:
        TargetError: None has that name; gives the nearest and all allowed ones.
    """
    known = _OURS if name in _OURS else all_backends()
    if name in known:
        return known[name]
    message = f"Unknown runtime {name!r}.{did_you_mean(name, known)} Allowed: {', '.join(known)}."
    raise TargetError(message)


def all_targets() -> dict[str, Target]:
    """Return every target by its name."""
    return _targets_of(all_backends())


def find_target(name: str) -> Target | None:
    """Return a target; None where none has that name."""
    return _targets_of(_OURS).get(name) or all_targets().get(name)


def get_target(name: str) -> Target:
    """Return a target.

    Raises:
        TargetError: None has that name; gives the nearest and all allowed ones.
    """
    found = find_target(name)
    if found is not None:
        return found
    known = all_targets()
    message = f"Unknown target {name!r}.{did_you_mean(name, known)} Allowed: {', '.join(sorted(known))}."
    raise TargetError(message)


def backend_of(target: Target) -> Backend:
    """Return the backend that executes files for a target."""
    return get_backend(target.backend)


def witness_for(target: Target) -> Backend | None:
    """Return the backend that says, without a target's hardware, what runs in integers on it; None where none does."""
    witness = next((one for one in all_backends().values() if target.name in one.witness_of), None)
    own = backend_of(target)
    return witness or (own if own.on_cpu and own.executed is not None else None)


def as_written(name: str) -> bool:
    """Return whether ONNX Runtime computes what a file for a target says only without its optimizations.

    These turn float biases into int32 with a scale that the file does not have, and the runtimes that ask for float
    biases do not. Of a target that is not in the table nothing is known, and the answer is no.
    """
    target = find_target(name)
    return target is not None and target.bias == "float"


def _targets_of(backends: dict[str, Backend]) -> dict[str, Target]:
    found: dict[str, Target] = {}
    for target in (target for one in backends.values() for target in one.targets):
        found.setdefault(target.name, target)  # own backends stand in front of other packages'
    return found


def _plugged(point: EntryPoint) -> Backend:
    """Return what another package offers, or what says why it cannot be used: it must not stop anything else."""
    try:
        found = point.load()
        if isinstance(found, Backend) and found.name == point.name:
            return found
        wrong = "is not a dfqkit_export.backends.base.Backend of that name"
    except Exception as error:
        wrong = f"cannot be imported: {error}"
    repair = f"repair or remove the package that offers it under the entry point '{GROUP}'"
    return Backend(
        name=point.name,
        title=point.name,
        package="",
        load=DEFAULT.load,  # never reached: `missing` comes first
        missing=lambda: f"{point.value} {wrong}; {repair}",
    )
