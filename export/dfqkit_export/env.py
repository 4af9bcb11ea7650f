"""Facts about this machine and its packages that a number depends on.

What belongs here: what a report states about where it was made. Nothing is imported to be asked for its version.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from dfqkit_export.backends import all_backends
from dfqkit_export.backends.processor import this_processor

_PACKAGES = ("dfqkit", "numpy", "onnx", "torch", "torchvision", "brevitas")


def environment() -> dict[str, Any]:
    """Return what the numbers measured here depend on.

    Returns:
        `python`, `platform`, `packages` (name to version, installed ones only), `cpu` with `model`, `flags` (those that
        matter to int8 kernels) and `count`, and `threads` (variables that limit threads, where set).
    """
    packages = dict.fromkeys((*_PACKAGES, *(backend.package for backend in all_backends().values() if backend.package)))
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in packages if (version := _version(name)) is not None},
        "cpu": {**this_processor(), "count": _cpu_count()},
        "threads": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_count() -> int:
    # A container may be allowed fewer processors than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
