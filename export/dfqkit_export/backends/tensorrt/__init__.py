"""TensorRT, and what TensorRT for RTX shares with it: engines, their layers, and the rules of the ONNX importer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dfqkit_export.backends.base import Backend, Options, not_installed
from dfqkit_export.backends.tensorrt import targets

if TYPE_CHECKING:
    from dfqkit_export.backends.precision import Realised
    from dfqkit_export.backends.rule import Rule
    from dfqkit_export.backends.session import Session

__all__ = ["TENSORRT"]

_INSTALL = (
    "no extra of dfqkit brings it, because its libraries are on NVIDIA's own index alone; install "
    "'tensorrt>=10.13,<12' as NVIDIA's installation guide says, or check the file without a GPU by --runtime "
    "tensorrt-rtx, which the extra of that name brings"
)


def _load(path: Path, options: Options) -> Session:
    from dfqkit_export.backends.tensorrt.session import load

    return load(path)


def _missing() -> str:
    from dfqkit_export.backends.tensorrt.session import missing_gpu

    return not_installed("tensorrt", _INSTALL) or missing_gpu()


def _executed(path: Path) -> Realised:
    from dfqkit_export.backends.tensorrt.precision import realised_in_tensorrt

    return realised_in_tensorrt(path)


def _rules() -> tuple[Rule, ...]:
    from dfqkit_export.backends.tensorrt.rules import RULES

    return RULES


TENSORRT = Backend(
    name="tensorrt",
    title="TensorRT",
    package="tensorrt",
    load=_load,
    missing=_missing,
    targets=(targets.TENSORRT,),
    executed=_executed,
    rules=_rules,
    on_cpu=False,
    trtexec=True,
)
