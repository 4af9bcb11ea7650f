"""Codes of weights that several nodes read, each given to one of them alone.

What belongs here: the form of a quantized file that ONNX Runtime can make exact on processors without VNNI. Its
transformer (`session.x64quantprecision`) writes each int8 tensor anew as uint8, and ends in an error where it meets one
a second time ("Attempt to replace the existing tensor", measured, 1.32).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx
from onnx import TensorProto


def shares_codes(model: onnx.ModelProto) -> bool:
    """Return whether an int8 tensor, or what dequantizes one, has several readers."""
    readers = Counter(name for node in model.graph.node for name in node.input)
    codes = _codes(model.graph)
    return any(
        readers[name] > 1
        for node in _of_weights(model.graph, codes)
        for name in (*node.input, *node.output)
        if name in codes or name in node.output
    )


def separate_codes(model: onnx.ModelProto) -> None:
    """Give each reader of int8 weights a DequantizeLinear of its own, and each of these its own codes, in place.

    The first reader keeps the names; further ones are called after them. What the model computes stays.
    """
    graph = model.graph
    codes = _codes(graph)
    taken = {name for node in graph.node for name in (node.name, *node.input, *node.output)} | set(codes)
    made = {node.output[0]: node for node in _of_weights(graph, codes)}
    seen, nodes = set[str](), []
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in made and name in seen:
                copy = onnx.NodeProto()
                copy.CopyFrom(made[name])
                copy.output[0] = node.input[place] = _free(name, taken)
                copy.name = copy.name and _free(copy.name, taken)
                nodes.append(copy)
            seen.add(name)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    seen.clear()
    for node in _of_weights(graph, codes):
        for place, name in enumerate(node.input):
            if name in codes and name in seen:
                tensor = graph.initializer.add()
                tensor.CopyFrom(codes[name])
                tensor.name = node.input[place] = _free(name, taken)
            seen.add(name)


def _codes(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8}


def _of_weights(graph: onnx.GraphProto, codes: Mapping[str, TensorProto]) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in codes]


def _free(name: str, taken: set[str]) -> str:
    """Return a name after another that nothing has yet."""
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    taken.add(f"{name}_{number}")
    return f"{name}_{number}"
