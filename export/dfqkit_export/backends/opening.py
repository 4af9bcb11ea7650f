"""Opening a file by the name of a runtime, as the command line gives it.

What belongs here: names that stand for a runtime with settings, and what an unavailable one answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfqkit_export.backends.runtimes import RUNTIMES, get_runtime
from dfqkit_export.backends.session import Session
from dfqkit_export.errors import RuntimeUnavailableError, TargetError

__all__ = ["UNOPTIMIZED", "open_session", "runtime_names"]

# Executes Q/DQ as written, in float: what the file says, without the runtime's fusions.
UNOPTIMIZED = "onnxruntime-unoptimized"
_ON_THE_CPU = frozenset({"onnxruntime", "openvino"})


def runtime_names() -> tuple[str, ...]:
    """Return every name that `open_session` takes."""
    return (*RUNTIMES, UNOPTIMIZED)


def open_session(name: str, path: str | Path, *, threads: int | None = None) -> Session:
    """Load a file into a runtime.

    Args:
        name: One of `runtime_names`.
        path: The ONNX file.
        threads: Threads that a runtime on the CPU uses; None leaves the choice to it.

    Raises:
        TargetError: No runtime has that name.
        RuntimeUnavailableError: The runtime is not installed, or has no device here; says what to do.
        ArtefactError: The runtime does not accept the file.
    """
    if name not in runtime_names():
        msg = f"Unknown runtime {name!r}. Allowed: {', '.join(runtime_names())}."
        raise TargetError(msg)
    plain = name.removesuffix("-unoptimized")
    runtime = get_runtime(plain)
    missing = runtime.available()
    if missing is not None:
        msg = f"Runtime {name!r} cannot be used on this machine: {missing}"
        raise RuntimeUnavailableError(msg)
    options: dict[str, Any] = {"threads": threads} if plain in _ON_THE_CPU else {}
    if name == UNOPTIMIZED:
        options["optimized"] = False
    return runtime.load(path, **options)
