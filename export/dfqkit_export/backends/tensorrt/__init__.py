"""TensorRT, and what TensorRT for RTX shares with it: engines, their layers, and the rules of the ONNX importer."""

from __future__ import annotations

from pkgutil import resolve_name

from dfqkit_export.backends.base import Backend, not_installed
from dfqkit_export.backends.tensorrt import targets

__all__ = ["TENSORRT"]

_INSTALL = (
    "no extra of dfqkit brings it, because its libraries are on NVIDIA's own index alone; install "
    "'tensorrt>=10.13,<12' as NVIDIA's installation guide says, or check the file without a GPU by --runtime "
    "tensorrt-rtx, which the extra of that name brings"
)

TENSORRT = Backend(
    name="tensorrt",
    title="TensorRT",
    package="tensorrt",
    load=lambda path, options: resolve_name(f"{__name__}.session:load")(path),
    missing=lambda: not_installed("tensorrt", _INSTALL) or resolve_name(f"{__name__}.session:missing_gpu")(),
    targets=(
        *(targets.TENSORRT, targets.TENSORRT_10, targets.TENSORRT_11),
        *(targets.TENSORRT_10_FP16, targets.TENSORRT_11_FP16),
    ),
    executed=lambda path: resolve_name(f"{__name__}.precision:realised_in_tensorrt")(path),
    rules=lambda: resolve_name(f"{__name__}.rules:RULES"),
    on_cpu=False,
    trtexec=True,
)
