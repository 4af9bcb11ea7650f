"""Adapters to the runtimes that execute exported models: one module a runtime, one line in the table here.

What belongs here: the table, and the modules behind the two protocols of `base`. A vendor's package is imported only
inside the functions of its adapter, and an adapter only when it is asked for.
"""

from __future__ import annotations

from importlib import import_module

from dfqkit_export.backends.session import Runtime, Session
from dfqkit_export.errors import TargetError
from dfqkit_export.words import did_you_mean

__all__ = ["RUNTIMES", "Runtime", "Session", "get_runtime"]

# Name to "module:class".
RUNTIMES: dict[str, str] = {
    "onnxruntime": "dfqkit_export.backends.onnxruntime.session:OrtRuntime",
    "onnxruntime-cuda": "dfqkit_export.backends.onnxruntime.session:OrtCudaRuntime",
    "onnxruntime-tensorrt": "dfqkit_export.backends.onnxruntime.session:OrtTensorRtRuntime",
    "openvino": "dfqkit_export.backends.openvino.session:OpenVinoRuntime",
    "tensorrt": "dfqkit_export.backends.tensorrt.runtime:TensorRtRuntime",
    "tensorrt-rtx": "dfqkit_export.backends.tensorrt_rtx.session:TensorRtRtxRuntime",
}


def get_runtime(name: str) -> Runtime:
    """Return the adapter of a runtime, whether or not the runtime itself is installed.

    Args:
        name: One of `RUNTIMES`.

    Raises:
        TargetError: No runtime has that name; gives the nearest and all allowed ones.
    """
    if name not in RUNTIMES:
        message = f"Unknown runtime {name!r}.{did_you_mean(name, RUNTIMES)} Allowed: {', '.join(RUNTIMES)}."
        raise TargetError(message)
    module, _, adapter = RUNTIMES[name].partition(":")
    runtime: Runtime = getattr(import_module(module), adapter)()
    return runtime
