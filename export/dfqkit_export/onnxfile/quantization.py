"""How the tensors of a quantized ONNX file are stored: codes, the bits they fill, scales and zero points.

What belongs here: one weight and one activation at a time, read from the file alone. What a whole layer or file is made
of is `summary`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.onnxfile.graph import SourceGraph, attribute, has_input

#: Operators that hand values on as they are, or the largest of them, so that a pair in front of them serves behind.
_THROUGH = frozenset(
    {"Clip", "Flatten", "Identity", "MaxPool", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
_STORED_BITS = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16}


@dataclass(frozen=True, kw_only=True)
class WeightFacts:
    """How one layer's weight is stored.

    Attributes:
        dtype: Type of the codes, or of the values where they are not quantized.
        bits: Bits that the codes really fill around their zero point; those of the type where they are not quantized.
        granularity: per_tensor or per_channel; "" where they are not quantized.
        zero_point: The zero point; None where there are several, or the weight is not quantized.
        scales_sha256: Of the scales as little-endian float32; "" where they are not quantized.
        codes_sha256: Of the codes in C order with their shape; of the values where they are not quantized.
    """

    dtype: str
    bits: int
    granularity: str = ""
    zero_point: int | None = None
    scales_sha256: str = ""
    codes_sha256: str

    @property
    def quantized(self) -> bool:
        """Whether integer codes stand for the weight."""
        return bool(self.granularity)


@dataclass(frozen=True, kw_only=True)
class QuantFacts:
    """How one activation is quantized.

    Attributes:
        dtype: Type of the codes: int8, uint8, ...
        bits: Bits that the codes fill, fewer than the type's where a Clip cuts the range.
        granularity: per_tensor or per_channel.
        scale: The scale; the largest of them where there are several, None where it is not a constant.
        zero_point: The zero point; None where it is not one constant.
    """

    dtype: str
    bits: int
    granularity: str
    scale: float | None
    zero_point: int | None


def weight_of(graph: SourceGraph, layer: onnx.NodeProto) -> WeightFacts | None:
    """Return how a layer's weight is stored; None where it has none that is constant."""
    name = graph.weight_initializer(layer)
    values = graph.constant(name) if name is not None else None
    if name is None or values is None:
        return None
    dequantize = _dequantizer(graph, name)
    scale = graph.constant(dequantize.input[1]) if dequantize is not None else None
    if dequantize is None or scale is None:
        return WeightFacts(dtype=str(values.dtype), bits=8 * values.dtype.itemsize, codes_sha256=_digest(values))
    zero_point, axis = _zero_points(graph, dequantize), int(attribute(dequantize, "axis", 1))
    dtype = str(values.dtype)
    if values.dtype.kind == "f":  # a QuantizeLinear stands between the values and their DequantizeLinear
        dtype = graph.code_type(dequantize) or "uint8"
        values = _quantized(values, scale, zero_point, axis, dtype)
    return WeightFacts(
        dtype=dtype,
        bits=min(_bits_of(values, zero_point, axis), _STORED_BITS.get(dtype, 32)),
        granularity=_granularity(scale),
        zero_point=graph.zero_point(dequantize),
        scales_sha256=_digest(scale.astype("<f4").reshape(-1)),
        codes_sha256=_digest(values),
    )


def _dequantizer(graph: SourceGraph, tensor: str) -> onnx.NodeProto | None:
    """Return the DequantizeLinear that a weight's initializer passes on its way to its layer."""
    for node in graph.readers(tensor):
        if node.op_type == "DequantizeLinear":
            return node
        if node.op_type in ("Cast", "Clip", "Identity", "QuantizeLinear", "Reshape", "Transpose"):
            return _dequantizer(graph, node.output[0])
    return None


def quantization_behind(graph: SourceGraph, tensor: str) -> QuantFacts | None:
    """Return how the tensor that a layer reads is quantized, looking through what hands values on; None for float."""
    node = graph.source(tensor, _THROUGH)
    return _quantization(graph, node) if node is not None and node.op_type == "DequantizeLinear" else None


def quantization_in_front(graph: SourceGraph, tensor: str) -> QuantFacts | None:
    """Return how the tensor that a layer makes is quantized, looking through what hands values on; None for float."""
    for node in graph.readers(tensor):
        if node.op_type == "QuantizeLinear":
            return _quantization(graph, node)
        if node.op_type in _THROUGH:
            found = quantization_in_front(graph, node.output[0])
            if found is not None:
                return found
    return None


def _quantization(graph: SourceGraph, node: onnx.NodeProto) -> QuantFacts:
    scale, zero_point = graph.constant(node.input[1]), _zero_points(graph, node)
    dtype = graph.code_type(node) or "uint8"
    return QuantFacts(
        dtype=dtype,
        bits=_clipped_bits(graph, node, scale, zero_point) or _STORED_BITS.get(dtype, 8),
        granularity=_granularity(scale) if scale is not None else "per_tensor",
        scale=float(scale.max()) if scale is not None and scale.size else None,
        zero_point=graph.zero_point(node),
    )


def _clipped_bits(
    graph: SourceGraph, node: onnx.NodeProto, scale: NDArray[Any] | None, zero_point: NDArray[Any] | None
) -> int | None:
    """Bits of the range a Clip leaves: of codes between Q and DQ, or of floats in front of Q."""
    if node.op_type == "DequantizeLinear":
        maker = graph.producer(node.input[0])
        if maker is not None and maker.op_type == "Clip":
            return _bits_of_bounds(graph, maker, 1.0)
        if maker is None or maker.op_type != "QuantizeLinear":
            return None
        node = maker
    else:
        after = [reader for reader in graph.readers(node.output[0]) if reader.op_type == "Clip"]
        if after:
            return _bits_of_bounds(graph, after[0], 1.0)
    before = graph.producer(node.input[0])
    if before is None or before.op_type != "Clip" or scale is None or scale.size != 1 or zero_point is None:
        return None
    return _bits_of_bounds(graph, before, float(scale.reshape(-1)[0]))


def _bits_of_bounds(graph: SourceGraph, clip: onnx.NodeProto, scale: float) -> int | None:
    bounds = [graph.constant(name) for name in clip.input[1:3] if name]
    if len(bounds) != 2 or any(bound is None or bound.size != 1 for bound in bounds) or not scale > 0:
        return None
    low, high = (float(bound.reshape(-1)[0]) / scale for bound in bounds if bound is not None)
    steps = high - low
    return min(8, int(np.ceil(np.log2(steps + 1) - 1e-6))) if np.isfinite(steps) and steps > 0 else None


def _quantized(
    values: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any] | None, axis: int, dtype: str
) -> NDArray[Any]:
    """Codes of float weights with a QuantizeLinear behind them, as ONNX defines it."""
    with np.errstate(all="ignore"):
        codes = np.rint(values / _spread(scale, values.shape, axis))
    codes = np.nan_to_num(codes + (0 if zero_point is None else _spread(zero_point, values.shape, axis)))
    limits = np.iinfo(np.int8 if dtype == "int8" else np.uint8)
    whole: NDArray[Any] = np.clip(codes, limits.min, limits.max).astype(limits.dtype)
    return whole


def _bits_of(codes: NDArray[Any], zero_point: NDArray[Any] | None, axis: int) -> int:
    """Bits that codes fill around their zero point, at least 1."""
    if not codes.size:
        return 1
    whole = codes if codes.dtype.kind in "iu" else codes.astype(np.int16)
    points = np.zeros(1, np.int64) if zero_point is None else np.unique(zero_point.astype(np.int64))
    if points.size != 1 and zero_point is not None:
        whole, points = whole.astype(np.int32) - _spread(zero_point, codes.shape, axis).astype(np.int32), points[:0]
    # Weights may be large: where there is one zero point they are not copied for it.
    low, high = (int(edge) - int(points.sum()) for edge in (whole.min(), whole.max()))
    return max((-low - 1).bit_length() if low < 0 else 0, high.bit_length() if high > 0 else 0) + 1


def _spread(values: NDArray[Any], shape: tuple[int, ...], axis: int) -> NDArray[Any]:
    """Values along ``axis`` as they broadcast against a tensor of that shape; where they do not fit, the first."""
    rank = len(shape)
    axis = axis % rank if rank and -rank <= axis < rank else 0
    if values.ndim == rank > 1 and values.size:  # one for each block of the axis
        return np.repeat(values, -(-shape[axis] // values.shape[axis]), axis).take(range(shape[axis]), axis)
    if values.size > 1 and rank and values.size == shape[axis]:
        return values.reshape([-1 if place == axis else 1 for place in range(rank)])
    return values.reshape(-1)[:1] if values.size else np.zeros(1, values.dtype)


def _zero_points(graph: SourceGraph, node: onnx.NodeProto) -> NDArray[Any] | None:
    """Return the zero points; ONNX's default where none are given; None where they are not constant."""
    if has_input(node, 2):
        return graph.constant(node.input[2])
    return np.zeros(1, np.uint8)


def _granularity(scale: NDArray[Any]) -> str:
    return "per_channel" if scale.size > 1 else "per_tensor"


def _digest(values: NDArray[Any]) -> str:
    digest = hashlib.sha256(str(values.shape).encode())
    digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
