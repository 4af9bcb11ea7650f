"""TensorRT for RTX: engines built ahead of time on any machine, with or without a GPU, and run where there is one."""

from __future__ import annotations

from pkgutil import resolve_name

from dfqkit_export.backends import tensorrt
from dfqkit_export.backends.base import Backend, not_installed
from dfqkit_export.backends.tensorrt_rtx import targets

__all__ = ["TENSORRT_RTX"]

TENSORRT_RTX = Backend(
    name="tensorrt-rtx",
    title="TensorRT for RTX",
    package="tensorrt-rtx",
    load=lambda path, options: resolve_name(f"{__name__}.session:load")(path),
    # Building needs no GPU; loading does, and says so.
    missing=lambda: not_installed("tensorrt_rtx", extra="tensorrt-rtx"),
    targets=(targets.TENSORRT_RTX,),
    executed=lambda path: resolve_name(f"{__name__}.precision:realised_in_tensorrt_rtx")(path),
    rules=tensorrt.TENSORRT.rules,
    # Its importer is TensorRT's, and it builds without a GPU.
    witness_of=(
        *("tensorrt", "tensorrt-10", "tensorrt-11", "tensorrt-10-fp16", "tensorrt-11-fp16"),
        *("tensorrt-rtx", "onnxruntime-tensorrt"),
    ),
    on_cpu=False,
    trtexec=True,
)
