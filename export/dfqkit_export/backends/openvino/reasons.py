"""Why OpenVINO's CPU plugin computes a layer of a QDQ file in float.

What belongs here: the rules that explain a float primitive. They were observed on OpenVINO 2026.4's CPU plugin (x86
with VNNI), one small model for each. Unlike ONNX Runtime, it needs no quantized bias and no quantized output, and no
particular zero point after a ReLU.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx

from dfqkit_export.onnxfile.graph import SourceGraph

Operand = Literal["input", "weight"]

# A DequantizeLinear is moved behind these.
_TRANSPARENT = frozenset(
    {"AveragePool", "Cast", "Clip", "Concat", "DepthToSpace", "Flatten", "Identity", "MaxPool", "Mul", "Pad", "Relu"}
    | {"Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
# Matrix products take weights with any zero point.
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_EIGHT_BITS = frozenset({"int8", "uint8"})


def reason_in_openvino(layer: onnx.NodeProto, graph: SourceGraph) -> str:
    """Say why OpenVINO runs a layer in float, and what would repair it; "" where no known rule explains it."""
    operands: list[tuple[str, Operand]] = [
        (tensor, "input" if tensor in graph.activations else "weight") for tensor in layer.input[:2]
    ]
    for tensor, kind in operands:
        reason = _operand_reason(tensor, kind, layer, graph)
        if reason:
            return reason
    if layer.op_type == "MatMul" and all(kind == "input" for _, kind in operands):
        return "it multiplies two activations, which runs in float here; there is no repair in the file"
    if layer.op_type == "ConvTranspose" and _zero_points(_dequantizer(layer.input[0], graph), graph).any():
        return (
            "a transposed convolution takes only inputs with zero point 0. Quantize its input symmetrically, or to "
            "uint8 after a ReLU"
        )
    return ""


def _operand_reason(tensor: str, kind: Operand, layer: onnx.NodeProto, graph: SourceGraph) -> str:
    dequantizer = _dequantizer(tensor, graph)
    if dequantizer is None:
        return _missing_reason(tensor, kind, graph)
    types = [str(value.dtype) for name in dequantizer.input[::2] if (value := graph.constant(name)) is not None]
    if types and types[0] not in _EIGHT_BITS:
        return f"{kind} {tensor!r} is {types[0]}; integer kernels take 8 bits. Store its codes as int8 or uint8"
    if kind == "weight":
        return _weight_reason(tensor, dequantizer, layer, graph)
    return _activation_reason(tensor, dequantizer, graph)


def _missing_reason(tensor: str, kind: Operand, graph: SourceGraph) -> str:
    maker = graph.source(tensor, _TRANSPARENT)
    where = f"it comes from {maker.op_type} {maker.name!r}" if maker is not None else "it is a float tensor"
    return f"{kind} {tensor!r} has no DequantizeLinear ({where}); quantize it there"


def _weight_reason(tensor: str, dequantizer: onnx.NodeProto, layer: onnx.NodeProto, graph: SourceGraph) -> str:
    codes = graph.producer(dequantizer.input[0])
    if codes is not None and codes.op_type == "Clip":
        return f"{codes.name!r} clips the codes of weight {tensor!r}; store codes that lie in the range, without Clip"
    if layer.op_type in _CONVOLUTIONS and _zero_points(dequantizer, graph).any():
        return f"weight {tensor!r} has a zero point other than 0; quantize weights symmetrically, to int8"
    return ""


def _activation_reason(tensor: str, dequantizer: onnx.NodeProto, graph: SourceGraph) -> str:
    scales = graph.constant(dequantizer.input[1])
    if scales is not None and scales.size > 1:
        return f"{dequantizer.name!r} has {scales.size} scales; quantize activations per tensor"
    for node in graph.path(tensor, _TRANSPARENT):
        if node.op_type == "Relu" and _zero_points(dequantizer, graph).any():
            return f"Relu {node.name!r} follows {dequantizer.name!r}, whose zero point is not 0; quantize after it"
        if node.op_type == "Concat" and _mixed(node, graph):
            return f"Concat {node.name!r} joins tensors of different scales; quantize its output"
    return ""


def _dequantizer(tensor: str, graph: SourceGraph) -> onnx.NodeProto | None:
    node = graph.source(tensor, _TRANSPARENT)
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _mixed(concat: onnx.NodeProto, graph: SourceGraph) -> bool:
    makers = [_dequantizer(name, graph) for name in concat.input]
    values = [graph.constant(maker.input[1]) if maker is not None else None for maker in makers]
    known = [value for value in values if value is not None]
    return len(known) < len(makers) or any(not np.array_equal(value, known[0]) for value in known)


def _zero_points(node: onnx.NodeProto | None, graph: SourceGraph) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    stored = graph.constant(node.input[2]) if node is not None and len(node.input) > 2 else None
    return np.zeros(1, np.int64) if stored is None else np.asarray(stored, np.int64)
