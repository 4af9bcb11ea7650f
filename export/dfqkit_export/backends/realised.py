"""What really ran: for each layer of a file, whether a runtime computes it in integers, and if not, why.

What belongs here: one module for each runtime, which reads that runtime's own account (an optimized graph, an
execution graph, an inspector's or a build's log) into the one form of `base`, and the reasons for layers left in float.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from dfqkit_export.backends.precision import LayerPrecision, Realised
from dfqkit_export.errors import TargetError

__all__ = ["READERS", "LayerPrecision", "Realised", "realised_precision"]

# Runtime to "module:function".
READERS: dict[str, str] = {
    "onnxruntime": "dfqkit_export.backends.onnxruntime.precision:realised_in_onnxruntime",
    "openvino": "dfqkit_export.backends.openvino.precision:realised_in_openvino",
    "tensorrt": "dfqkit_export.backends.tensorrt.inspector:realised_in_tensorrt",
    "tensorrt-rtx": "dfqkit_export.backends.tensorrt_rtx.build_log:realised_in_tensorrt_rtx",
}


def realised_precision(path: str | Path, runtime: str = "onnxruntime") -> Realised:
    """Load a file into a runtime, with all its optimizations, and report how each layer is executed.

    Args:
        path: The ONNX file; layers inside control-flow subgraphs are not looked at.
        runtime: One of `READERS`.

    Raises:
        TargetError: No runtime has that name.
        ArtefactError: The file is not a complete ONNX model, or the runtime does not accept it.
        RuntimeUnavailableError: The runtime is not installed.
    """
    if runtime not in READERS:
        msg = f"Realised precision is known for {', '.join(READERS)}, found {runtime!r}. Name one of them."
        raise TargetError(msg)
    module, _, reader = READERS[runtime].partition(":")
    realised: Realised = getattr(import_module(module), reader)(path)
    return realised
