"""Folding BatchNormalization into the layer in front of it, whether its weights are float or stored codes.

What belongs here: the one repair that computes new parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.checker.editing import Editor
from dfqkit_export.onnxfile.graph import attribute, has_input

_PARAMETERS = 4  # gamma, beta, mean, variance
_SCALES_BY_CHANNEL = 13  # the first opset whose DequantizeLinear has them


def fold_norm(editor: Editor, node: str) -> str:
    """W11: fold a BatchNormalization into the Conv or Gemm in front of it.

    Stored codes stay as they are: a channel's factor multiplies its scale (and turns its codes' signs where negative).
    """
    norm = editor.node(node)
    layer = editor.graph.producer(norm.input[0])
    if layer is None or not _foldable(layer, norm, editor.graph):
        return ""
    graph = editor.graph
    values = [graph.constant(name) for name in norm.input[1:]]
    if any(value is None for value in values):
        return ""
    gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in values)
    with np.errstate(all="ignore"):
        factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    if not np.isfinite(factor).all():
        return ""
    bias = _bias(layer, graph, gamma.size)
    if bias is None or not _scale_weight(editor, layer, factor):
        return ""
    name = editor.store(f"{layer.name}_folded_bias", ((bias - mean) * factor + beta).astype(np.float32))
    layer.input[2:] = [name]
    result = norm.output[0]
    editor.model.graph.node.remove(norm)
    layer.output[0] = result
    return f"folded it into {layer.op_type} {layer.name!r}"


def _foldable(layer: onnx.NodeProto, norm: onnx.NodeProto, graph: QdqGraph) -> bool:
    if len(norm.input) != 1 + _PARAMETERS or attribute(norm, "training_mode", 0) or len(norm.output) != 1:
        return False
    if layer.op_type == "Gemm":
        plain = attribute(layer, "alpha", 1.0) == attribute(layer, "beta", 1.0) == 1.0
        return plain and bool(attribute(layer, "transB", 0))
    return layer.op_type == "Conv"


def _bias(layer: onnx.NodeProto, graph: QdqGraph, channels: int) -> NDArray[np.float64] | None:
    if not has_input(layer, 2):
        return np.zeros(channels)
    value = graph.constant(layer.input[2])
    node = graph.producer(layer.input[2])
    if value is None and node is not None and node.op_type == "DequantizeLinear":
        codes, scale = graph.constant(node.input[0]), graph.constant(node.input[1])
        point = graph.zero_point(node)
        if codes is not None and scale is not None and point is not None:
            value = (codes.astype(np.float64) - point) * scale
    return None if value is None or value.size != channels else value.astype(np.float64).reshape(-1)


def _scale_weight(editor: Editor, layer: onnx.NodeProto, factor: NDArray[np.float64]) -> bool:
    graph = editor.graph
    weight = graph.constant(layer.input[1])
    if weight is not None:
        shaped = factor.reshape(-1, *(1 for _ in weight.shape[1:]))
        layer.input[1] = editor.store(f"{layer.input[1]}_folded", (weight * shaped).astype(weight.dtype))
        return True
    dequantize = graph.producer(layer.input[1])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return False
    return _scale_codes(editor, layer, dequantize, factor)


def _scale_codes(editor: Editor, layer: onnx.NodeProto, dequantize: onnx.NodeProto, factor: NDArray[Any]) -> bool:
    graph = editor.graph
    codes, scale = graph.constant(dequantize.input[0]), graph.constant(dequantize.input[1])
    if (
        graph.opset < _SCALES_BY_CHANNEL
        or codes is None
        or scale is None
        or graph.zero_point(dequantize) != 0
        or codes.dtype != np.int8
    ):
        return False
    if scale.size > 1 and attribute(dequantize, "axis", 1) % codes.ndim != 0:
        return False
    if not factor.all() or (codes[factor < 0] == np.iinfo(np.int8).min).any():
        return False  # A scale of 0 is none, and -(-128) is no int8.
    signs = np.sign(factor).astype(np.int8).reshape(-1, *(1 for _ in codes.shape[1:]))
    stem = dequantize.name
    folded = editor.insert(
        "DequantizeLinear",
        [
            editor.store(f"{stem}_codes", codes * signs),
            editor.store(f"{stem}_scale", (scale.reshape(-1) * np.abs(factor)).astype(np.float32)),
            editor.store(f"{stem}_zero_point", np.zeros(factor.size, np.int8)),
        ],
        behind=dequantize,
        axis=0,
    )
    layer.input[1] = folded.output[0]
    return True
