"""Codes of weights that several nodes read, each given to one of them alone, and int8 ones as uint8.

What belongs here: the form of a quantized file that ONNX Runtime can make exact on processors without VNNI. Its
transformer (`session.x64quantprecision`) writes each int8 tensor anew as uint8, and ends in an error where it meets one
a second time ("Attempt to replace the existing tensor", measured, 1.32).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

#: Layers of the domain that the runtime's optimizer writes, and where they have their weights and zero points.
_OWN = frozenset({("com.microsoft", "QLinearConv"), ("com.microsoft", "QGemm")})
_WEIGHT, _ZERO_POINT = 3, 5


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


def signed_weights(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the layers of the runtime's own domain whose weights are int8: its transformer leaves them as they are."""
    codes = _codes(model.graph)
    return [
        node
        for node in model.graph.node
        if (node.domain, node.op_type) in _OWN and len(node.input) > _ZERO_POINT and node.input[_WEIGHT] in codes
    ]


def unsign_weights(model: onnx.ModelProto) -> None:
    """Store the weights of `signed_weights` as uint8, in place: codes and zero points 128 higher, the same numbers."""
    codes = _codes(model.graph)
    made: dict[str, str] = {}
    taken = {tensor.name for tensor in model.graph.initializer} | {n for node in model.graph.node for n in node.output}
    for node in signed_weights(model):
        for place in (_WEIGHT, _ZERO_POINT):
            name = node.input[place]
            if name in codes and name not in made:
                made[name] = _free(name, taken)
                values = numpy_helper.to_array(codes[name]).astype(np.int16) + 128
                model.graph.initializer.append(numpy_helper.from_array(values.astype(np.uint8), made[name]))
            node.input[place] = made.get(name, name)


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
