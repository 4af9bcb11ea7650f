"""What TensorRT accepts although layers then run in float or the numbers are not those of the file.

What belongs here: rules W1 to W4, W6, W10 and W12 to W15; those on where Q/DQ pairs stand are `placement`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.quantized_codes import can_be_signed, same_parameters
from dfqkit_export.backends.rule import Violation, rule, rules_in
from dfqkit_export.backends.tensorrt.rules.errors import is_code, is_uint8_read_as_int8
from dfqkit_export.onnxfile.graph import attribute, has_input, type_name

_WIDE = frozenset({TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT64})


@rule("W1", "warning", "QuantizeLinear says its type", repair="give it a zero point of 0 as int8", fixable=True)
def _find_missing_types(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("QuantizeLinear"):
        if not has_input(node, 2) and not attribute(node, "output_dtype", 0):
            yield Violation(
                graph.name(node), "it has neither zero point nor output_dtype: uint8 for ONNX, int8 for TensorRT"
            )


@rule(
    "W2",
    "warning",
    "No uint8 codes",
    repair="quantize to int8; where the file clips to 127 steps, the numbers stay",
    fixable=True,
)
def _find_saturating_types(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("QuantizeLinear"):
        if is_uint8_read_as_int8(node, graph) and graph.zero_point(node) == 0:
            yield Violation(
                graph.name(node),
                "its codes are uint8, which TensorRT reads as int8: values above 127 steps saturate",
                fixable=can_be_signed(node, graph),
            )


@rule(
    "W3",
    "warning",
    "One scale for the tensor has rank 0",
    repair="store scale and zero point with rank 0",
    fixable=True,
)
def _find_scales_of_rank_one(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("QuantizeLinear", "DequantizeLinear"):
        scale = graph.constant(node.input[1])
        if scale is None or scale.size != 1 or not scale.ndim:
            continue
        shape = graph.shape(node.input[0])
        axis = attribute(node, "axis", 1)
        if node.input[0] not in graph.activations and shape and axis < len(shape) and shape[axis] == 1:
            continue  # A weight with a single output channel: one scale a channel.
        yield Violation(
            graph.name(node),
            f"its scale has shape {list(scale.shape)}; TensorRT takes that for per-channel and runs in float",
        )


@rule("W4", "warning", "Activations have one scale", repair="quantize activations per tensor")
def _find_channel_scales_on_activations(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("QuantizeLinear"):
        scale = graph.constant(node.input[1])
        if node.input[0] in graph.activations and scale is not None and scale.size > 1:
            yield Violation(
                graph.name(node),
                f"it quantizes an activation with {scale.size} scales; kernels take one for the tensor",
            )


@rule(
    "W6",
    "warning",
    "Both operands of a layer are quantized, or none",
    repair="put Q/DQ on that operand too, or remove the other's",
)
def _find_half_quantized_layers(graph: QdqGraph) -> Iterator[Violation]:
    for layer in graph.weighted():
        operands = [graph.operand(tensor) for tensor in layer.input[:2]]
        floats = [operand for operand in operands if operand.dequantize is None]
        if len(floats) == 1 and not any(is_code(tensor, graph) for tensor in layer.input[:2]):
            (operand,) = floats
            what = "activation" if operand.activation else "weight"
            yield Violation(
                graph.name(layer),
                f"its {what} {operand.tensor!r} is float and its other operand quantized, so it runs in float",
            )


@rule(
    "W10",
    "warning",
    "Q and DQ of a pair agree, and pairs do not follow each other",
    repair="give both the same scale and zero point; keep one of two pairs in a row",
)
def _find_differing_scales(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("QuantizeLinear"):
        for dequantize, _ in graph.pair(node):
            if _constant_scales(node, dequantize, graph) and not same_parameters(node, dequantize, graph):
                yield Violation(
                    graph.name(dequantize),
                    f"its scale or zero point differs from those of {graph.name(node)!r}, whose codes it reads",
                )
        before = graph.producer(node.input[0])
        if before is None or before.op_type != "DequantizeLinear" or node.input[0] not in graph.activations:
            continue
        if _constant_scales(before, node, graph) and not same_parameters(before, node, graph):
            yield Violation(
                graph.name(node),
                f"it quantizes again what {graph.name(before)!r} has just dequantized, on another scale",
            )


def _constant_scales(first: onnx.NodeProto, second: onnx.NodeProto, graph: QdqGraph) -> bool:
    return graph.constant(first.input[1]) is not None and graph.constant(second.input[1]) is not None


@rule("W12", "warning", "No 64-bit tensors but shapes", repair="use float32, and int32 or integers in shapes only")
def _find_wide_types(graph: QdqGraph) -> Iterator[Violation]:
    for tensor in graph.initializers():
        if tensor.data_type == TensorProto.DOUBLE:
            for reader in graph.readers(tensor.name)[:1]:
                yield Violation(graph.name(reader), f"its constant {tensor.name!r} is float64")
    for value in graph.model.graph.input:
        if value.type.tensor_type.elem_type in _WIDE and not graph.is_initializer(value.name):
            found = type_name(value.type.tensor_type.elem_type)
            yield Violation("", f"the model's input {value.name!r} is {found}")
    for node in (node for node in graph.nodes if node.op_type not in ("Shape", "Size")):
        for tensor in node.output:
            if tensor in graph.activations and graph.elem_type(tensor) in _WIDE:
                found = type_name(graph.elem_type(tensor))
                yield Violation(graph.name(node), f"it computes on {found}, for which there are few kernels")


@rule(
    "W13",
    "warning",
    "Only the batch is dynamic",
    repair="fix the sizes at export, or give each a range (--minShapes, --optShapes, --maxShapes of trtexec)",
)
def _find_dynamic_axes(graph: QdqGraph) -> Iterator[Violation]:
    for value in graph.model.graph.input:
        shape = graph.shape(value.name)
        if graph.is_initializer(value.name) or shape is None:
            continue
        free = [axis for axis, size in enumerate(shape) if size is None and axis > 0]
        if free:
            axes = ", ".join(map(str, free))
            yield Violation(
                "",
                f"the input {value.name!r} has unknown sizes on axes {axes} beside the batch; the engine's profile "
                "declares only the batch, so each needs a range of its own",
            )


@rule(
    "W14",
    "warning",
    "No weight scale vanishes",
    repair="clamp the channel's range before quantizing (to 1e-30 loses nothing)",
)
def _find_vanishing_scales(graph: QdqGraph) -> Iterator[Violation]:
    smallest = float(np.finfo(np.float32).tiny)
    for node in graph.of_type("DequantizeLinear"):
        scale = graph.constant(node.input[1])
        if node.input[0] in graph.activations or scale is None:
            continue
        numbers = scale.astype(np.float64).reshape(-1)
        dead = np.flatnonzero((numbers > 0) & (numbers < smallest))
        if dead.size:
            yield Violation(
                graph.name(node),
                f"the scale of channel {dead[0]} is {numbers[dead[0]]:.1e} ({dead.size} such): its weights are all "
                "zero or nearly so, and GPUs flush such a scale to 0",
            )


@rule("W15", "warning", "ConvTranspose is float", repair="check the layer on the device, or leave it unquantized")
def _find_transposed_convolutions(graph: QdqGraph) -> Iterator[Violation]:
    for layer in graph.of_type("ConvTranspose"):
        if all(graph.operand(tensor).dequantize is not None for tensor in layer.input[:2]):
            yield Violation(
                graph.name(layer),
                "a quantized ConvTranspose: TensorRT-RTX runs it in float, TensorRT depending on its version",
            )


RULES = rules_in(vars())
