"""What makes TensorRT's importer or builder refuse a QDQ file.

What belongs here: rules E1 to E10 as far as they are TensorRT's own; sources are NvInfer.h, the importer's messages,
and builds by TensorRT-RTX 1.7.1,
whose importer is of the same family.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from dfqkit_export.backends.qdq import QUANTIZED_OPERATORS, QdqGraph
from dfqkit_export.backends.quantized_codes import can_be_signed
from dfqkit_export.backends.rule import Violation, rule, rules_in
from dfqkit_export.onnxfile.graph import OWN_DOMAINS, has_input, type_name

_CODES = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16})
_LOW_BIT = frozenset({TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1})
_INT32 = TensorProto.INT32


def is_uint8_read_as_int8(node: onnx.NodeProto, graph: QdqGraph) -> bool:
    """Return whether the runtime takes a Q or DQ node's uint8 codes for int8 without refusing the file.

    TensorRT 10 refuses uint8, so that only a target without it (TensorRT-RTX) accepts such a file.
    """
    if graph.target.name != "tensorrt-rtx" or graph.quantized_type(node) != TensorProto.UINT8:
        return False
    return node.input[0] in graph.activations and has_input(node, 2)


@rule(
    "E1",
    "error",
    "Codes are int8",
    repair="quantize to int8 with zero point 0 (symmetric), also behind Relu",
    fixable=True,
)
def _find_wrong_types(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("QuantizeLinear", "DequantizeLinear"):
        found = graph.quantized_type(node)
        if not found or found in _LOW_BIT or found == _INT32 or type_name(found) in graph.target.dtypes.value:
            continue
        if is_uint8_read_as_int8(node, graph) or _says_no_type(node, graph):
            continue
        reason = (
            "TensorRT 10 refuses uint8, and TensorRT 11 reads its codes as int8, which changes the numbers"
            if found == TensorProto.UINT8
            else "TensorRT has no such quantized type"
        )
        yield Violation(
            graph.name(node), f"its codes are {type_name(found)}; {reason}", fixable=can_be_signed(node, graph)
        )


def _says_no_type(node: onnx.NodeProto, graph: QdqGraph) -> bool:
    # W1's case: the type is only ONNX's default, on the QuantizeLinear or on the one whose codes are read.
    quantize = node if node.op_type == "QuantizeLinear" else graph.quantizer(node)
    return (
        quantize is not None
        and not has_input(quantize, 2)
        and not any(item.name == "output_dtype" and item.i for item in quantize.attribute)
    )


@rule(
    "E2",
    "error",
    "Zero points are constants of zeros",
    repair="quantize symmetrically, with a zero point of 0 stored as an initializer",
    fixable=True,
)
def _find_zero_points(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("QuantizeLinear", "DequantizeLinear"):
        if not has_input(node, 2) or graph.quantized_type(node) == _INT32:
            continue
        reported = graph.quantized_type(node) == TensorProto.UINT8 and not is_uint8_read_as_int8(node, graph)
        value = graph.constant(node.input[2])
        if value is None:
            yield Violation(graph.name(node), f"its zero point {node.input[2]!r} is not a constant", fixable=False)
        elif np.any(value.astype(np.float64)) and not reported:
            yield Violation(
                graph.name(node),
                f"its zero point is {int(value.reshape(-1)[0])}; TensorRT quantizes symmetrically, around 0",
                fixable=can_be_signed(node, graph),
            )


@rule(
    "E4",
    "error",
    "Biases are float",
    repair="store the bias as a float32 initializer (for onnxruntime.quantization: QuantizeBias=False)",
    fixable=True,
)
def _find_integer_biases(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("DequantizeLinear"):
        if graph.quantized_type(node) == _INT32:
            readers = ", ".join(f"{graph.name(reader)!r}" for reader in graph.readers(node.output[0]))
            yield Violation(
                graph.name(node), f"it dequantizes int32 (the bias of {readers}), which TensorRT's importer refuses"
            )


@rule(
    "E5",
    "error",
    "Only DequantizeLinear reads integer constants",
    repair="apply the operator to the stored codes and remove it",
    fixable=True,
)
def _find_read_codes(graph: QdqGraph) -> Iterator[Violation]:
    for tensor in graph.initializers():
        if tensor.data_type not in _CODES:
            continue
        for reader in graph.readers(tensor.name):
            is_data = tensor.name in reader.input[:1]
            if reader.op_type == "DequantizeLinear" or (reader.op_type in ("QuantizeLinear", "Clip") and not is_data):
                continue
            if _is_reported(reader, graph):
                continue
            yield Violation(
                graph.name(reader),
                f"it reads the {type_name(tensor.data_type)} constant {tensor.name!r}; TensorRT lets only "
                "DequantizeLinear read such constants",
                fixable=reader.op_type == "Clip",
            )


def _is_reported(node: onnx.NodeProto, graph: QdqGraph) -> bool:
    """Return whether a node is a chain of a zero point, which is allowed, or wrong by itself (E6)."""
    if node.domain not in OWN_DOMAINS or node.op_type in QUANTIZED_OPERATORS:
        return True
    if node.op_type not in ("Identity", "Cast"):
        return False
    readers = graph.readers(node.output[0])
    return all(
        reader.op_type in ("QuantizeLinear", "DequantizeLinear") and reader.input[0] != node.output[0]
        for reader in readers
    )


@rule(
    "E9",
    "error",
    "No 4-bit and 8-bit float types beyond the target's",
    repair="store the codes as int8; a smaller range costs nothing there",
)
def _find_low_bit_types(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("QuantizeLinear", "DequantizeLinear"):
        found = graph.quantized_type(node)
        if found in _LOW_BIT and type_name(found) not in graph.target.dtypes.value:
            yield Violation(
                graph.name(node),
                f"its codes are {type_name(found)}, which needs certain GPUs and layers (int4: weight-only linear "
                f"layers, never convolutions; float8: compute capability 8.9); {graph.target.title} is checked "
                f"for {', '.join(graph.target.dtypes.value)}",
            )


def is_code(tensor: str, graph: QdqGraph) -> bool:
    """Return whether a tensor holds integer codes."""
    return graph.elem_type(tensor) in _CODES | _LOW_BIT


@rule("E10", "error", "Layers read dequantized values", repair="put a DequantizeLinear in front of this input")
def _find_raw_codes(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("Conv", "ConvTranspose", "Gemm", "MatMul", "Add"):
        for tensor in node.input[:2]:
            if is_code(tensor, graph):
                yield Violation(
                    graph.name(node),
                    f"its input {tensor!r} is {type_name(graph.elem_type(tensor))} without DequantizeLinear",
                )


RULES = rules_in(vars())
