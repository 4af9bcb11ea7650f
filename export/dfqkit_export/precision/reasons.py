"""Why a layer of a QDQ file cannot run as an integer kernel in ONNX Runtime.

What belongs here: the fusion rules that explain a float kernel. They were observed on ONNX Runtime 1.32's CPU provider
with all optimizations on.
"""

from __future__ import annotations

import onnx

from ..source_graph import SourceGraph

__all__ = ["reason_for_float"]

_LOWEST_CODE = {"uint8": 0, "int8": -128, "uint16": 0, "int16": -(2**15)}
_FLOAT_OUTPUT = frozenset({"Gemm", "MatMul"})


def reason_for_float(layer: onnx.NodeProto, graph: SourceGraph) -> str:
    """Say why ONNX Runtime runs a layer in float, and what would repair it.

    Args:
        layer: A layer of the source graph.
        graph: That graph.

    Returns:
        A sentence; where no rule explains it, one that says so.
    """
    return _input_reason(layer, graph) or _output_reason(layer, graph) or "no known rule explains it"


def _input_reason(layer: onnx.NodeProto, graph: SourceGraph) -> str:
    operands = list(layer.input[:2])
    for tensor in operands:
        producer = graph.producer(tensor)
        if producer is not None and producer.op_type == "DequantizeLinear":
            continue
        kind = "input" if tensor in graph.activations else "weight"
        maker = (
            f"it comes from {producer.op_type} {producer.name!r}" if producer is not None else "it is a float tensor"
        )
        return f"{kind} {tensor!r} has no DequantizeLinear ({maker}); quantize it there"
    return _bias_reason(layer, graph)


def _bias_reason(layer: onnx.NodeProto, graph: SourceGraph) -> str:
    bias = layer.input[2] if len(layer.input) > 2 else ""
    if not bias:
        return ""
    producer = graph.producer(bias)
    if producer is not None and producer.op_type != "DequantizeLinear":
        found = f"comes from {producer.op_type} {producer.name!r}"
    elif producer is None and layer.op_type == "Gemm":
        # A convolution's float bias is no obstacle: the runtime quantizes such initializers itself.
        found = "is a float initializer"
    else:
        return ""
    return f"the bias {found}; store it as an int32 initializer with scale = input scale x weight scale"


def _output_reason(layer: onnx.NodeProto, graph: SourceGraph) -> str:
    tensor = graph.fused_outputs(layer)[-1]
    producer = graph.producer(tensor)
    activation = producer.op_type if producer is not None and tensor != layer.output[0] else ""
    readers = graph.readers(tensor)
    quantizers = [node for node in readers if node.op_type == "QuantizeLinear"]
    if len(quantizers) != len(readers) or not quantizers:
        if layer.op_type in _FLOAT_OUTPUT:
            return ""
        others = ", ".join(sorted({node.op_type for node in readers if node.op_type != "QuantizeLinear"}))
        where = others or ("the graph's output" if graph.is_output(tensor) else "nothing")
        return f"its output {tensor!r} reaches {where} without QuantizeLinear; quantize it there"
    return _zero_point_reason(quantizers[0], activation, graph)


def _zero_point_reason(quantizer: onnx.NodeProto, activation: str, graph: SourceGraph) -> str:
    zero_point = graph.zero_point(quantizer)
    if zero_point is None:
        return f"{quantizer.name!r} has no scalar zero point; quantize activations per tensor"
    value, dtype = zero_point
    if activation and value != _LOWEST_CODE.get(dtype, 0):
        return (
            f"{activation} is followed by {quantizer.name!r} with {dtype} zero point {value}; ONNX Runtime fuses it "
            f"only at the lowest code. Quantize after {activation} to uint8 with zero point 0"
        )
    if dtype == "int8":
        return (
            "its activations are int8, which the x86 kernels take only where the tensor has one reader. "
            "Store the same numbers as uint8 with zero point 128"
        )
    return ""
