"""Why a layer of a QDQ file cannot run as an integer kernel in ONNX Runtime.

What belongs here: looking up and down from a layer in the *source* graph, and the fusion rules that explain a float
kernel. The rules were observed on ONNX Runtime 1.32's CPU provider with all optimizations on.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import numpy_helper

__all__ = ["SourceGraph", "reason_for_float"]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What may lie between a weight's initializer and the layer that uses it.
_WEIGHT_PATH = frozenset({"Cast", "Clip", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose"})
_FUSED_ACTIVATIONS = frozenset({"Clip", "Relu"})
_LOWEST_CODE = {"uint8": 0, "int8": -128, "uint16": 0, "int16": -(2**15)}
_FLOAT_OUTPUT = frozenset({"Gemm", "MatMul"})


class SourceGraph:
    """The file's graph with its look-ups: who makes a tensor, who reads it, what depends on the input.

    Attributes:
        activations: Names of the tensors that depend on a graph input.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        """Index the graph.

        Args:
            graph: A checked graph, nodes in topological order.
        """
        self._graph = graph
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._producer = {name: node for node in graph.node for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._outputs = {value.name for value in graph.output}
        self.activations = {value.name for value in graph.input if value.name not in self._initializers}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
            if node.op_type not in ("Shape", "Size") and any(name in self.activations for name in node.input):
                self.activations.update(node.output)

    def layers(self) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that compute on activations: weighted layers and additions of two activations."""
        for node in self._graph.node:
            dynamic = sum(name in self.activations for name in node.input)
            if (node.op_type in _LAYERS and dynamic) or (node.op_type == "Add" and dynamic == 2):
                yield node

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor; None for inputs and initializers."""
        return self._producer.get(tensor)

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a tensor."""
        return self._readers.get(tensor, [])

    def is_output(self, tensor: str) -> bool:
        """Return whether a tensor is an output of the graph."""
        return tensor in self._outputs

    def weight_initializer(self, layer: onnx.NodeProto) -> str | None:
        """Return the name of the initializer that a layer's weight starts from, or None."""
        for name in layer.input[1:2] if layer.op_type != "Add" else ():
            tensor: str = name
            while tensor not in self._initializers:
                node = self._producer.get(tensor)
                if node is None or node.op_type not in _WEIGHT_PATH:
                    return None
                tensor = node.input[0]
            return tensor
        return None

    def fused_outputs(self, layer: onnx.NodeProto) -> list[str]:
        """Return a layer's output and, where a Relu or Clip is its only reader, that one's output."""
        tensor = layer.output[0]
        readers = self.readers(tensor)
        if len(readers) == 1 and readers[0].op_type in _FUSED_ACTIVATIONS and tensor not in self._outputs:
            return [tensor, readers[0].output[0]]
        return [tensor]

    def zero_point(self, node: onnx.NodeProto) -> tuple[int, str] | None:
        """Return value and type of a Q or DQ node's scalar zero point; None where it is not a known scalar."""
        if len(node.input) < 3 or not node.input[2]:
            return 0, "uint8"  # ONNX's default.
        tensor = self._initializers.get(node.input[2])
        if tensor is None:
            return None
        values = numpy_helper.to_array(tensor)
        return (int(values.reshape(-1)[0]), str(values.dtype)) if values.size == 1 else None


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
