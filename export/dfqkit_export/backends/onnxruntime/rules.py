"""What keeps ONNX Runtime's CPU provider from running a QDQ file in integer kernels, or makes those slow.

What belongs here: the reasons of `reasons` as rules, and what concerns no single layer. They were observed on
ONNX Runtime 1.32 on x86; on Arm, int8 activations are as good as uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
from onnx import TensorProto

from dfqkit_export.backends.onnxruntime.grids import codes_of_two
from dfqkit_export.backends.onnxruntime.kernels import parting_additions
from dfqkit_export.backends.onnxruntime.reasons import REQUANTIZE_BIAS, bias_off_grid, float_reasons
from dfqkit_export.backends.onnxruntime.targets import ONNXRUNTIME_ARM
from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.quantized_codes import CLIPS_CODES
from dfqkit_export.backends.rule import Violation, rule, rules_in
from dfqkit_export.backends.saturation import saturating_pairs
from dfqkit_export.onnxfile.graph import attribute

# ConvTranspose has O14; Pad only moves values, so that float costs it a copy at most, and often not even that.
_REPORTED = frozenset({"ConvTranspose", "Pad"})
# Only x86 needs unsigned activations.
_X86_ONLY = frozenset({"O6", "O7"})
# Repaired by a Clip on codes.
_CLIPPING = frozenset({"O5", "O12"})


def _layers_with(id: str) -> Callable[[QdqGraph], Iterator[Violation]]:
    def find(graph: QdqGraph) -> Iterator[Violation]:
        if id in _X86_ONLY and graph.target.name == ONNXRUNTIME_ARM.name:
            return
        for layer in graph.layers():
            # The first reason is enough to keep a layer in float; the next shows once that is repaired.
            reason = next(float_reasons(layer, graph), None)
            if reason is not None and reason.rule == id:
                yield Violation(
                    graph.name(layer),
                    f"it runs in float: {reason.found}",
                    repair=reason.repair,
                    fixable=reason.fixable and (id not in _CLIPPING or graph.opset >= CLIPS_CODES),
                )

    return find


def is_spatial_mean(node: onnx.NodeProto, graph: QdqGraph) -> bool:
    """Return whether a ReduceMean averages exactly height and width of a tensor (N, C, H, W)."""
    shape = graph.shape(node.input[0])
    if node.op_type != "ReduceMean" or shape is None or len(shape) != 4 or node.input[0] not in graph.activations:
        return False
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 1:
        axes = graph.constant(node.input[1])
    return axes is not None and sorted(int(axis) % 4 for axis in axes) == [2, 3]


@rule("O9", "warning", "Global pooling is GlobalAveragePool", repair="write it as GlobalAveragePool", fixable=True)
def _find_means(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("ReduceMean"):
        if is_spatial_mean(node, graph):
            yield Violation(graph.name(node), "it averages height and width by ReduceMean, which always runs in float")


@rule(
    "O10",
    "warning",
    "Pooling is quantized right behind",
    repair="put the Q/DQ pair between pooling and Flatten as well",
    fixable=True,
)
def _find_late_quantizers(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("GlobalAveragePool", "AveragePool"):
        flatten = graph.only_reader(node.output[0])
        quantize = graph.only_reader(flatten.output[0]) if flatten is not None else None
        if flatten is None or quantize is None or flatten.op_type not in ("Flatten", "Reshape", "Squeeze"):
            continue
        if quantize.op_type == "QuantizeLinear" and graph.operand(node.input[0]).dequantize is not None:
            yield Violation(
                graph.name(node),
                f"its output is quantized only behind {flatten.op_type} {graph.name(flatten)!r}, so that "
                "the pooling runs in float",
            )


@rule("O15", "warning", "Weights are int8", repair="store them as int8 with zero point 0", fixable=True)
def _find_unsigned_weights(graph: QdqGraph) -> Iterator[Violation]:
    for layer in graph.weighted():
        weight = graph.operand(layer.input[1])
        if weight.activation or weight.dequantize is None:
            continue
        if graph.quantized_type(weight.dequantize) == TensorProto.UINT8:
            yield Violation(
                graph.name(layer),
                "its weights are uint8, whose kernels are about 2.5 times slower than those for int8",
                fixable=graph.is_initializer(weight.dequantize.input[0]) and graph.zero_point(weight.dequantize) == 128,
            )


@rule(
    "O16",
    "warning",
    "Operators between pairs have integer kernels",
    repair="nothing in the file helps; choose a model without this operator where speed matters",
)
def _find_float_operators(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.nodes:
        row = graph.target.rule(node.op_type)
        if row is None or row.placement.value != "float" or node.op_type in _REPORTED or is_spatial_mean(node, graph):
            continue
        if node.input and graph.operand(node.input[0]).dequantize is not None and node.input[0] in graph.activations:
            yield Violation(
                graph.name(node), f"{node.op_type} always runs in float here, between dequantizing and quantizing again"
            )


@rule(
    "O17",
    "warning",
    "Sums of two products fit 16 bits",
    repair="quantize with 7-bit weights (reduce_range), or for a target whose sums of products fit",
)
def _find_saturating_weights(graph: QdqGraph) -> Iterator[Violation]:
    if graph.target.weights.reduce_range or graph.target.sums_fit:
        yield from saturating_pairs(graph)


@rule(
    "O18",
    "warning",
    "Additions give the same codes on every processor",
    repair="quantize for a target that chooses scales for that, or judge what `dfqkit prove` finds",
)
def _find_parting_additions(graph: QdqGraph) -> Iterator[Violation]:
    if not graph.target.additions_agree:
        return
    for node in graph.of_type("Add"):
        codes = codes_of_two(node, graph) if sum(name in graph.activations for name in node.input) == 2 else None
        count = parting_additions(*codes) if codes else 0
        if codes and count:
            pairs = (codes[0].high - codes[0].low + 1) * (codes[1].high - codes[1].low + 1)
            yield Violation(
                graph.name(node), f"for {count} of {pairs} pairs of codes Arm, SSE and AVX2 do not give the same code"
            )


@rule("E11", "error", "A bias lies on the grid of its layer's products", repair=REQUANTIZE_BIAS)
def _find_biases_off_the_grid(graph: QdqGraph) -> Iterator[Violation]:
    for layer in graph.weighted():
        found = bias_off_grid(layer, graph)
        if found:
            yield Violation(
                graph.name(layer),
                f"{found}: ONNX Runtime before 1.28 adds the codes all the same and computes other numbers, later "
                "versions run the layer in float",
            )


_REASONS = (
    ("O1", "The inputs of layers are quantized", "put Q/DQ in front of the layer"),
    ("O2", "Weights are quantized", "store the weight as int8 with DequantizeLinear"),
    ("O3", "Biases are int32", "store the bias as int32 with scale = input scale x weight scale"),
    ("O4", "The outputs of convolutions and additions are quantized", "put Q/DQ behind the layer"),
    ("O5", "The zero point behind Relu and Clip is the lowest code", "use uint8 with zero point 0"),
    ("O6", "int8 activations have one reader", "store the same numbers as uint8 with zero point 128"),
    ("O7", "No Clip on int8 codes", "store the same numbers as uint8 with zero point 128"),
    ("O8", "Codes have 8 bits", "store them as int8 or uint8"),
    ("O11", "A layer's output is quantized once", "keep one QuantizeLinear"),
    (
        "O12",
        "A Clip does not cut inside the range of codes",
        "put an integer Clip behind QuantizeLinear instead, or use Relu",
    ),
    ("O13", "Activations have one scale", "quantize activations per tensor"),
    ("O14", "ConvTranspose is float", "leave it unquantized, or replace it by Resize and Conv"),
)
_FIXABLE = frozenset({"O1", "O5", "O6", "O7", "O12"})

RULES = (
    *(
        rule(id, "warning", title, repair=repair, fixable=id in _FIXABLE)(_layers_with(id))
        for id, title, repair in _REASONS
    ),
    *rules_in(vars()),
)
