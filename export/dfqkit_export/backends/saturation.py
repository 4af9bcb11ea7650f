"""Sums of products that do not fit the 16 bits in which x86 processors without VNNI add two of them.

What belongs here: which layers of a file can meet them, whatever the runtime; a rule of each runtime reports them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.rule import Violation

#: Two products of this code and of the largest uint8 code still fit: 2 x 255 x 64 = 32640 < 32767.
_LARGEST = 64


def saturating_weights(graph: QdqGraph) -> Iterator[Violation]:
    """Yield the layers whose int8 weights fill 8 bits, for targets whose kernels must do without VNNI."""
    if not graph.target.weights.reduce_range:
        return
    for layer in graph.weighted():
        weight = graph.operand(layer.input[1])
        codes = graph.constant(weight.dequantize.input[0]) if weight.dequantize is not None else None
        if (
            codes is not None
            and codes.dtype == np.int8
            and int(np.abs(codes.astype(np.int16)).max(initial=0)) > _LARGEST
        ):
            yield Violation(
                graph.name(layer),
                "its weights fill 8 bits; without VNNI, sums of uint8 x int8 products saturate at 16 bits",
            )
