"""What a processor's integer kernels can, by its flags.

What belongs here: reading them, and what follows from them for a file's numbers.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

# Without VNNI, x86 kernels for uint8 x int8 saturate in int16, so these decide whether two machines agree.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


@cache
def this_processor() -> Mapping[str, Any]:
    """Return `model` and those `flags` of this machine's processor that matter to int8 kernels."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""  # Not Linux.
    return cpu_of(text)


def cpu_of(cpuinfo: str) -> dict[str, Any]:
    """Read model and flags of the first processor from the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return {"model": model, "flags": [flag for flag in _FLAGS if flag in flags]}


def saturates(cpu: Mapping[str, Any]) -> bool:
    """Whether the processor (`this_processor`) is an x86 whose sums of uint8 x int8 products saturate."""
    return "avx2" in cpu["flags"] and not any(flag.endswith("vnni") for flag in cpu["flags"])
