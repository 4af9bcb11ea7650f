"""Adapters to the runtimes that execute exported models: one module a runtime, one line in the table here.

What belongs here: the table, and the modules behind the two protocols of `base`. A vendor's package is imported only
inside the functions of its adapter, and an adapter only when it is asked for.
"""

from __future__ import annotations

import difflib
from importlib import import_module

from ..errors import TargetError
from .base import Runtime, Session

__all__ = ["RUNTIMES", "Runtime", "Session", "get_runtime"]

# Name to "module:class", relative to this package.
RUNTIMES: dict[str, str] = {
    "onnxruntime": "ort:OrtRuntime",
    "onnxruntime-cuda": "ort:OrtCudaRuntime",
    "onnxruntime-tensorrt": "ort:OrtTensorRtRuntime",
    "openvino": "openvino:OpenVinoRuntime",
    "tensorrt": "tensorrt:TensorRtRuntime",
    "tensorrt-rtx": "tensorrt_rtx:TensorRtRtxRuntime",
}


def get_runtime(name: str) -> Runtime:
    """Return the adapter of a runtime, whether or not the runtime itself is installed.

    Args:
        name: One of `RUNTIMES`.

    Raises:
        TargetError: No runtime has that name; gives the nearest and all allowed ones.
    """
    if name not in RUNTIMES:
        near = difflib.get_close_matches(name, RUNTIMES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        msg = f"Unknown runtime {name!r}.{hint} Allowed: {', '.join(RUNTIMES)}."
        raise TargetError(msg)
    module, _, adapter = RUNTIMES[name].partition(":")
    runtime: Runtime = getattr(import_module(f".{module}", __name__), adapter)()
    return runtime
