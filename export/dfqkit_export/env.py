"""Facts about this machine and its packages, and how to install what is missing.

What belongs here: what a report states about where it was made, and the command that adds an extra. Nothing is imported
to be asked for its version.
"""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from dfqkit_export.errors import MissingExtraError

__all__ = ["environment", "install_hint", "missing_extra"]

#: What the extra `torch` brings, by the names under which it is imported.
_OF_TORCH = frozenset({"torch", "torchvision", "brevitas", "onnxscript", "pkg_resources"})

_PACKAGES = (
    "dfqkit",
    "numpy",
    "onnx",
    "onnxruntime",
    "torch",
    "torchvision",
    "brevitas",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
)
# Without VNNI, x86 kernels for uint8 x int8 saturate in int16, so these decide whether two machines agree.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def environment() -> dict[str, Any]:
    """Return what the numbers measured here depend on.

    Returns:
        `python`, `platform`, `packages` (name to version, installed ones only), `cpu` with `model`, `flags` (those that
        matter to int8 kernels) and `count`, and `threads` (variables that limit threads, where set).
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "cpu": {**_cpu(_cpuinfo()), "count": _cpu_count()},
        "threads": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
    }


def install_hint(extra: str) -> str:
    """Return the command that adds an extra to this installation, from where it came: a checkout, a wheel, an index.

    Args:
        extra: One of those that ``pyproject.toml`` lists.

    Example:
        >>> install_hint("torch").endswith("[torch]'")
        True
    """
    return f"pip install '{_requirement(extra)}'"


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """Return what to say where an import failed because the extra `torch` is not installed; None for another one."""
    package = (error.name or "").partition(".")[0]
    if package not in _OF_TORCH:
        return None
    return MissingExtraError(
        f"This needs {package}, which is not installed: making students takes the extra 'torch', running and checking "
        f"files does not. Run {install_hint('torch')} (README.md says how to get torch without CUDA)."
    )


def _requirement(extra: str) -> str:
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file():
        return f"{'.' if checkout == Path.cwd() else checkout}[{extra}]"
    try:
        text = metadata.distribution("dfqkit").read_text("direct_url.json")
        origin = json.loads(text) if text else {}
    except (metadata.PackageNotFoundError, ValueError):
        origin = {}
    url, version = str(origin.get("url", "")), origin.get("vcs_info")
    if version:
        return f"dfqkit[{extra}] @ {version['vcs']}+{url}@{version['commit_id']}"
    path = Path(unquote(urlparse(url).path))
    if url.startswith("file:") and not path.exists():
        return f"FOLDER-OR-WHEEL-OF-DFQKIT[{extra}]"
    return f"{path if url.startswith('file:') else 'dfqkit'}[{extra}]"


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


def _cpu(cpuinfo: str) -> dict[str, Any]:
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
