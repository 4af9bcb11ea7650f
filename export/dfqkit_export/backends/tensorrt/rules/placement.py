"""Where TensorRT wants the Q/DQ pairs, so that it can fuse a layer with what follows.

What belongs here: rules W7, W8 and W9, after the developer guide's placement recommendations.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from dfqkit_export.backends.qdq import MOVES, QdqGraph
from dfqkit_export.backends.rule import Violation, rule, rules_in
from dfqkit_export.onnxfile.graph import attribute, has_input

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_FUSED = frozenset({"BatchNormalization", "Clip", "LeakyRelu", "Relu"})


@rule(
    "W7",
    "warning",
    "No Q/DQ between a convolution and BatchNormalization, Relu or the Add behind it",
    repair="quantize behind the activation function; in front of an Add, only the residual branch",
)
def _find_pairs_inside_fusions(graph: QdqGraph) -> Iterator[Violation]:
    for quantize in graph.of_type("QuantizeLinear"):
        layer = graph.producer(quantize.input[0])
        if layer is None or layer.op_type not in _CONVOLUTIONS or quantize.input[0] not in graph.activations:
            continue
        for dequantize, _ in graph.pair(quantize):
            for reader in graph.readers(dequantize.output[0]):
                if reader.op_type in _FUSED and reader.input[0] == dequantize.output[0]:
                    yield Violation(
                        graph.name(quantize),
                        f"it quantizes between {layer.op_type} {graph.name(layer)!r} and {reader.op_type} "
                        f"{graph.name(reader)!r}, which would be one kernel without it",
                    )
    yield from _pairs_on_main_branches(graph)


def _pairs_on_main_branches(graph: QdqGraph) -> Iterator[Violation]:
    for add in _additions(graph):
        branches = [graph.producer(tensor) for tensor in add.input]
        if any(branch is None or branch.op_type != "DequantizeLinear" for branch in branches):
            continue
        for branch in branches:
            quantize = graph.quantizer(branch) if branch is not None else None
            layer = graph.producer(quantize.input[0]) if quantize is not None else None
            if quantize is not None and layer is not None and layer.op_type in _CONVOLUTIONS:
                yield Violation(
                    graph.name(quantize),
                    f"it quantizes the output of {layer.op_type} {graph.name(layer)!r} in front of Add "
                    f"{graph.name(add)!r}, whose other input is quantized already; the Add cannot be fused into it",
                )
                break


@rule(
    "W8",
    "warning",
    "The residual input of an addition is quantized",
    repair="put Q/DQ on the residual branch",
    fixable=True,
)
def _find_float_residuals(graph: QdqGraph) -> Iterator[Violation]:
    for add in _additions(graph):
        layers = [_quantized_convolution(graph.producer(tensor), graph) for tensor in add.input]
        quantized = [graph.operand(tensor).dequantize is not None for tensor in add.input]
        if any(quantized) or not any(layers):
            continue
        residual = add.input[1] if layers[0] is not None else add.input[0]
        main = next(layer for layer in layers if layer is not None)
        yield Violation(
            graph.name(add),
            f"it adds the float tensor {residual!r} to the output of {main.op_type} {graph.name(main)!r}; with a "
            "quantized residual the addition becomes part of that integer kernel",
            fixable=_moves_codes(residual, graph),
        )


def _moves_codes(tensor: str, graph: QdqGraph) -> bool:
    """Whether a float tensor holds dequantized values that were only moved or padded, so that they can be coded again.

    A padded value must be 0, which every symmetric scale has.
    """
    node = graph.producer(tensor)
    while node is not None and node.op_type in MOVES | {"Pad"}:
        value = graph.constant(node.input[2]) if node.op_type == "Pad" and has_input(node, 2) else None
        if node.op_type == "Pad" and (attribute(node, "mode", b"constant") != b"constant" or np.any(value)):
            return False
        node = graph.producer(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear" and graph.producer(tensor) is not node


def _additions(graph: QdqGraph) -> Iterator[onnx.NodeProto]:
    for node in graph.of_type("Add"):
        if all(tensor in graph.activations for tensor in node.input):
            yield node


def _quantized_convolution(node: onnx.NodeProto | None, graph: QdqGraph) -> onnx.NodeProto | None:
    if node is None or node.op_type not in _CONVOLUTIONS:
        return None
    return node if all(graph.operand(tensor).dequantize is not None for tensor in node.input[:2]) else None


@rule(
    "W9",
    "warning",
    "No Clip on codes",
    repair="put a float Clip in front of QuantizeLinear: the same values",
    fixable=True,
)
def _find_clipped_codes(graph: QdqGraph) -> Iterator[Violation]:
    for clip in graph.of_type("Clip"):
        is_code = graph.elem_type(clip.input[0]) in (TensorProto.INT8, TensorProto.UINT8)
        if is_code and clip.input[0] in graph.activations:
            yield Violation(
                graph.name(clip),
                "it clips codes between QuantizeLinear and DequantizeLinear, which keeps the pair from fusing",
            )


RULES = rules_in(vars())
