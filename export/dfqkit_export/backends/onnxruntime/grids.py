"""The codes of a file's tensors, as the runtime's kernels read and write them.

What belongs here: reading them from a graph, int8 as the uint8 that the kernels make of them.
"""

from __future__ import annotations

import onnx

from dfqkit_export.backends.onnxruntime.kernels import Codes
from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.saturation import range_read


def codes_of_two(node: onnx.NodeProto, graph: QdqGraph) -> tuple[Codes, Codes, Codes] | None:
    """Return the codes of an operator's two inputs and its output; None where they are not known."""
    read = [graph.operand(name).dequantize for name in node.input[:2]]
    quantize = next((n for n in graph.readers(graph.fused_outputs(node)[-1]) if n.op_type == "QuantizeLinear"), None)
    behind = [pair[0] for pair in graph.pair(quantize)] if quantize is not None else []
    first, second, out = (
        codes_at(each, graph) if each is not None else None
        for each in (*read, behind[0] if len(behind) == 1 else quantize)
    )
    return None if first is None or second is None or out is None else (first, second, out)


def codes_at(node: onnx.NodeProto, graph: QdqGraph) -> Codes | None:
    """Return the codes that a QuantizeLinear writes or a DequantizeLinear reads, as uint8; None if not known."""
    scale = graph.constant(node.input[1]) if len(node.input) > 1 else None
    zero = graph.zero_point(node)
    if scale is None or scale.size != 1 or zero is None:
        return None
    moved = 128 if graph.quantized_type(node) == onnx.TensorProto.INT8 else 0
    low, high = range_read(node, graph) if node.op_type == "DequantizeLinear" else (0, 255)
    return Codes(scale=float(scale.reshape(-1)[0]), zero=zero + moved, low=low, high=high)
