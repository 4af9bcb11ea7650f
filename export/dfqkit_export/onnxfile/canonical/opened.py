"""A file of integer operators as one of float operators between quantizers, so that both are read alike.

What belongs here: making that model, to be looked at and to be run layer by layer in the file's place: the QOperator
format (QLinearConv, QGemm, ...), dynamic quantization (ConvInteger and MatMulInteger behind DynamicQuantizeLinear), and
weights in Constant nodes. It computes the same but for rounding; names of layers lose what quantizers append.
"""

from __future__ import annotations

import onnx
from onnx import helper

from dfqkit_export.onnxfile.canonical import fused
from dfqkit_export.onnxfile.canonical.form import needed_nodes, store_constants
from dfqkit_export.onnxfile.canonical.workgraph import WorkGraph, plain_attributes

_DYNAMIC = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
_APPENDED = "_quant"  # by onnxruntime.quantization to the names of the operators that it replaces


def forms(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return in which forms a model is quantized; () where it is not at all."""
    operators = {node.op_type for node in model.graph.node}
    found = {
        "Q/DQ pairs": operators & {"QuantizeLinear", "DequantizeLinear"} and not operators & fused.ON_CODES,
        "integer operators (QOperator)": operators & fused.ON_CODES,
        "dynamic quantization": operators & {*_DYNAMIC, "DynamicQuantizeLinear", "DynamicQuantizeMatMul"},
    }
    return tuple(name for name, present in found.items() if present)


def has_integer_operators(model: onnx.ModelProto) -> bool:
    """Return whether `opened` opens operators of a model."""
    return any(map(_opens, model.graph.node))


def opened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with such operators opened; the model itself where it has none and no Constant nodes."""
    if not any(_opens(node) or node.op_type == "Constant" for node in model.graph.node):
        return model
    graph = WorkGraph(model.graph, model.opset_import)
    ends = list(graph.outputs)
    store_constants(graph)
    for node in list(graph.nodes):
        if node.op_type in _DYNAMIC:
            _open_dynamic(graph, node)
        elif _opens(node):
            fused.RULES[node.op_type][0](graph, node)
    graph.resolve()
    nodes = needed_nodes(graph)
    for node in nodes:
        node.name = node.name.removesuffix(_APPENDED)
    renamed = [(now, name) for name, now in zip(ends, graph.outputs, strict=True) if name != now]
    nodes += [helper.make_node("Identity", [now], [name]) for now, name in renamed]
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.node[:], found.graph.initializer[:], found.graph.value_info[:]
    found.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | set(ends)
    for name, tensor in graph.constants.items():
        if name in used:
            found.graph.initializer.add().CopyFrom(tensor)
            found.graph.initializer[-1].name = name
    return found


def _opens(node: onnx.NodeProto) -> bool:
    return node.op_type in _DYNAMIC or node.op_type in fused.ON_CODES


def _open_dynamic(graph: WorkGraph, node: onnx.NodeProto) -> None:
    """Open a layer on codes whose result is cast and multiplied by the product of both scales."""
    codes = graph.made_by(node.input[0], "DynamicQuantizeLinear")
    scaled = _reader(graph, _reader(graph, node, "Cast") or node, "Mul")
    if codes is None or scaled is None:
        return
    product = next((made for name in scaled.input if (made := graph.made_by(name, "Mul")) is not None), None)
    scale = next((name for name in product.input if name != codes.output[1]), "") if product is not None else ""
    stored = graph.value(scale, None) if scale else None
    if stored is None:
        return
    across = 0 if node.op_type == "ConvInteger" else 1
    weight = [node.input[1], scale, *[name for name in node.input[3:4] if name]]
    if stored.size == 1 and stored.ndim:
        weight[1] = graph.constant(stored.reshape(()))
    elif stored.ndim > 1:
        weight[1] = graph.constant(stored.reshape(-1))
    if len(weight) > 2 and (zero := graph.value(weight[2], None)) is not None and zero.size != stored.size:
        weight[2] = graph.constant(zero.reshape(-1)[:1].repeat(stored.size).reshape(() if stored.size == 1 else -1))
    both = [
        graph.add("DequantizeLinear", list(codes.output)),
        graph.add("DequantizeLinear", weight, {"axis": across} if stored.size > 1 else {}),
    ]
    graph.stand_for(scaled.output[0], graph.add(_DYNAMIC[node.op_type], both, plain_attributes(node), name=node.name))


def _reader(graph: WorkGraph, node: onnx.NodeProto, op: str) -> onnx.NodeProto | None:
    found = [other for other in graph.nodes if node.output[0] in other.input and other.op_type == op]
    return found[0] if len(found) == 1 else None
