"""Families of kernels that ONNX Runtime's CPU provider has: one entry of the table for each, and how it is reached.

What belongs here: the table. That two processors of a family compute the same is taken from the runtime's own choice
of kernels (core/mlas/lib/platform.cpp).
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dfqkit_export.backends.processor import saturates, this_processor
from dfqkit_export.errors import TargetError
from dfqkit_export.words import did_you_mean

X86, ARM = "x86_64", "aarch64"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Processors that run the same kernels.

    Attributes:
        name: On the command line.
        title: For people.
        machine: What `platform.machine` says there.
        cpu: What qemu is told to be (`-cpu`); "" where it cannot be one.
        saturates: Whether sums of two products of 8-bit codes are cut to 16 bits.
        addition: Which of `backends.onnxruntime.kernels.ADDITIONS` it has.
        newest: The newest version of ONNX Runtime that was seen to run under qemu; "" for the installed one.
    """

    name: str
    title: str
    machine: str
    cpu: str
    saturates: bool = False
    addition: str
    newest: str = ""


#: AVX without AVX2 and FMA has no integer kernels of its own, and numpy 2.4 uses it at import whatever there is (seen).
_NO_AVX2 = "SandyBridge"
#: 1.28 to 1.32 for aarch64 end in a segmentation fault when qemu 7.2 imports them (measured).
_ARM: dict[str, Any] = {"machine": ARM, "addition": "fixed", "newest": "1.27.0"}

FAMILIES = {
    family.name: family
    for family in (
        Family(name="avx512-vnni", title="x86, AVX-512 VNNI", machine=X86, cpu="", addition="fused"),
        Family(name="avx-vnni", title="x86, AVX-VNNI", machine=X86, cpu="", addition="fused"),
        Family(name="avx2", title="x86, AVX2, no VNNI", machine=X86, cpu="Haswell", addition="fused", saturates=True),
        Family(name="sse", title="x86, SSE4.1", machine=X86, cpu=_NO_AVX2, addition="plain"),
        Family(name="neon", title="Arm, NEON", cpu="cortex-a72", **_ARM),
        Family(name="neon-dot", title="Arm, NEON, dot product", cpu="max,sve=off,sme=off", **_ARM),
    )
}  # fmt: skip


def families(names: Iterable[str]) -> list[Family]:
    """Return families by their names.

    Raises:
        TargetError: One is unknown; gives the nearest and all allowed ones.
    """
    names = list(names)
    for name in names:
        if name not in FAMILIES:
            message = f"Unknown kernel family {name!r}.{did_you_mean(name, FAMILIES)} Allowed: {', '.join(FAMILIES)}."
            raise TargetError(message)
    return [FAMILIES[name] for name in names]


def runs(names: Iterable[str], versions: Sequence[str] = ()) -> list[tuple[Family, str]]:
    """Return each family with each version of ONNX Runtime; none of a version means the one that is taken there."""
    return [(family, version) for family in families(names) for version in versions or ("",)]


def own_family() -> Family | None:
    """Return the family of this machine's processor; None where it is none of the table."""
    machine, cpu = platform.machine(), this_processor()
    flags = set(cpu["flags"])
    if machine == ARM:
        return FAMILIES["neon-dot" if "asimddp" in flags else "neon"]
    if machine not in (X86, "AMD64") or not flags:
        return None
    if saturates(cpu):
        return FAMILIES["avx2"]
    found = next(
        (name for name, flag in (("avx512-vnni", "avx512_vnni"), ("avx-vnni", "avx_vnni")) if flag in flags), ""
    )
    return FAMILIES[found or "sse"]
