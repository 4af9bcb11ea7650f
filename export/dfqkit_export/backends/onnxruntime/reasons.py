"""Why a layer of a QDQ file cannot run as an integer kernel in ONNX Runtime.

What belongs here: the fusion rules that explain a float kernel, each under the id that the static checker lists it by.
They were observed on ONNX Runtime 1.32's CPU provider on x86 with all optimizations on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from dfqkit_export.onnxfile.graph import SourceGraph

_CODES = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-(2**15), 2**15 - 1)}
_FLOAT_OUTPUT = frozenset({"Gemm", "MatMul"})
# The runtime moves a pair through these, in both directions; through Flatten, Split or Gather it does not.
_PASSED = frozenset({"Identity", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
# These only move values too: a pair behind them with the same parameters changes no number.
_MOVES = _PASSED - {"Pad"} | {"DepthToSpace", "Flatten", "Gather", "SpaceToDepth", "Split"}
_ACTIVATIONS = frozenset({"Clip", "Relu"})
_HOLDS_A_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})
# How far a product of two scales may be off: they, and it, are rounded to their type.
_FLOAT32_ROUNDING, _HALF_ROUNDING = 1e-6, 2**-6
#: What to do with a bias that no integer kernel can add.
REQUANTIZE_BIAS = "store it as an int32 initializer with scale = input scale x weight scale"


@dataclass(frozen=True)
class FloatReason:
    """Why one layer stays in float: the id of the broken rule, and whether its repair keeps every number here."""

    rule: str
    found: str
    repair: str
    fixable: bool = False


def float_reasons(layer: onnx.NodeProto, graph: SourceGraph) -> Iterator[FloatReason]:
    """Yield every known reason why a layer cannot run in integers, those on its inputs first."""
    if layer.op_type == "ConvTranspose":
        yield FloatReason(
            "O14",
            "ConvTranspose has no integer kernel that Q/DQ pairs turn into",
            "leave it unquantized, or replace it by Resize and Conv",
        )
    for tensor in layer.input[:2]:
        yield from _operand_reasons(tensor, graph)
    yield from _bias_reasons(layer, graph)
    if layer.op_type not in _FLOAT_OUTPUT:
        yield from _output_reasons(layer, graph)


def _operand_reasons(tensor: str, graph: SourceGraph) -> Iterator[FloatReason]:
    producer = graph.source(tensor, _PASSED)
    if producer is None or producer.op_type != "DequantizeLinear":
        yield _missing_pair(tensor, graph)
        return
    listed = next((name for name in producer.input if name in graph.replaceable), None)
    if listed is not None:
        yield FloatReason(
            "W16",
            f"{listed!r} is listed as an input of the graph too, so that a caller may replace it",
            "take initializers off the inputs (torch.onnx: keep_initializers_as_inputs=False)",
            fixable=True,
        )
    dtype = graph.code_type(producer)
    if dtype not in ("", "int8", "uint8"):
        yield FloatReason(
            "O8",
            f"the codes behind {tensor!r} are {dtype}; integer kernels take 8 bits",
            "store them as int8 or uint8; a smaller range costs nothing there",
        )
    if tensor not in graph.activations:
        return
    scale = graph.constant(producer.input[1])
    if scale is not None and scale.size > 1:
        yield FloatReason(
            "O13",
            f"{producer.name!r} has {scale.size} scales, one for each channel of an activation",
            "quantize activations per tensor",
        )
    yield from _code_reasons(producer, graph)


def _missing_pair(tensor: str, graph: SourceGraph) -> FloatReason:
    producer = graph.producer(tensor)
    maker = f"it comes from {producer.op_type} {producer.name!r}" if producer is not None else "it is a float tensor"
    if tensor not in graph.activations:
        return FloatReason("O2", f"weight {tensor!r} has no DequantizeLinear ({maker})", "quantize it there")
    source = graph.source(tensor, _MOVES)
    if source is not None and source.op_type == "DequantizeLinear":
        return FloatReason(
            "O1",
            f"input {tensor!r} has no DequantizeLinear ({maker}, through which the runtime moves no pair)",
            f"quantize it there again, with the parameters of {source.name!r}",
            fixable=True,
        )
    return FloatReason("O1", f"input {tensor!r} has no DequantizeLinear ({maker})", "quantize it there")


def _code_reasons(dequantize: onnx.NodeProto, graph: SourceGraph) -> Iterator[FloatReason]:
    """Yield what is wrong with an activation's codes, seen from a DequantizeLinear behind them."""
    if graph.code_type(dequantize) != "int8":
        return
    maker = graph.producer(dequantize.input[0])
    if maker is not None and maker.op_type == "Clip":
        yield FloatReason(
            "O7",
            f"Clip {maker.name!r} cuts int8 codes, which the x86 kernels take only without it",
            "store the same numbers as uint8 with zero point 128",
            fixable=True,
        )
    elif maker is not None and _code_readers(maker, graph) > 1:
        yield FloatReason(
            "O6",
            f"the activations {dequantize.output[0]!r} are int8, which the x86 kernels take only where the "
            f"tensor has one reader; it has {_code_readers(maker, graph)}",
            "store the same numbers as uint8 with zero point 128",
            fixable=True,
        )


def _code_readers(quantize: onnx.NodeProto, graph: SourceGraph) -> int:
    """Return how many nodes read what the DequantizeLinear nodes behind a QuantizeLinear give."""
    pairs = [node for node in graph.readers(quantize.output[0]) if node.op_type == "DequantizeLinear"]
    return sum(len(graph.readers(node.output[0])) + graph.is_output(node.output[0]) for node in pairs)


def _bias_reasons(layer: onnx.NodeProto, graph: SourceGraph) -> Iterator[FloatReason]:
    bias = layer.input[2] if len(layer.input) > 2 else ""
    producer = graph.producer(bias) if bias else None
    if producer is not None and producer.op_type not in ("Constant", "DequantizeLinear"):
        found = f"the bias comes from {producer.op_type} {producer.name!r}"
    elif bias and layer.op_type == "Gemm" and (producer is None or producer.op_type == "Constant"):
        # A convolution's float bias is no obstacle, nor that of a Gemm whose output is quantized: the runtime
        # quantizes such initializers itself.
        tensor, _ = _output(layer, graph)
        if graph.readers(tensor) and all(node.op_type == "QuantizeLinear" for node in graph.readers(tensor)):
            return
        found = "the bias is a float initializer"
    elif off_grid := bias_off_grid(layer, graph):
        yield FloatReason("E11", off_grid, REQUANTIZE_BIAS)
        return
    else:
        return
    yield FloatReason("O3", found, REQUANTIZE_BIAS)


def bias_off_grid(layer: onnx.NodeProto, graph: SourceGraph) -> str:
    """Say how the scale of a layer's int32 bias differs from input scale x weight scale; "" where it does not.

    The integer kernels add the codes to products of codes, and look at no scale of theirs.
    """
    if layer.op_type not in _HOLDS_A_BIAS or len(layer.input) < 3:
        return ""
    pairs = [graph.source(tensor, _MOVES) for tensor in layer.input[:3]]
    if any(node is None or node.op_type != "DequantizeLinear" for node in pairs):
        return ""
    stored = [graph.constant(node.input[1]) for node in pairs if node is not None]
    known = [s for s in stored if s is not None and s.size and np.all(np.isfinite(s) & (s > 0))]  # else E3
    if len(known) < 3 or known[0].size > 1:
        return ""
    data, weight, bias = (scale.astype(np.float64).reshape(-1) for scale in known)
    wanted = data * weight
    if bias.size != wanted.size and 1 not in (bias.size, wanted.size):
        return ""  # no valid file
    bias, wanted = np.broadcast_arrays(bias, wanted)
    rounding = _FLOAT32_ROUNDING if all(scale.dtype == np.float32 for scale in known) else _HALF_ROUNDING
    wrong = np.flatnonzero(~np.isclose(bias, wanted, rtol=rounding, atol=0))
    if not wrong.size:
        return ""
    first = wrong[0]
    return (
        f"the scale of its bias is {bias[first]:g}, input scale x weight scale is {wanted[first]:g} (channel {first}"
        f"{f' and {wrong.size - 1} more' if wrong.size > 1 else ''})"
    )


def _output_reasons(layer: onnx.NodeProto, graph: SourceGraph) -> Iterator[FloatReason]:
    tensor, activations = _output(layer, graph)
    readers = graph.readers(tensor)
    quantizers = [node for node in readers if node.op_type == "QuantizeLinear"]
    if len(quantizers) != len(readers) or not quantizers or graph.is_output(tensor):
        others = ", ".join(sorted({node.op_type for node in readers if node.op_type != "QuantizeLinear"}))
        where = others or ("the graph's output" if graph.is_output(tensor) else "nothing")
        yield FloatReason("O4", f"its output {tensor!r} reaches {where} without QuantizeLinear", "quantize it there")
        return
    if len({tuple(node.input[1:3]) for node in quantizers}) > 1:  # the runtime makes one of those alike
        names = ", ".join(repr(node.name) for node in quantizers)
        yield FloatReason("O11", f"its output {tensor!r} is quantized {len(quantizers)} times ({names})", "keep one")
    yield from _range_reasons(quantizers[0], activations, graph)
    for reader in graph.readers(quantizers[0].output[0]):
        pairs = graph.readers(reader.output[0]) if reader.op_type == "Clip" else [reader]
        yield from (r for node in pairs[:1] if node.op_type == "DequantizeLinear" for r in _code_reasons(node, graph))
        break


def _range_reasons(
    quantizer: onnx.NodeProto, activations: list[onnx.NodeProto], graph: SourceGraph
) -> Iterator[FloatReason]:
    value, dtype = graph.zero_point(quantizer), graph.code_type(quantizer)
    scale = graph.constant(quantizer.input[1])
    if value is None or scale is None or scale.size != 1:
        yield FloatReason(
            "O13",
            f"{quantizer.name!r} has not one constant scale and zero point",
            "quantize activations per tensor, with scale and zero point as initializers",
        )
        return
    if not activations:
        return
    steps = float(scale.reshape(-1)[0])
    begin, end = ((code - value) * steps for code in _CODES.get(dtype, (0, 0)))
    low = max(_limits(node, graph)[0] for node in activations)
    high = min(_limits(node, graph)[1] for node in activations)
    last = activations[-1]
    # The lower half of int8's codes is unused behind a Relu, so that uint8 and a Clip hold the same numbers.
    unused = dtype == "int8" and value == 0 and low >= 0
    if begin < low and (last.op_type == "Relu" or unused):
        yield FloatReason(
            "O5",
            f"{last.op_type} is followed by {quantizer.name!r} with {dtype} zero point {value}; ONNX Runtime "
            "fuses it only at the lowest code",
            f"quantize after {last.op_type} to uint8 with zero point 0",
            fixable=unused,
        )
    elif begin < low or end > high:
        yield FloatReason(
            "O12",
            f"{last.op_type} {last.name!r} ends at {low:g} and {high:g}, inside the range of {quantizer.name!r}, "
            f"{begin:g} to {end:g}, so that it cannot be dropped",
            "put an integer Clip behind QuantizeLinear instead, or use Relu",
            fixable=last.op_type == "Clip",
        )


def _limits(activation: onnx.NodeProto, graph: SourceGraph) -> tuple[float, float]:
    if activation.op_type == "Relu":
        return 0.0, float(np.inf)
    limits = [-np.inf, np.inf]
    for item in activation.attribute:  # before opset 11
        limits[item.name == "max"] = item.f
    for index, tensor in enumerate(activation.input[1:3]):
        value = graph.constant(tensor) if tensor else None
        if value is not None and value.size == 1:
            limits[index] = float(value.reshape(-1)[0])
    return limits[0], limits[1]


def _output(layer: onnx.NodeProto, graph: SourceGraph) -> tuple[str, list[onnx.NodeProto]]:
    """Return the tensor where a layer's output must be quantized, and the activation functions in front of it."""
    tensor, activations = layer.output[0], []
    while len(graph.readers(tensor)) == 1 and not graph.is_output(tensor):
        (reader,) = graph.readers(tensor)
        if reader.op_type in _ACTIVATIONS:
            activations.append(reader)
        elif reader.op_type not in _PASSED - {"Pad"}:
            break
        tensor = reader.output[0]
    return tensor, activations
