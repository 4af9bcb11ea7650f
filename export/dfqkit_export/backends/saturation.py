"""Sums of products that do not fit the 16 bits in which x86 processors without VNNI add two of them.

What belongs here: which layers of a file can meet them, by their weights' codes and the range of what they read.
`vpmaddubsw` multiplies uint8 by int8 codes, adds the products of two neighbours and cuts the sum to 16 bits. Neighbours
of a convolution are those of its input channels, then of its kernel's columns and rows, from an even place on; those of
a matrix product, of the rows of the second matrix. Depthwise convolutions add in 32 bits.

Source: ONNX Runtime, core/mlas/lib: amd64/QgemmU8S8KernelAvx2.asm, amd64/ConvSymKernelAvx2.asm, qdwconv.cpp; tested
against the emulated kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.rule import Violation
from dfqkit_export.onnxfile.graph import attribute

#: What a sum of two products may reach.
LEAST, MOST = -(2**15), 2**15 - 1
#: Two products of this code and of the largest uint8 code still fit: 2 x 255 x 64 = 32640 < 32767.
_LARGEST = 64

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What sums of two products a layer can meet.

    Attributes:
        channels: For each output channel the furthest that a sum can lie outside of 16 bits; 0 where none can.
        furthest: The sum furthest from 0 that can occur.
    """

    channels: Integers
    furthest: int


def rows_of_pairs(codes: NDArray[Any]) -> Integers:
    """Return the weights that are added two by two: shape (C_out, pairs, 2).

    Args:
        codes: Of a convolution (C_out, C_in, ...), or the rows of a matrix product (C_out, C_in).
    """
    rows = np.moveaxis(codes, 1, -1).reshape(len(codes), -1).astype(np.int64)
    return np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)


def bound(codes: NDArray[Any], low: int, high: int) -> Pairs:
    """Return what sums of two products can reach where a layer reads codes, as uint8, from ``low`` to ``high``.

    The bound is exact: each pair meets both ends where its two inputs do.
    """
    pairs = rows_of_pairs(codes)
    above, below = np.maximum(pairs, 0).sum(2), np.minimum(pairs, 0).sum(2)
    most, least = high * above + low * below, low * above + high * below
    outside = np.maximum(most - MOST, LEAST - least).max(1, initial=0).clip(min=0)
    largest, smallest = int(most.max(initial=0)), int(least.min(initial=0))
    return Pairs(channels=outside, furthest=largest if largest >= -smallest else smallest)


def met(codes: NDArray[Any], columns: Integers) -> int:
    """Return how many sums of two products lie outside of 16 bits on given codes.

    Args:
        codes: As `rows_of_pairs` takes them.
        columns: What is read, uint8 codes (n, C_in x positions of the kernel), channels last as the weights are.
    """
    pairs = rows_of_pairs(codes)
    read = np.pad(columns, ((0, 0), (0, columns.shape[1] % 2))).reshape(len(columns), -1, 2).astype(np.int64)
    sums = np.einsum("nkp,okp->nok", read, pairs)
    return int(((sums > MOST) | (sums < LEAST)).sum())


def weight_rows(layer: onnx.NodeProto, graph: QdqGraph) -> NDArray[Any] | None:
    """Return a layer's int8 codes, output channels first; None where they are none, or nothing is added in pairs."""
    weight = graph.operand(layer.input[1])
    codes = graph.constant(weight.dequantize.input[0]) if weight.dequantize is not None else None
    if codes is None or codes.dtype != np.int8 or codes.ndim < 2 or weight.activation:
        return None
    if layer.op_type == "Conv":
        return None if codes.shape[1] == 1 and attribute(layer, "group", 1) == len(codes) > 1 else codes
    if layer.op_type == "Gemm" and attribute(layer, "transB", 0):
        return codes
    return np.swapaxes(codes, -1, -2).reshape(-1, codes.shape[-2]) if layer.op_type in ("Gemm", "MatMul") else None


def range_read(dequantize: onnx.NodeProto, graph: QdqGraph) -> tuple[int, int]:
    """Return the smallest and the largest code that a DequantizeLinear of an activation can read, as uint8."""
    moved = 128 if graph.quantized_type(dequantize) == onnx.TensorProto.INT8 else 0
    low, high = 0, 255
    node = graph.producer(dequantize.input[0])
    if node is not None and node.op_type == "Clip":
        ends = [graph.constant(name) if name else None for name in [*node.input[1:3], "", ""][:2]]
        low = low if ends[0] is None else int(ends[0].reshape(-1)[0]) + moved
        high = high if ends[1] is None else int(ends[1].reshape(-1)[0]) + moved
    return low, high


def bounds(graph: QdqGraph) -> Iterator[tuple[onnx.NodeProto, Pairs]]:
    """Yield the layers that add products in pairs, with what the sums can reach."""
    for layer in graph.weighted():
        codes, read = weight_rows(layer, graph), graph.operand(layer.input[0])
        if codes is not None and read.activation and read.dequantize is not None:
            yield layer, bound(codes, *range_read(read.dequantize, graph))


def saturating_pairs(graph: QdqGraph) -> Iterator[Violation]:
    """Yield the layers in which a sum of two products can lie outside of 16 bits in ONNX Runtime's kernels."""
    for layer, pairs in bounds(graph):
        count = int(np.count_nonzero(pairs.channels))
        if count:
            yield Violation(
                graph.name(layer),
                f"sums of two products reach {pairs.furthest} in {count} of {len(pairs.channels)} channels; without "
                "VNNI, they saturate at 16 bits",
            )


def saturating_weights(graph: QdqGraph) -> Iterator[Violation]:
    """Yield the layers whose int8 weights fill 8 bits, for runtimes of which it is not known what they add."""
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
