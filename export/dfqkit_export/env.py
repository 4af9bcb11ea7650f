"""Facts about this machine and its packages that a number depends on.

What belongs here: what a report states about where it was made. Nothing is imported to be asked for its version.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from dfqkit_export.backends import all_backends

_PACKAGES = ("dfqkit", "numpy", "onnx", "torch", "torchvision", "brevitas")
# Without VNNI, x86 kernels for uint8 x int8 saturate in int16, so these decide whether two machines agree.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


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
        "cpu": {**cpu_of(_cpuinfo()), "count": _cpu_count()},
        "threads": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
    }


def saturates(cpu: Mapping[str, Any]) -> bool:
    """Whether the processor (`environment()["cpu"]`) is an x86 whose sums of uint8 x int8 products saturate."""
    return "avx2" in cpu["flags"] and not any(flag.endswith("vnni") for flag in cpu["flags"])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # Not Linux.


def cpu_of(cpuinfo: str) -> dict[str, Any]:
    """Read model and flags of the first processor from the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return {"model": model, "flags": [flag for flag in _FLAGS if flag in flags]}


def _cpu_count() -> int:
    # A container may be allowed fewer processors than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
