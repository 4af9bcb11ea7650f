"""What really ran: for each layer of a file, whether a runtime computes it in integers, and if not, why.

What belongs here: one module for each runtime, which reads that runtime's own account (an optimized graph, an
execution graph, an inspector's or a build's log) into the one form of `base`, and `reasons` for layers left in float.
"""

from __future__ import annotations

from pathlib import Path

from .base import LayerPrecision, Realised

__all__ = ["LayerPrecision", "Realised", "realised_precision"]


def realised_precision(path: str | Path) -> Realised:
    """Load a file into ONNX Runtime with all optimizations and report how each layer is executed.

    Args:
        path: The ONNX file; layers inside control-flow subgraphs are not looked at.

    Raises:
        ArtefactError: The file is not a complete ONNX model, or ONNX Runtime does not accept it.
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    from .ort import realised_in_onnxruntime

    return realised_in_onnxruntime(path)
