"""The float model that a quantized file stands for.

What belongs here: taking Q/DQ out of a file. Weights keep the values that their codes mean; activations are no longer
rounded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.onnxfile.graph import SourceGraph, outer_names

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_LOWEST = {"uint8": 0, "int8": -128, "uint16": 0, "int16": -(2**15)}
_FIRST_IR_WITHOUT_LISTED_INITIALIZERS = 4
# Behind these, a quantizer without codes below zero does a ReLU's work, and a writer may have left that out.
_SIGNED = frozenset({"Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"})


def float_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a QDQ model in float: weights and biases dequantized, the activations' Q, Clip and DQ left out."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = SourceGraph(twin.graph)
    constants = _constants(twin, graph)
    alias: dict[str, str] = {}
    codes: set[str] = set()
    kept: list[onnx.NodeProto] = []
    for node in twin.graph.node:
        if node.output[0] not in graph.activations:
            kept += [] if node.output[0] in constants else [node]
            continue
        coded = node.input[0] in codes
        if coded and node.op_type != _DQ:
            codes.update(node.output)
        source = alias.get(node.input[0], node.input[0])
        if node.op_type == _Q:
            codes.add(node.output[0])
            alias[node.output[0]] = _cut_off(node, source, graph, kept)
        elif node.op_type == "DynamicQuantizeLinear":
            codes.add(node.output[0])
            alias[node.output[0]] = source
        elif node.op_type == _DQ or (coded and node.op_type == "Clip"):
            alias[node.output[0]] = source
        else:
            for place, name in enumerate(node.input):
                node.input[place] = alias.get(name, name)
            kept += [_renamed(alias.pop(name), name) for name in sorted(outer_names(node)) if name in alias]
            kept.append(node)
    kept += [_renamed(alias[value.name], value.name) for value in twin.graph.output if value.name in alias]
    return _pruned(twin, kept, constants)


def _constants(model: onnx.ModelProto, graph: SourceGraph) -> dict[str, onnx.TensorProto]:
    fixed = [node for node in model.graph.node if not any(name in graph.activations for name in node.output)]
    names = [node.output[0] for node in fixed if node.op_type == _DQ]
    if not names:
        return {}
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names]
    # A session wants an input; nothing reads this one.
    unread = helper.make_tensor_value_info("unread", onnx.TensorProto.FLOAT, [1])
    part = helper.make_graph(fixed, "constants", [unread], outputs, list(model.graph.initializer))
    ir_version = max(model.ir_version, _FIRST_IR_WITHOUT_LISTED_INITIALIZERS)
    runnable = helper.make_model(part, opset_imports=list(model.opset_import), ir_version=ir_version)
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
        path = Path(folder) / "constants.onnx"
        onnx.save(runnable, str(path))
        values = OrtSession(path, threads=1, optimized=False).outputs(np.zeros(1, np.float32), names)
    return {name: numpy_helper.from_array(value, name) for name, value in zip(names, values, strict=True)}


def _renamed(source: str, name: str) -> onnx.NodeProto:
    # What a caller, or the graph inside a node, knows by a name that would be gone.
    return helper.make_node("Identity", [source], [name], name=f"{name}.float")


def _cut_off(node: onnx.NodeProto, source: str, graph: SourceGraph, kept: list[onnx.NodeProto]) -> str:
    zero_point, maker = graph.zero_point(node), graph.producer(node.input[0])
    if zero_point is None or zero_point != _LOWEST.get(graph.code_type(node)):
        return source
    if maker is None or maker.op_type not in _SIGNED:
        return source
    kept.append(
        helper.make_node("Relu", [source], [f"{node.output[0]}.relu"], name=f"{node.name or node.output[0]}.relu")
    )
    return f"{node.output[0]}.relu"


def _pruned(
    twin: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> onnx.ModelProto:
    needed = {value.name for value in twin.graph.output}
    alive: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            alive.append(node)
            needed.update(node.input)
            needed.update(outer_names(node))
    stored = {tensor.name: tensor for tensor in twin.graph.initializer} | constants
    tensors = [tensor for name, tensor in stored.items() if name in needed]
    # Those listed as inputs too could be replaced by the caller, and would be inputs alone where they are gone.
    inputs = [value for value in twin.graph.input if value.name not in stored]
    twin.ir_version = max(twin.ir_version, _FIRST_IR_WITHOUT_LISTED_INITIALIZERS)
    del twin.graph.input[:], twin.graph.node[:], twin.graph.initializer[:], twin.graph.value_info[:]
    twin.graph.input.extend(inputs)
    twin.graph.node.extend(reversed(alive))
    twin.graph.initializer.extend(tensors)
    return twin
