"""TensorRT for RTX: engines built ahead of time on any machine, with or without a GPU, and run where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dfqkit_export.backends.base import Backend, Options, not_installed
from dfqkit_export.backends.tensorrt_rtx import targets

if TYPE_CHECKING:
    from dfqkit_export.backends.precision import Realised
    from dfqkit_export.backends.rule import Rule
    from dfqkit_export.backends.session import Session

__all__ = ["TENSORRT_RTX"]


def _load(path: Path, options: Options) -> Session:
    from dfqkit_export.backends.tensorrt_rtx.session import load

    return load(path)


def _missing() -> str:
    # Building needs no GPU; loading does, and says so.
    return not_installed("tensorrt_rtx", extra="tensorrt-rtx")


def _executed(path: Path) -> Realised:
    from dfqkit_export.backends.tensorrt_rtx.precision import realised_in_tensorrt_rtx

    return realised_in_tensorrt_rtx(path)


def _rules() -> tuple[Rule, ...]:
    from dfqkit_export.backends.tensorrt.rules import RULES

    return RULES


TENSORRT_RTX = Backend(
    name="tensorrt-rtx",
    title="TensorRT for RTX",
    package="tensorrt-rtx",
    load=_load,
    missing=_missing,
    targets=(targets.TENSORRT_RTX,),
    executed=_executed,
    rules=_rules,
    # Its importer is TensorRT's, and it builds without a GPU.
    witness_of=("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt"),
    on_cpu=False,
    trtexec=True,
)
