"""Where a baseline was recorded, and how this machine differs from that.

What belongs here: what of an environment can move an int8 file's numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["environment_changes", "in_ci", "recorded_environment"]

_RECORDED = ("dfqkit", "numpy", "onnx", "onnxruntime")
_TOLD = ("onnxruntime", "dfqkit")


def in_ci() -> bool:
    """Return whether this is a CI job, which must not approve its own change: the variable CI is set, and not to no."""
    return os.environ.get("CI", "").strip().lower() not in ("", "0", "false", "no")


def recorded_environment(here: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a baseline keeps of `environment()`."""
    return {
        "packages": {name: here["packages"][name] for name in _RECORDED if name in here["packages"]},
        "cpu_flags": list(here["cpu"]["flags"]),
    }


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between two environments that may move numbers: the runtime's version and CPU features.

    Args:
        before: `Baseline.environment`.
        now: `environment()`.
    """
    stated = before.get("packages")
    packages = stated if isinstance(stated, Mapping) else {}
    for name in _TOLD:
        old, new = packages.get(name), now["packages"].get(name)
        if old != new and old is not None:
            yield f"{name} was {old} when the baseline was recorded and is {new or 'not installed'}."
    flags = before.get("cpu_flags")
    if isinstance(flags, list) and flags != now["cpu"]["flags"]:
        before_flags, flags_now = {str(flag) for flag in flags}, set(now["cpu"]["flags"])
        gone, come = sorted(before_flags - flags_now), sorted(flags_now - before_flags)
        texts = [f"without {', '.join(gone)}"] * bool(gone) + [f"with {', '.join(come)}"] * bool(come)
        yield f"This processor is {' and '.join(texts)}, unlike the one of the baseline, so int8 kernels may differ."
