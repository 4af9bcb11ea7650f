"""Asking a runtime by its name, as the command line gives it: for a session, or for what it makes of the layers.

What belongs here: what an unavailable runtime, or one that cannot tell, answers.
"""

from __future__ import annotations

from pathlib import Path

from dfqkit_export.backends import DEFAULT, all_backends, get_backend
from dfqkit_export.backends.base import Options
from dfqkit_export.backends.precision import Realised
from dfqkit_export.backends.session import Session
from dfqkit_export.errors import TargetError
from dfqkit_export.onnxfile.model import load_onnx
from dfqkit_export.onnxfile.parameters import check_parameters


def open_session(name: str, path: str | Path, *, threads: int | None = None) -> Session:
    """Load a file into a runtime.

    Args:
        name: One of `all_backends`.
        path: The ONNX file.
        threads: Threads that a runtime on the CPU uses; None leaves the choice to it.

    Raises:
        TargetError: No runtime has that name.
        RuntimeUnavailableError: The runtime is not installed, or has no device here; says what to do.
        ArtefactError: The file has scales that no runtime may see (`check_parameters`), or it does not accept it.
    """
    backend = get_backend(name)
    backend.require()
    check_parameters(load_onnx(path, weights=False), Path(path))
    return backend.load(Path(path), Options(threads=threads))


def realised_precision(path: str | Path, runtime: str = DEFAULT.name) -> Realised:
    """Load a file into a runtime, with all its optimizations, and report how each layer is executed.

    Args:
        path: The ONNX file; layers inside control-flow subgraphs are not looked at.
        runtime: One of `all_backends`.

    Raises:
        TargetError: No runtime has that name, or it does not tell.
        ArtefactError: The file is not a complete ONNX model, or the runtime does not accept it.
        RuntimeUnavailableError: The runtime is not installed.
    """
    backend = get_backend(runtime)
    if backend.executed is None:
        known = [name for name, one in all_backends().items() if one.executed is not None]
        message = f"Realised precision is known for {', '.join(known)}, found {runtime!r}. Name one of them."
        raise TargetError(message)
    check_parameters(load_onnx(path, weights=False), Path(path))
    return backend.executed(Path(path))
