"""The rule that weights have their scales along the output channels, which every runtime wants.

What belongs here: this one rule for all runtimes, since the readers of engines give it as a reason, too. The others are
`checker.rules_common`.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.rule import Violation, rule
from dfqkit_export.onnxfile.graph import attribute


@rule(
    "W5",
    "warning",
    "Weight scales run along the output channels",
    repair="quantize along the output channels: axis 0 for Conv, and for Gemm with transB=1; 1 for ConvTranspose; "
    "else the last",
)
def find_wrong_axes(graph: QdqGraph) -> Iterator[Violation]:
    """Weights whose scales run along another axis than the output channels."""
    for layer in graph.weighted():
        weight = graph.operand(layer.input[1])
        if weight.activation or weight.dequantize is None:
            continue
        scale, shape = graph.constant(weight.dequantize.input[1]), graph.shape(weight.dequantize.input[0])
        if scale is None or scale.size == 1 or not shape:
            continue
        between = _between(weight.dequantize, weight.tensor, graph)
        if not between <= {"Transpose", "Identity"}:
            continue  # Where the axis went is not followed further.
        expected = _channel_axis(layer, len(shape), transposed="Transpose" in between)
        found = attribute(weight.dequantize, "axis", 1) % len(shape)
        if expected is not None and found != expected:
            yield Violation(
                graph.name(weight.dequantize),
                f"the weight of {layer.op_type} {graph.name(layer)!r} has its scales along axis {found}; the "
                f"output channels are axis {expected}, and only there they can be applied after the integer sum",
            )


def _between(dequantize: onnx.NodeProto, tensor: str, graph: QdqGraph) -> set[str]:
    """Return the operators through which dequantized weights reach a layer, such as Transpose in front of MatMul."""
    found: set[str] = set()
    while tensor != dequantize.output[0] and (node := graph.producer(tensor)) is not None:
        found.add(node.op_type)
        tensor = node.input[0]
    return found


def _channel_axis(layer: onnx.NodeProto, rank: int, *, transposed: bool) -> int | None:
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "ConvTranspose":
        return 1
    last = layer.op_type == "MatMul" or not attribute(layer, "transB", 0)
    if transposed:
        return None if rank != 2 else int(not last)
    return rank - 1 if last else 0
