"""A file's graph with its look-ups: who makes a tensor, who reads it, what depends on the input.

What belongs here: questions about the graph as the file has it, which know no runtime and judge nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from dfqkit_export.onnxfile.skeleton import values_of

#: The names of ONNX's own domain.
OWN_DOMAINS = frozenset({"", "ai.onnx"})

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What may lie between a weight's initializer and the layer that uses it.
_WEIGHT_PATH = frozenset({"Cast", "Clip", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose"})
_FUSED_ACTIVATIONS = frozenset({"Clip", "Relu"})
_CONSTANT_CHAIN = frozenset({"Cast", "Identity"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# What may lie between a QuantizeLinear and the DequantizeLinear that reads its codes, with the same type behind it.
_CODE_PATH = frozenset({"Clip", "Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose"})


class GraphLike(Protocol):
    """What is read of a graph: `onnx.GraphProto`, or one in canonical form."""

    @property
    def node(self) -> Sequence[onnx.NodeProto]: ...  # noqa: D102 - fields of GraphProto
    @property
    def initializer(self) -> Sequence[onnx.TensorProto]: ...  # noqa: D102
    @property
    def input(self) -> Sequence[onnx.ValueInfoProto]: ...  # noqa: D102
    @property
    def output(self) -> Sequence[onnx.ValueInfoProto]: ...  # noqa: D102


class SourceGraph:
    """The file's graph with its look-ups: who makes a tensor, who reads it, what depends on the input.

    Nodes inside control flow (If, Loop) are not indexed; what they read is read by the node that holds them.

    Attributes:
        activations: Names of the tensors that depend on a graph input.
        replaceable: Names of the initializers that are graph inputs as well, as in files of old exporters.
    """

    def __init__(self, graph: GraphLike) -> None:
        """Index a checked graph, its nodes in topological order."""
        self._graph = graph
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._producer = {name: node for node in graph.node for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._outputs = {value.name for value in graph.output}
        self.replaceable = self._initializers.keys() & {value.name for value in graph.input}
        self.activations = {value.name for value in graph.input if value.name not in self._initializers}
        for node in graph.node:
            names = [*node.input, *(outer_names(node) - set(node.input))]
            for name in names:
                self._readers.setdefault(name, []).append(node)
            if node.op_type not in ("Shape", "Size") and any(name in self.activations for name in names):
                self.activations.update(node.output)

    def layers(self) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that compute on activations: weighted layers and additions of two activations."""
        for node in self._graph.node:
            dynamic = sum(name in self.activations for name in node.input)
            if (node.op_type in _LAYERS and dynamic) or (node.op_type == "Add" and dynamic == 2):
                yield node

    def weighted(self) -> Iterator[onnx.NodeProto]:
        """Yield the layers that multiply: Conv, ConvTranspose, Gemm, MatMul with an activation among their inputs."""
        for node in self.layers():
            if node.op_type in _LAYERS:
                yield node

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor; None for inputs and initializers."""
        return self._producer.get(tensor)

    def source(self, tensor: str, passed: Collection[str]) -> onnx.NodeProto | None:
        """Return the node that a tensor comes from, through operators that hand their first input on."""
        for node in self.path(tensor, passed):
            tensor = node.input[0]
        return self.producer(tensor)

    def path(self, tensor: str, passed: Collection[str]) -> Iterator[onnx.NodeProto]:
        """Yield the operators of those kinds that a tensor comes through, upwards, along their first inputs."""
        while (node := self.producer(tensor)) is not None and node.op_type in passed:
            yield node
            tensor = node.input[0]

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """Return the value of an initializer or Constant, also behind Cast and Identity.

        None where the tensor is computed, or holds no numbers.
        """
        stored = self._initializers.get(tensor)
        if stored is not None:
            return values_of(stored) if stored.data_type != TensorProto.STRING else None
        node = self._producer.get(tensor)
        if node is not None and node.op_type == "Constant":
            return _constant_value(node)
        if node is None or node.op_type not in _CONSTANT_CHAIN:
            return None
        value = self.constant(node.input[0])
        if value is None or node.op_type == "Identity":
            return value
        to = attribute(node, "to", 0)
        if to not in TensorProto.DataType.values() or to in (TensorProto.UNDEFINED, TensorProto.STRING):
            return None
        with np.errstate(all="ignore"):
            cast: NDArray[Any] = value.astype(helper.tensor_dtype_to_np_dtype(to))
        return cast

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a tensor."""
        return self._readers.get(tensor, [])

    def is_output(self, tensor: str) -> bool:
        """Return whether a tensor is an output of the graph."""
        return tensor in self._outputs

    def weight_initializer(self, layer: onnx.NodeProto) -> str | None:
        """Return the name of the initializer that a layer's weight starts from, or None."""
        if layer.op_type == "Add" or len(layer.input) < 2:
            return None
        tensor: str = layer.input[1]
        while tensor not in self._initializers:
            node = self._producer.get(tensor)
            if node is None or node.op_type not in _WEIGHT_PATH:
                return None
            tensor = node.input[0]
        return tensor

    def fused_outputs(self, layer: onnx.NodeProto) -> list[str]:
        """Return a layer's output and, where a Relu or Clip is its only reader, that one's output."""
        tensor = layer.output[0]
        readers = self.readers(tensor)
        if len(readers) == 1 and readers[0].op_type in _FUSED_ACTIVATIONS and tensor not in self._outputs:
            return [tensor, readers[0].output[0]]
        return [tensor]

    def code_type(self, node: onnx.NodeProto) -> str:
        """Return the type of the codes that a Q writes or a DQ reads, such as "int8"; "" where it is not known."""
        if has_input(node, 2):
            point = self.constant(node.input[2])
            return str(point.dtype) if point is not None else ""
        if node.op_type == "QuantizeLinear":
            stated = attribute(node, "output_dtype", 0)
            return type_name(stated) if stated else "uint8"  # ONNX's default.
        codes = self.constant(node.input[0])
        if codes is not None:
            return str(codes.dtype)
        maker = self.source(node.input[0], _CODE_PATH)
        return self.code_type(maker) if maker is not None and maker.op_type == "QuantizeLinear" else ""

    def zero_point(self, node: onnx.NodeProto) -> int | None:
        """Return a Q or DQ node's zero point where all its values are one constant; 0 where it has none."""
        if not has_input(node, 2):
            return 0
        value = self.constant(node.input[2])
        if value is None or not value.size or np.unique(value.astype(np.float64)).size != 1:
            return None
        return int(value.reshape(-1)[0])


def has_input(node: onnx.NodeProto, index: int) -> bool:
    """Return whether a node has its optional input number `index`."""
    return len(node.input) > index and bool(node.input[index])


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return a node's attribute, or what ONNX takes where it is left out."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def opset_of(model: onnx.ModelProto) -> int | None:
    """Return the version of ONNX's own operators; None where the file imports none."""
    return next((entry.version for entry in model.opset_import if entry.domain in OWN_DOMAINS), None)


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds, such as the branches of an If."""
    for item in node.attribute:
        yield from (*([item.g] if item.HasField("g") else []), *item.graphs)


def outer_names(node: onnx.NodeProto) -> set[str]:
    """Return what the graphs inside a node (If, Loop, Scan) read, their own tensors among them."""
    found: set[str] = set()
    for inner in inner_graphs(node):
        found.update(value.name for value in inner.output)
        for one in inner.node:
            found.update(one.input, outer_names(one))
    return found


def made_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of what a graph stores and of what its nodes make."""
    return {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}


def rename_tensors(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    """Rename, in place, what nodes read and make, and what is stored; the graph's own ends stay."""
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for stored in (*graph.initializer, *graph.value_info):
        stored.name = new.get(stored.name, stored.name)


def parameter_inputs(graph: onnx.GraphProto) -> set[str]:
    """Return the graph's inputs that quantizers alone read, as scale or zero point: no data, but left to the caller."""
    as_data, as_parameter = set[str](), set[str]()
    for node in graph.node:
        parameters = node.input[1:3] if node.op_type in _QUANTIZERS else []
        as_parameter.update(parameters)
        as_data.update(set(node.input) - set(parameters), node.input[:1], outer_names(node))
    return {value.name for value in graph.input} & as_parameter - as_data


def type_name(elem_type: int) -> str:
    """Return the name that people know an element type by, such as "uint8"."""
    names = {number: name.lower() for name, number in TensorProto.DataType.items()}
    return names.get(elem_type, "an unknown type") if elem_type else "an unknown type"


def _constant_value(node: onnx.NodeProto) -> NDArray[Any] | None:
    for item in node.attribute:
        if item.name == "value":
            return values_of(item.t) if item.t.data_type != TensorProto.STRING else None
        if item.name in ("value_float", "value_floats"):
            return np.array(helper.get_attribute_value(item), np.float32)
        if item.name in ("value_int", "value_ints"):
            return np.array(helper.get_attribute_value(item), np.int64)
    return None
