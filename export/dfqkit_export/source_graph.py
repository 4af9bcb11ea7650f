"""A file's graph with its look-ups: who makes a tensor, who reads it, what depends on the input.

What belongs here: questions about the graph as the file has it, which know no runtime and judge nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

__all__ = ["SourceGraph"]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What may lie between a weight's initializer and the layer that uses it.
_WEIGHT_PATH = frozenset({"Cast", "Clip", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose"})
_FUSED_ACTIVATIONS = frozenset({"Clip", "Relu"})


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

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """Return the value of an initializer or Constant; None where the tensor is computed."""
        stored = self._initializers.get(tensor)
        if stored is not None:
            return numpy_helper.to_array(stored)
        node = self._producer.get(tensor)
        if node is None or node.op_type != "Constant":
            return None
        value = next((item.t for item in node.attribute if item.name == "value"), None)
        return numpy_helper.to_array(value) if value is not None else None

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
