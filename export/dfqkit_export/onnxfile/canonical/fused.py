"""What ONNX Runtime's optimizer writes, in ONNX's own operators again.

What belongs here: its operators on codes (https://onnxruntime.ai/docs/ContribOperators.html and ONNX's QLinear ones),
each as the float operator between quantizers, and float operators that it fused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from dfqkit_export.onnxfile.canonical.workgraph import (
    TO_FIRST,
    TO_LAST,
    Rule,
    WorkGraph,
    plain_attributes,
    set_attribute,
)
from dfqkit_export.onnxfile.graph import attribute, has_input

_OWN_HERE = frozenset({"QuantizeLinear", "DequantizeLinear", "Gelu"})
#: Operators of one or two inputs on codes: each input is followed by its scale and zero point, then the output's.
_ON_CODES = {
    "QLinearAdd": ("Add", 2), "QLinearMul": ("Mul", 2), "QLinearMatMul": ("MatMul", 2),
    "QLinearSigmoid": ("Sigmoid", 1),
    "QLinearLeakyRelu": ("LeakyRelu", 1), "QLinearGlobalAveragePool": ("GlobalAveragePool", 1),
    "QLinearAveragePool": ("AveragePool", 1), "QLinearReduceMean": ("ReduceMean", 1), "QLinearSoftmax": ("Softmax", 1),
}  # fmt: skip
#: All operators of that kind.
ON_CODES = frozenset({"QLinearConv", "QGemm", "QLinearConcat", *_ON_CODES})


def own_domain(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Take operators of the optimizer's domain that are ONNX's by now, and ONNX's long name, as ONNX's own."""
    if node.domain == "ai.onnx" or (node.domain == "com.microsoft" and node.op_type in _OWN_HERE):
        node.domain = ""
        return True
    return False


def conv(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Open QLinearConv: nine inputs, the bias codes on the grid of input times weight."""
    x, w, y = node.input[0:3], node.input[3:6], node.input[6:8]
    last = bool(attribute(node, "channels_last", 0))
    data = _read(graph, x)
    if last:
        data = graph.add("Transpose", [data], {"perm": TO_FIRST})
    scale = graph.value(w[1], None)
    attributes = plain_attributes(node, "channels_last")
    weight = _read(graph, w, 0 if scale is not None and scale.size > 1 else None)
    inputs = [data, weight]
    if has_input(node, 8):
        inputs.append(_bias(graph, node.input[8], x[1], w[1]))
    out = graph.add("Conv", inputs, attributes, name=node.name)
    if last:
        out = graph.add("Transpose", [out], {"perm": TO_LAST})
    return graph.stand_for(node.output[0], graph.add("QuantizeLinear", [out, *y]))


def gemm(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Open QGemm: a, b, the bias codes, and the output's grid where it is not left in float."""
    a, b = node.input[0:3], node.input[3:6]
    scale = graph.value(b[1], None)
    across = attribute(node, "transB", 0)
    weight = _read(graph, b, (0 if across else 1) if scale is not None and scale.size > 1 else None)
    inputs = [_read(graph, a), weight]
    if has_input(node, 6):
        inputs.append(_bias(graph, node.input[6], a[1], b[1]))
    out = graph.add("Gemm", inputs, plain_attributes(node), name=node.name)
    if has_input(node, 7):
        out = graph.add("QuantizeLinear", [out, *node.input[7:9]])
    return graph.stand_for(node.output[0], out)


def on_codes(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Open an operator that reads codes and writes codes."""
    op, count = _ON_CODES[node.op_type]
    inputs = [_read(graph, node.input[3 * k : 3 * k + 3]) for k in range(count)]
    last = bool(attribute(node, "channels_last", 0))
    attributes = plain_attributes(node, "channels_last", *(["opset"] if op == "Softmax" else []))
    if last:
        inputs = [graph.add("Transpose", [name], {"perm": TO_FIRST}) for name in inputs]
    out = graph.add(op, inputs, attributes, name=node.name)
    if last:
        out = graph.add("Transpose", [out], {"perm": TO_LAST})
    return graph.stand_for(node.output[0], graph.add("QuantizeLinear", [out, *node.input[3 * count : 3 * count + 2]]))


def concat(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Open QLinearConcat: the output's grid first, then three for each input."""
    inputs = [_read(graph, node.input[k : k + 3]) for k in range(2, len(node.input), 3)]
    out = graph.add("Concat", inputs, plain_attributes(node), name=node.name)
    return graph.stand_for(node.output[0], graph.add("QuantizeLinear", [out, *node.input[:2]]))


def channels_last_pool(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Open NhwcMaxPool: MaxPool over codes with the channels last."""
    first = graph.add("Transpose", [node.input[0]], {"perm": TO_FIRST})
    out = graph.add("MaxPool", [first], plain_attributes(node), name=node.name)
    return graph.stand_for(node.output[0], graph.add("Transpose", [out], {"perm": TO_LAST}))


def fused_float(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Open FusedConv, FusedGemm and FusedMatMul: a layer with what was behind it."""
    op = node.op_type.removeprefix("Fused")
    leave = ("activation", "activation_params", *(("alpha", "transA", "transB") if op == "MatMul" else ()))
    inputs = list(node.input)
    if op == "MatMul":
        leave = (*leave, "transBatchA", "transBatchB")
        if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
            return False
        for place, across in enumerate(("transA", "transB")):
            if attribute(node, across, 0):
                rank = graph.rank(inputs[place])
                if rank is None or rank < 2:
                    return False
                perm = [*range(rank - 2), rank - 1, rank - 2]
                inputs[place] = graph.add("Transpose", [inputs[place]], {"perm": perm})
    added = inputs.pop(3) if op == "Conv" and len(inputs) > 3 else ""
    out = graph.add(op, inputs, plain_attributes(node, *leave), name=node.name, like=node.output[0])
    if added:
        out = graph.add("Add", [out, added])
    if op == "MatMul" and (alpha := attribute(node, "alpha", 1.0)) != 1.0:
        out = graph.add("Mul", [out, graph.constant(np.array(alpha, np.float32))])
    kind = attribute(node, "activation", b"").decode()
    if kind:
        numbers = [float(value) for value in attribute(node, "activation_params", [])]
        given: dict[str, Any] = {"alpha": numbers[0]} if kind == "LeakyRelu" and numbers else {}
        given |= dict(zip(("alpha", "beta"), numbers, strict=False)) if kind == "HardSigmoid" else {}
        bounds = [graph.constant(np.array(value, np.float32)) for value in numbers] if kind == "Clip" else []
        out = graph.add(kind, [out, *bounds], given)
    return graph.stand_for(node.output[0], out)


def matmul_of_codes(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Open MatMulIntegerToFloat: a, b, their scales and zero points, and a float bias."""
    a, b, a_scale, b_scale, a_zero, b_zero, bias = [*node.input, *[""] * 7][:7]
    scale, rank = graph.value(b_scale, None), graph.rank(b)
    across = scale is not None and scale.size > 1
    if across and rank is None:
        return False
    both = [_read(graph, [a, a_scale, a_zero]), _read(graph, [b, b_scale, b_zero], (rank or 0) - 1 if across else None)]
    out = graph.add("MatMul", both, name=node.name)
    if bias:
        out = graph.add("Add", [out, bias])
    return graph.stand_for(node.output[0], out)


def _read(graph: WorkGraph, triple: Any, axis: int | None = None) -> str:
    return graph.add("DequantizeLinear", [name for name in triple if name], {} if axis is None else {"axis": axis})


def _bias(graph: WorkGraph, codes: str, scale: str, weight_scale: str) -> str:
    """Bias codes, whose scale is that of the input times that of the weights."""
    a, b = graph.value(scale, None), graph.value(weight_scale, None)
    if a is None or b is None:
        return codes
    product = (a.reshape(-1) * b.reshape(-1)).astype(b.dtype)
    one = product.size == 1
    made = graph.constant(product.reshape(()) if one else product)
    point = graph.constant(np.zeros(() if one else product.shape, np.int32))
    return graph.add("DequantizeLinear", [codes, made, point], {} if one else {"axis": 0})


def explicit_gelu(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Call FastGelu without a bias by ONNX's name."""
    if len([name for name in node.input if name]) > 1:
        return False
    node.op_type, node.domain = "Gelu", ""
    set_attribute(node, "approximate", "tanh")
    return True


def gated(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Open QuickGelu: x * sigmoid(alpha x)."""
    x, alpha = node.input[0], float(attribute(node, "alpha", 1.702))
    inner = x if alpha == 1 else graph.add("Mul", [x, graph.constant(np.array(alpha, np.float32))])
    return graph.stand_for(node.output[0], graph.add("Mul", [x, graph.add("Sigmoid", [inner])], name=node.name))


def with_bias(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Open BiasGelu: Gelu of a sum."""
    return graph.stand_for(
        node.output[0], graph.add("Gelu", [graph.add("Add", list(node.input))], name=node.name, like=node.output[0])
    )


RULES: dict[str, tuple[Rule, ...]] = {
    "QLinearConv": (conv,),
    "QGemm": (gemm,),
    "QLinearConcat": (concat,),
    "NhwcMaxPool": (channels_last_pool,),
    "MatMulIntegerToFloat": (matmul_of_codes,),
    "FusedConv": (fused_float,),
    "FusedGemm": (fused_float,),
    "FusedMatMul": (fused_float,),
    "FastGelu": (explicit_gelu,),
    "QuickGelu": (gated,),
    "BiasGelu": (with_bias,),
    **dict.fromkeys(_ON_CODES, (on_codes,)),
}
