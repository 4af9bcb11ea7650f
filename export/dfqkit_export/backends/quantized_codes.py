"""What codes a file stores, and when the same numbers could stand in another type: int8 as uint8 and back.

What belongs here: questions about codes that the rules of several runtimes ask. The change of type is
`checker.quantized_weights`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from dfqkit_export.backends.qdq import MOVES, QdqGraph
from dfqkit_export.onnxfile.graph import has_input

#: First opset whose Clip takes codes.
CLIPS_CODES = 12
_MIDDLE = 128
_HIGHEST_INT8 = 127


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


def _highest(quantize: onnx.NodeProto, graph: QdqGraph) -> int:
    """Return the highest code that any DequantizeLinear behind a quantizer of uint8 can read."""
    highest = [
        min((clip_bound(node, 2, 255, graph) for node in between if node.op_type == "Clip"), default=255)
        for _, between in graph.pair(quantize)
    ]
    return max(highest, default=255)


def clip_bound(clip: onnx.NodeProto, index: int, default: int, graph: QdqGraph) -> int:
    """Return the lower (index 1) or upper bound (2) of a Clip on codes; the default where it states none."""
    value = graph.constant(clip.input[index]) if has_input(clip, index) else None
    return default if value is None else int(value.reshape(-1)[0])


def same_parameters(first: onnx.NodeProto, second: onnx.NodeProto, graph: QdqGraph) -> bool:
    """Return whether two Q/DQ nodes have equal constant scales, and equal zero points or the same one."""
    scales = [graph.constant(node.input[1]) for node in (first, second)]
    if any(scale is None for scale in scales):
        return False
    one, other = (np.asarray(scale, np.float64).reshape(-1) for scale in scales)
    if not np.array_equal(one, other, equal_nan=True):
        return False
    if list(first.input[2:3]) == list(second.input[2:3]):
        return True
    points = [graph.constant(node.input[2]) if has_input(node, 2) else np.zeros(1) for node in (first, second)]
    if any(point is None for point in points):
        return False
    one, other = (np.unique(np.asarray(point, np.float64)) for point in points)
    return bool(np.array_equal(one, other))
