"""A model's graph with what rules on quantization ask: constants, types, shapes, Q/DQ pairs, layers' operands.

What belongs here: questions and their answers. What is wrong with an answer is a rule's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx
from onnx import TensorProto

from dfqkit_export.backends.target import Target
from dfqkit_export.onnxfile.graph import OWN_DOMAINS, SourceGraph, attribute, has_input, opset_of
from dfqkit_export.onnxfile.shapes import inferred_types

# Operators that only move or select values, so that codes may pass through them unchanged.
MOVES = frozenset(
    {"DepthToSpace", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)
#: Operators that compute on codes by themselves.
QUANTIZED_OPERATORS = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
)


@dataclass(frozen=True, kw_only=True)
class Operand:
    """Where a layer's input comes from.

    Attributes:
        tensor: Its name.
        dequantize: The DequantizeLinear that it comes from, through operators that only move values; None where it is
            float.
        activation: Whether it depends on the model's input.
    """

    tensor: str
    dequantize: onnx.NodeProto | None
    activation: bool


class QdqGraph(SourceGraph):
    """A graph as the rules see it.

    Attributes:
        model: The model.
        target: What the file is judged for.
        nodes: The graph's nodes, in the file's order.
        opset: Version of the default ONNX domain; 0 where the file names none.
    """

    def __init__(self, model: onnx.ModelProto, target: Target) -> None:
        """Index a model.

        Args:
            model: A loaded model; it is not changed.
            target: What it is judged for.
        """
        super().__init__(model.graph)
        self.model = model
        self.target = target
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.opset = opset_of(model) or 0
        self._names = {id(node): node.name or f"{node.op_type}[{index}]" for index, node in enumerate(self.nodes)}

    @cached_property
    def _values(self) -> dict[str, Any]:
        return inferred_types(self.model)

    def name(self, node: onnx.NodeProto) -> str:
        """Return a node's name, or operator and index where it has none."""
        return self._names.get(id(node)) or node.name or node.op_type

    def of_type(self, *ops: str) -> Iterator[onnx.NodeProto]:
        """Yield the nodes of some operators of the default domain."""
        return (node for node in self.nodes if node.op_type in ops and node.domain in OWN_DOMAINS)

    def is_input(self, tensor: str) -> bool:
        """Return whether the caller gives a tensor; not so initializers that are listed as inputs too."""
        return tensor in self.activations and self.producer(tensor) is None

    def is_initializer(self, tensor: str) -> bool:
        """Return whether a tensor is stored in the file by that name."""
        return tensor in self._initializers

    def initializers(self) -> Iterator[onnx.TensorProto]:
        """Yield the stored tensors."""
        return iter(self._initializers.values())

    def elem_type(self, tensor: str) -> int:
        """Return a tensor's element type (`onnx.TensorProto.FLOAT`, ...); 0 where it is not known."""
        if tensor in self._initializers:
            return int(self._initializers[tensor].data_type)
        return int(self._values[tensor].elem_type) if tensor in self._values else 0

    def shape(self, tensor: str) -> tuple[int | None, ...] | None:
        """Return a tensor's shape, None for unknown sizes; None where not even the rank is known."""
        if tensor in self._initializers:
            return tuple(self._initializers[tensor].dims)
        value = self._values.get(tensor)
        if value is None or not value.HasField("shape"):
            return None
        return tuple(size.dim_value if size.HasField("dim_value") else None for size in value.shape.dim)

    def quantized_type(self, node: onnx.NodeProto) -> int:
        """Return the element type of the codes that a Q writes or a DQ reads, as ONNX defines it; 0 if unknown."""
        if node.op_type == "DequantizeLinear":
            return self.elem_type(node.input[0])
        if has_input(node, 2):
            return self.elem_type(node.input[2])
        return attribute(node, "output_dtype", 0) or TensorProto.UINT8

    def pair(self, quantize: onnx.NodeProto) -> Iterator[tuple[onnx.NodeProto, list[onnx.NodeProto]]]:
        """Yield each DequantizeLinear behind a QuantizeLinear, with the operators between them."""
        waiting: list[tuple[str, list[onnx.NodeProto]]] = [(quantize.output[0], [])]
        while waiting:
            tensor, between = waiting.pop()
            for reader in self.readers(tensor):
                if reader.op_type == "DequantizeLinear" and reader.input[0] == tensor:
                    yield reader, between
                elif reader.op_type in MOVES | {"Clip", "Pad"} and reader.input[0] == tensor:
                    waiting.extend((output, [*between, reader]) for output in reader.output)

    def quantizer(self, dequantize: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the QuantizeLinear whose codes a DequantizeLinear reads, through what only moves or clips them."""
        node = self.source(dequantize.input[0], MOVES | {"Clip", "Pad"})
        return node if node is not None and node.op_type == "QuantizeLinear" else None

    def operand(self, tensor: str) -> Operand:
        """Return where a layer's input comes from."""
        node = self.source(tensor, MOVES)
        found = node if node is not None and node.op_type == "DequantizeLinear" else None
        return Operand(tensor=tensor, dequantize=found, activation=tensor in self.activations)

    def only_reader(self, tensor: str) -> onnx.NodeProto | None:
        """Return the node that reads a tensor where there is exactly one and the tensor is no output of the graph."""
        readers = self.readers(tensor)
        return readers[0] if len(readers) == 1 and not self.is_output(tensor) else None
