"""The names of `naming` brought through the ONNX exporter, which has its own.

What belongs here: a scope of its own for every call of a graph, by which the exporter says what each ONNX node was made
from, and the naming of a file's nodes and tensors by it.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from torch import Tensor, fx, nn

from dfqkit.students.inputs import is_part
from dfqkit.students.naming import FileNames, layer_names, pair_names, tensor_names, unique
from dfqkit.students.nodes import tensor_shapes
from dfqkit_export.onnxfile.graph import SourceGraph, made_names, rename_tensors

_SCOPES = "dfqkit_scopes"


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one call of a graph is called in its file.

    Attributes:
        name: Of the layer or operator; "" for a quantizer.
        pair: For a quantizer the names of its nodes, by ONNX operator.
        tensor: Of its value.
        shape: Of its value for two images; None where it is no tensor.
    """

    name: str
    pair: dict[str, str]
    tensor: str
    shape: tuple[int, ...] | None


def places(graph: fx.GraphModule, example: Tensor) -> list[Place]:
    """Return the place of every call, in the order of `in_scopes`."""
    shapes = tensor_shapes(graph, example)
    names, pairs, tensors = layer_names(graph), pair_names(graph), tensor_names(graph)
    return [
        Place(name=names.get(n, ""), pair=pairs.get(n, {}), tensor=tensors[n], shape=shapes.get(n))
        for n in _calls(graph)
    ]


def _calls(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.op in ("call_module", "call_function") and not is_part(node)]


class _Scope(nn.Module):
    """A call under a name of its own; its module lies elsewhere, so that tensors keep theirs."""

    def __init__(self, callee: Any) -> None:
        super().__init__()
        self._callee = (callee,)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._callee[0](*args, **kwargs)


def in_scopes(graph: fx.GraphModule) -> fx.GraphModule:
    """Put every call into a scope with its number, in place."""
    scopes = nn.Module()
    graph.add_module(_SCOPES, scopes)
    for index, node in enumerate(_calls(graph)):
        callee = graph.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        scopes.add_module(str(index), _Scope(callee))
        with graph.graph.inserting_before(node):
            call = graph.graph.call_module(f"{_SCOPES}.{index}", node.args, node.kwargs)
        node.replace_all_uses_with(call)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def name_graph(graph: onnx.GraphProto, known: Sequence[Place]) -> None:
    """Name nodes and tensors after the model's layers, so that every later report can speak the user's language.

    Of the nodes that an operator of torch became, the layer has the name; without one, what gives the value has it. A
    value keeps the exporter's name where its shape is not the one that torch computes there.
    """
    own = _Names(graph)
    groups: dict[int, list[onnx.NodeProto]] = {}
    for node in graph.node:
        groups.setdefault(_scope(node), []).append(node)
    used = {name for place in known for name in (place.name, *place.pair.values()) if name}
    renamed: dict[str, str] = {}
    for index, nodes in groups.items():
        place = known[index] if index >= 0 else None
        value = own.value(nodes, index)
        main = place and next(filter(None, (own.layer(nodes), own.producer(value), nodes[-1])))
        for node in nodes:
            if place is not None and node.op_type in place.pair:
                node.name = place.pair[node.op_type]
                renamed[node.output[0]] = node.name
            elif place is not None and node is main:
                node.name = place.name
            else:
                node.name = unique(own.minor(node, place.name if place else ""), used)
            used.add(node.name)
        if place is not None and value and not place.pair and own.has_shape(value, place.shape):
            renamed[value] = place.tensor
    _rename_inner(graph, renamed)


def name_ends(graph: onnx.GraphProto, names: FileNames, order: Sequence[str]) -> None:
    """Call the inputs and the outputs of a graph as another file does, in its order, in place.

    What has one of these names already gets another. The axis of the batch is called as it is there, and is open even
    where that file takes one image alone.
    """
    ends, wanted = [*graph.input, *graph.output], (*names.inputs, *names.outputs)
    new = {value.name: name for value, name in zip(ends, wanted, strict=True)}
    used = made_names(graph).union(wanted)
    for name in sorted(set(wanted).intersection(made_names(graph)).difference(new)):
        new[name] = unique(name, used)
        used.add(new[name])
    for value in ends:
        value.name = new[value.name]
        sizes = value.type.tensor_type.shape.dim
        if sizes and (sizes[0].dim_param or value.name in names.outputs):  # some side inputs have no batch
            sizes[0].dim_param = names.axes.get(value.name, {}).get(0, "N")
    rename_tensors(graph, new)
    placed = sorted(graph.output, key=lambda value: order.index(value.name))
    del graph.output[:]
    graph.output.extend(placed)


class _Names:
    """What `name_graph` asks of a file as the exporter left it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = SourceGraph(graph)
        self.layers = {node.output[0] for node in self.graph.layers()}
        self.shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)}

    def value(self, nodes: list[onnx.NodeProto], index: int) -> str:
        """Return the only tensor that others read of these nodes; "" where there are several."""
        outputs = [name for node in nodes for name in node.output if name in self.graph.activations]
        elsewhere = [name for name in outputs if any(_scope(node) != index for node in self.graph.readers(name))]
        read = [name for name in outputs if self.graph.is_output(name) or name in elsewhere]
        return read[0] if len(read) == 1 else ""

    def layer(self, nodes: list[onnx.NodeProto]) -> onnx.NodeProto | None:
        return next((node for node in reversed(nodes) if node.output[0] in self.layers), None)

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        return self.graph.producer(tensor) if tensor else None

    def minor(self, node: onnx.NodeProto, owner: str) -> str:
        """Return what to call a node that is not its operator's main one."""
        stored = node.op_type == "DequantizeLinear" and self.graph.constant(node.input[0]) is not None
        return "/".join(filter(None, (owner, node.input[0].rpartition(".")[2] if stored else node.op_type)))

    def has_shape(self, tensor: str, shape: tuple[int, ...] | None) -> bool:
        dims = self.shapes.get(tensor)
        if dims is None or shape is None:
            return shape is not None
        known = [dim.dim_value for dim in dims]
        return len(known) == len(shape) and all(size in (0, real) for size, real in zip(known, shape, strict=True))


def _scope(node: onnx.NodeProto) -> int:
    """Return the number of the call that a node was made from; -1 where the exporter does not tell."""
    for item in node.metadata_props:
        if item.key == "pkg.torch.onnx.name_scopes":
            for scope in ast.literal_eval(item.value):
                owner, _, index = str(scope).partition(".")
                if owner == _SCOPES and index.isdecimal():
                    return int(index)
    return -1


def _rename_inner(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    """Rename tensors; outputs keep their names, and what has a new one's name already gets another."""
    new = {old: name for old, name in renamed.items() if old not in {value.name for value in graph.output}}
    used = made_names(graph).union(new.values())
    for name in sorted(set(new.values()).intersection(made_names(graph)).difference(new)):
        new[name] = unique(name, used)
        used.add(new[name])
    rename_tensors(graph, new)
