"""One form for all files that compute the same function: what is written differently only, is equal in it.

What belongs here: the form (`form`), its graph while it is made (`workgraph`), the rewritings that lead to it, by what
they are about: what ONNX Runtime's optimizer writes (`fused`, `blocked`), quantizers (`quantizers`), all else
(`rules`). Every one of them keeps the function as real numbers have it. What a difference means is the gate's question.
"""

from __future__ import annotations

from dfqkit_export.onnxfile.canonical.form import COMMUTATIVE, CanonicalGraph, canonical
from dfqkit_export.onnxfile.canonical.quantizers import MOVES

__all__ = ["COMMUTATIVE", "MOVES", "CanonicalGraph", "canonical"]
