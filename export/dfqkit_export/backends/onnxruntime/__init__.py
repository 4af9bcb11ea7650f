"""ONNX Runtime: on the CPU with and without its optimizations, and through its other execution providers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dfqkit_export.backends.base import Backend, Options, not_installed
from dfqkit_export.backends.onnxruntime import targets

if TYPE_CHECKING:
    from dfqkit_export.backends.precision import Realised
    from dfqkit_export.backends.rule import Rule
    from dfqkit_export.backends.session import Session

__all__ = ["CPU", "CUDA", "TENSORRT", "UNOPTIMIZED"]

_INSTALL = "run pip install onnxruntime"
_INSTALL_GPU = "run pip install onnxruntime-gpu"


def _load(path: Path, options: Options) -> Session:
    from dfqkit_export.backends.onnxruntime.session import OrtSession

    return OrtSession(path, threads=options.threads)


def _load_as_written(path: Path, options: Options) -> Session:
    from dfqkit_export.backends.onnxruntime.session import OrtSession

    return OrtSession(path, threads=options.threads, optimized=False)


def _loads_with(provider: str) -> Callable[[Path, Options], Session]:
    def load(path: Path, options: Options) -> Session:
        from dfqkit_export.backends.onnxruntime.session import OrtSession

        return OrtSession(path, provider=provider)

    return load


def _lacks(provider: str, install: str) -> Callable[[], str]:
    """Return what says that a provider is missing; one that is there can still fail to load its own libraries."""

    def missing() -> str:
        from dfqkit_export.backends.onnxruntime.session import present_providers

        absent = not_installed("onnxruntime", install)
        if absent or provider in (present := present_providers()):
            return absent
        return f"this onnxruntime has no {provider} (it has {', '.join(present)}); {install}"

    return missing


def _executed(path: Path) -> Realised:
    from dfqkit_export.backends.onnxruntime.precision import realised_in_onnxruntime

    return realised_in_onnxruntime(path)


def _rules() -> tuple[Rule, ...]:
    from dfqkit_export.backends.onnxruntime.rules import RULES

    return RULES


def _rules_of_tensorrt() -> tuple[Rule, ...]:
    from dfqkit_export.backends.tensorrt.rules import RULES

    return RULES


CPU = Backend(
    name="onnxruntime",
    title="ONNX Runtime",
    package="onnxruntime",
    load=_load,
    missing=lambda: not_installed("onnxruntime", _INSTALL),
    targets=(targets.ONNXRUNTIME, targets.ONNXRUNTIME_AVX2, targets.ONNXRUNTIME_ARM),
    executed=_executed,
    rules=_rules,
    sees_layers=True,
    rounds_biases=True,
)

#: Executes Q/DQ as written, in float.
UNOPTIMIZED = Backend(
    name="onnxruntime-unoptimized",
    title="ONNX Runtime without optimizations",
    package=CPU.package,
    load=_load_as_written,
    missing=CPU.missing,
    sees_layers=True,
)

#: Has no int8 convolutions: Q/DQ is computed as written. Not executed by the maintainers, who had no GPU.
CUDA = Backend(
    name="onnxruntime-cuda",
    title="ONNX Runtime (CUDA provider)",
    package="onnxruntime-gpu",
    load=_loads_with("CUDAExecutionProvider"),
    missing=_lacks("CUDAExecutionProvider", _INSTALL_GPU),
    on_cpu=False,
)

#: Linked to TensorRT 10. Not executed by the maintainers, who had no GPU.
TENSORRT = Backend(
    name="onnxruntime-tensorrt",
    title="ONNX Runtime (TensorRT provider)",
    package=CUDA.package,
    load=_loads_with("TensorrtExecutionProvider"),
    missing=_lacks("TensorrtExecutionProvider", f"{_INSTALL_GPU}, and TensorRT 10 beside it"),
    targets=(targets.ONNXRUNTIME_TENSORRT,),
    rules=_rules_of_tensorrt,
    on_cpu=False,
    trtexec=True,
)
