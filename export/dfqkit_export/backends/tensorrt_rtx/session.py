"""TensorRT-RTX: engines built ahead of time on any machine, with or without a GPU, and run where there is one.

What belongs here: asking for a build. Its builder shares TensorRT's ONNX importer, so a file it refuses, TensorRT will
most likely refuse too; a file it accepts has still not been seen by TensorRT.
"""

from __future__ import annotations

from pathlib import Path

from dfqkit_export.backends.base import not_installed
from dfqkit_export.backends.tensorrt.engines import Build, build_isolated, check_batches, require
from dfqkit_export.backends.tensorrt.session import EngineSession, load_built, missing_gpu
from dfqkit_export.errors import TargetError

# Those that RTX 1.7 compiles int8 convolutions for, ahead of time.
COMPUTE_CAPABILITIES = ("SM80", "SM86", "SM89", "SM120", "SM121")
_MODULE = "tensorrt_rtx"


def build(
    path: str | Path,
    out: str | Path | None = None,
    *,
    compute_capability: str | None = "SM86",
    batches: tuple[int, int, int] = (1, 8, 32),
    timeout: float = 600.0,
) -> Build:
    """Build an engine, without a GPU, in a process of its own; a file that is refused is a result and no error.

    Args:
        path: The ONNX file; nothing but its batch may be symbolic.
        out: Where to keep the engine; None keeps none.
        compute_capability: The GPUs to build for, one of `COMPUTE_CAPABILITIES`; None for this machine's GPU.
        batches: Smallest, best and largest batch.
        timeout: Seconds after which the builder is stopped.
    """
    require("TensorRT-RTX", not_installed(_MODULE, extra="tensorrt-rtx"))
    if compute_capability not in (*COMPUTE_CAPABILITIES, None):
        message = (
            f"TensorRT-RTX cannot build for {compute_capability!r} ahead of time. "
            f"Allowed: {', '.join(COMPUTE_CAPABILITIES)}."
        )
        raise TargetError(message)
    options = {
        "profile": check_batches(batches),
        "compute_capability": compute_capability if compute_capability is not None else "CURRENT",
    }
    return build_isolated("tensorrt-rtx", path, out, options, timeout=timeout)


def load(path: str | Path) -> EngineSession:
    """Build an ONNX file for this machine's GPU and load the engine."""
    require("TensorRT-RTX", not_installed(_MODULE, extra="tensorrt-rtx") or missing_gpu())
    return load_built(lambda engine: build(path, engine, compute_capability=None))
