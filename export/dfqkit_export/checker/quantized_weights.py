"""The same numbers in other codes: int8 as uint8 and back, for the runtimes that each take only one of them.

What belongs here: when a change of type keeps every number, and the change itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from dfqkit_export.checker.editing import Editor, set_attribute
from dfqkit_export.checker.graph import MOVES, QdqGraph, has_input

__all__ = ["CLIPS_CODES", "can_be_signed", "can_be_unsigned", "make_signed", "make_unsigned", "stored_codes"]

#: First opset whose Clip takes codes.
CLIPS_CODES = 12
_MIDDLE = 128
_HIGHEST_INT8 = 127
_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid"})


def stored_codes(dequantize: onnx.NodeProto, graph: QdqGraph) -> NDArray[Any] | None:
    """Return the codes that a DequantizeLinear reads from the file; None where they are computed."""
    return graph.constant(dequantize.input[0]) if dequantize.input[0] not in graph.activations else None


def can_be_signed(node: onnx.NodeProto, graph: QdqGraph) -> bool:
    """Return whether a Q or DQ node's uint8 codes can be int8 codes around zero point 0 for the same numbers."""
    if graph.quantized_type(node) != TensorProto.UINT8:
        return False
    point = graph.zero_point(node)
    if node.op_type == "DequantizeLinear" and stored_codes(node, graph) is not None:
        return point == _MIDDLE
    quantize = graph.quantizer(node) if node.op_type == "DequantizeLinear" else node
    if quantize is None or not _is_plain(quantize, graph):
        return False
    return point == _MIDDLE or (point == 0 and _highest(quantize, graph) <= _HIGHEST_INT8)


def can_be_unsigned(quantize: onnx.NodeProto, graph: QdqGraph) -> bool:
    """Return whether a QuantizeLinear's int8 codes can be uint8 codes for the same numbers."""
    known = graph.quantized_type(quantize) == TensorProto.INT8 and graph.zero_point(quantize) is not None
    return known and _is_plain(quantize, graph)


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
        if not list(_clips(quantize, graph)):
            _clip(editor, quantize)
        _convert(editor, quantize, shift=0, dtype=np.uint8)
        return "wrote its int8 codes, of which none is negative, as uint8 around 0 with a Clip at 127"
    _convert(editor, quantize, shift=_MIDDLE, dtype=np.uint8)
    return "wrote its int8 codes as uint8, moved up by 128"


def _is_plain(quantize: onnx.NodeProto, graph: QdqGraph) -> bool:
    """Whether only DequantizeLinear, with the same zero point, and what moves or clips codes read a quantizer."""
    waiting = [quantize.output[0]]
    while waiting:
        tensor = waiting.pop()
        if graph.is_output(tensor):
            return False
        for reader in graph.readers(tensor):
            if reader.op_type in MOVES | {"Clip"} and reader.input[0] == tensor:
                bounds = [graph.constant(name) for name in filter(None, reader.input[1:3])]
                if reader.op_type == "Clip" and any(bound is None for bound in bounds):
                    return False
                waiting.extend(reader.output)
            elif reader.op_type != "DequantizeLinear" or (graph.zero_point(reader) != graph.zero_point(quantize)):
                return False
    return True


def _clips(quantize: onnx.NodeProto, graph: QdqGraph) -> Iterator[onnx.NodeProto]:
    for _, between in graph.pair(quantize):
        yield from (node for node in between if node.op_type == "Clip")


def _highest(quantize: onnx.NodeProto, graph: QdqGraph) -> int:
    """The highest code that any DequantizeLinear behind a quantizer of uint8 can read."""
    highest = [
        min((_bound(node, 2, 255, graph) for node in between if node.op_type == "Clip"), default=255)
        for _, between in graph.pair(quantize)
    ]
    return max(highest, default=255)


def _bound(clip: onnx.NodeProto, index: int, default: int, graph: QdqGraph) -> int:
    value = graph.constant(clip.input[index]) if has_input(clip, index) else None
    return default if value is None else int(value.reshape(-1)[0])


def _is_not_negative(tensor: str, graph: QdqGraph) -> bool:
    node = graph.producer(tensor)
    while node is not None and node.op_type in MOVES | {"GlobalAveragePool", "AveragePool"}:
        node = graph.producer(node.input[0])
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
                bound = int(np.clip(_bound(node, index, 0, graph) + shift, limits.min, limits.max))
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
