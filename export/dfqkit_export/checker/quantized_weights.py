"""The same numbers in other codes: int8 as uint8 and back, for the runtimes that each take only one of them.

What belongs here: the change itself. Whether it keeps every number is `backends.quantized_codes`' question.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from dfqkit_export.backends.qdq import MOVES, QdqGraph
from dfqkit_export.backends.quantized_codes import CLIPS_CODES, can_be_signed, can_be_unsigned, clip_bound, stored_codes
from dfqkit_export.checker.editing import Editor, set_attribute
from dfqkit_export.onnxfile.graph import has_input

_MIDDLE = 128
_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid"})


def make_signed(editor: Editor, node: onnx.NodeProto) -> str:
    """Write uint8 codes as int8; see `can_be_signed`. Returns what was done, "" where nothing could be."""
    graph = editor.graph
    if not can_be_signed(node, graph):
        return ""
    codes = stored_codes(node, graph) if node.op_type == "DequantizeLinear" else None
    if codes is not None:
        node.input[0] = editor.store(f"{node.input[0]}_int8", (codes.astype(np.int16) - _MIDDLE).astype(np.int8))
        _set_zero_point(editor, node, 0, np.int8)
        return "wrote its uint8 codes around 128 as int8 around 0"
    quantize = graph.quantizer(node) if node.op_type == "DequantizeLinear" else node
    if quantize is None:
        return ""
    shift = graph.zero_point(quantize) or 0
    _convert(editor, quantize, shift=-shift, dtype=np.int8)
    return f"wrote its uint8 codes around {shift} as int8 around 0"


def make_unsigned(editor: Editor, quantize: onnx.NodeProto) -> str:
    """Write int8 codes as uint8; see `can_be_unsigned`. Returns what was done, "" where nothing could be."""
    graph = editor.graph
    if not can_be_unsigned(quantize, graph):
        return ""
    clips = graph.opset >= CLIPS_CODES
    if clips and graph.zero_point(quantize) == 0 and _is_not_negative(quantize.input[0], graph):
        if not any(node.op_type == "Clip" for _, between in graph.pair(quantize) for node in between):
            _clip(editor, quantize)
        _convert(editor, quantize, shift=0, dtype=np.uint8)
        return "wrote its int8 codes, of which none is negative, as uint8 around 0 with a Clip at 127"
    _convert(editor, quantize, shift=_MIDDLE, dtype=np.uint8)
    return "wrote its int8 codes as uint8, moved up by 128"


def _is_not_negative(tensor: str, graph: QdqGraph) -> bool:
    node = graph.source(tensor, MOVES | {"GlobalAveragePool", "AveragePool"})
    if node is None:
        return False
    if node.op_type == "Clip" and has_input(node, 1):
        low = graph.constant(node.input[1])
        return low is not None and low.dtype.kind == "f" and float(low.reshape(-1)[0]) >= 0
    return node.op_type in _NOT_NEGATIVE


def _clip(editor: Editor, quantize: onnx.NodeProto) -> None:
    codes = quantize.output[0]
    bounds = [
        editor.store(f"{quantize.name}_{name}", np.array(value, np.int8)) for name, value in (("low", 0), ("high", 127))
    ]
    clip = editor.insert("Clip", [codes, *bounds], behind=quantize)
    editor.redirect(codes, clip.output[0], but=clip)
    editor.finish()


def _convert(editor: Editor, quantize: onnx.NodeProto, *, shift: int, dtype: Any) -> None:
    graph = editor.graph
    point = (graph.zero_point(quantize) or 0) + shift
    limits = np.iinfo(dtype)
    changed: dict[str, onnx.NodeProto] = {}
    for dequantize, between in graph.pair(quantize):
        changed[dequantize.name] = dequantize
        changed.update((node.name, node) for node in between if node.op_type == "Clip")
    for node in changed.values():
        if node.op_type == "DequantizeLinear":
            _set_zero_point(editor, node, point, dtype)
            continue
        for index in (1, 2):
            if has_input(node, index):
                bound = int(np.clip(clip_bound(node, index, 0, graph) + shift, limits.min, limits.max))
                node.input[index] = editor.store(
                    f"{node.name}_{'low' if index == 1 else 'high'}", np.array(bound, dtype)
                )
    set_attribute(quantize, "output_dtype", None)
    _set_zero_point(editor, quantize, point, dtype)


def _set_zero_point(editor: Editor, node: onnx.NodeProto, value: int, dtype: Any) -> None:
    scale = editor.graph.constant(node.input[1])
    shape = () if scale is None else scale.shape
    name = editor.store(f"{node.name}_zero_point", np.full(shape, value, dtype))
    if len(node.input) > 2:
        node.input[2] = name
    else:
        node.input.append(name)
