"""Rules that hold for every runtime: scales that are numbers, zero points that fit, operators and opsets that exist.

What belongs here: what ONNX itself asks of a QDQ file, and the limits that every target's table states.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from dfqkit_export.backends.qdq import MOVES, QUANTIZED_OPERATORS, QdqGraph
from dfqkit_export.backends.quantized_codes import same_parameters
from dfqkit_export.backends.rule import Violation, rule, rules_in
from dfqkit_export.backends.weight_axes import find_wrong_axes
from dfqkit_export.onnxfile.graph import OWN_DOMAINS, attribute, has_input, type_name
from dfqkit_export.onnxfile.quantization import quantization_behind, quantization_in_front

_SCALE_TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_GIVEN = "an input of the graph: every caller would have to bring it, and no kernel can be chosen by it"
_HOLDS_A_NORM = frozenset({"Conv", "ConvTranspose", "Gemm"})
_FIRST_IR_WITHOUT_LISTED_INITIALIZERS = 4
_BYTES = frozenset({TensorProto.INT8, TensorProto.UINT8})
_BITS = 8
_PASSED = MOVES | {"QuantizeLinear", "DequantizeLinear"}
#: Operators whose values lie within fixed bounds, and how far these are apart.
_SPANS = {"Sigmoid": 1.0, "Softmax": 1.0, "HardSigmoid": 1.0, "Tanh": 2.0}
#: Of a grid's 256 codes, the fewest that a tensor joined with others should have: a student's rule is the same.
_FEWEST_CODES = 16


@rule(
    "E3",
    "error",
    "Scales are positive finite numbers, one for the tensor or one for each index of the axis",
    repair="store a float32 initializer above 0, of rank 0 or of the axis' length (clamp a range of zero)",
)
def _find_bad_scales(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("QuantizeLinear", "DequantizeLinear"):
        scale = graph.constant(node.input[1])
        kind = graph.elem_type(node.input[1])
        if kind not in _SCALE_TYPES | {0}:
            yield Violation(graph.name(node), f"its scale is {type_name(kind)}; allowed are float32, float16, bfloat16")
        elif scale is None:
            yield from _not_constant(node, graph)
        if not graph.target.constant_scales and has_input(node, 2) and graph.is_input(node.input[2]):  # else E2
            yield Violation(graph.name(node), f"its zero point {node.input[2]!r} is {_GIVEN}")
        if scale is None:
            continue
        numbers = scale.astype(np.float64).reshape(-1)
        wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
        if wrong.size:
            where = f" in channel {wrong[0]}" if numbers.size > 1 else ""
            more = f" ({wrong.size} of {numbers.size} channels)" if wrong.size > 1 else ""
            yield Violation(
                graph.name(node),
                f"its scale is {numbers[wrong[0]]:g}{where}{more}; a scale must be a finite number above 0",
            )
        yield from _wrong_sizes(node, scale.shape, graph)


def _not_constant(node: onnx.NodeProto, graph: QdqGraph) -> Iterator[Violation]:
    tensor = node.input[1]
    maker = graph.producer(tensor)
    source = f"made by {maker.op_type} {graph.name(maker)!r}" if maker is not None else "an input of the graph"
    why = graph.target.constant_scales
    if why:
        yield Violation(graph.name(node), f"its scale {tensor!r} is {source}; {why}")
    elif maker is None:  # Those that nodes make are computed, and the layer is then float.
        yield Violation(graph.name(node), f"its scale {tensor!r} is {_GIVEN}")


def _wrong_sizes(node: onnx.NodeProto, scale: tuple[int, ...], graph: QdqGraph) -> Iterator[Violation]:
    size = math.prod(scale)
    if has_input(node, 2):
        zero_point = graph.shape(node.input[2])
        if zero_point is not None and None not in zero_point and math.prod(zero_point) != size:  # type: ignore[arg-type]
            yield Violation(
                graph.name(node),
                f"it has {size} scale(s) and {math.prod(zero_point)} zero point(s)",  # type: ignore[arg-type]
            )
    shape = graph.shape(node.input[0])
    if size == 1 or len(scale) != 1 or shape is None or attribute(node, "block_size", 0):
        return
    axis = attribute(node, "axis", 1)
    if not -len(shape) <= axis < len(shape):
        yield Violation(graph.name(node), f"its axis {axis} does not exist in a tensor of rank {len(shape)}")
    elif shape[axis] is not None and shape[axis] != size:
        yield Violation(graph.name(node), f"it has {size} scales for an axis (number {axis}) of length {shape[axis]}")


@rule(
    "E6",
    "error",
    "Operators are ONNX's own or come with the runtime",
    repair="export with standard ONNX operators (QuantizeLinear and DequantizeLinear for quantization)",
)
def _find_foreign_operators(graph: QdqGraph) -> Iterator[Violation]:
    allowed = OWN_DOMAINS | graph.target.domains
    functions = {(function.domain, function.name) for function in graph.model.functions}
    for node in graph.nodes:
        if node.domain not in allowed and (node.domain, node.op_type) not in functions:
            yield Violation(
                graph.name(node),
                f"{node.op_type} is of the domain {node.domain!r}, which {graph.target.title} does not bring",
            )
        elif node.domain in OWN_DOMAINS and not onnx.defs.has(node.op_type, graph.opset, ""):
            yield Violation(
                graph.name(node),
                f"ONNX has no operator {node.op_type} in opset {graph.opset}",
                repair="export with a newer opset, or without the operator; one of your own needs a domain of its own",
            )
        elif graph.target.pairs_only and node.op_type in QUANTIZED_OPERATORS:
            yield Violation(
                graph.name(node),
                f"{node.op_type} computes on codes by itself; {graph.target.pairs_only}",
                repair="write it as DequantizeLinear, the float operator, QuantizeLinear",
            )


@rule(
    "E7",
    "error",
    "The runtime implements every operator",
    repair="replace the operator, or compute it outside of the model",
)
def _find_unsupported_operators(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.nodes:
        is_reported = node.op_type in QUANTIZED_OPERATORS and graph.target.pairs_only
        name = node.op_type if node.domain in OWN_DOMAINS else f"{node.domain}.{node.op_type}"
        if not is_reported and graph.target.refuses([name]):
            yield Violation(graph.name(node), f"{graph.target.title} has no implementation of {name}")


@rule(
    "E8",
    "error",
    "The runtime reads the file's opset",
    repair="export again with an opset in that range, or convert the file with onnx.version_converter",
)
def _find_wrong_opset(graph: QdqGraph) -> Iterator[Violation]:
    first, last = graph.target.opsets.value
    if not graph.target.reads_opset(graph.opset):
        yield Violation("", f"the file has opset {graph.opset}; {graph.target.title} reads {first} to {last}")


@rule("W17", "warning", "No tensor is quantized twice to the same codes", repair="remove the second pair", fixable=True)
def _find_repeated_pairs(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("QuantizeLinear"):
        before = graph.producer(node.input[0])
        if before is None or before.op_type != "DequantizeLinear" or not same_parameters(before, node, graph):
            continue
        if graph.elem_type(before.input[0]) == graph.quantized_type(node):
            yield Violation(
                graph.name(node),
                f"it quantizes again what {graph.name(before)!r} has just dequantized, to the same codes",
            )


@rule(
    "W18",
    "warning",
    "Scales and zero points are initializers",
    repair="store the value as an initializer; some tools do not look through nodes",
    fixable=True,
)
def _find_node_made_parameters(graph: QdqGraph) -> Iterator[Violation]:
    for node in graph.of_type("QuantizeLinear", "DequantizeLinear"):
        for tensor in filter(None, node.input[1:3]):
            maker = graph.producer(tensor)
            if maker is not None and graph.constant(tensor) is not None:
                yield Violation(
                    graph.name(node), f"its parameter {tensor!r} is made by {maker.op_type} {graph.name(maker)!r}"
                )


@rule(
    "W16",
    "warning",
    "Initializers are not graph inputs",
    repair="remove them from the inputs (torch.onnx: keep_initializers_as_inputs=False)",
    fixable=True,
)
def _find_listed_initializers(graph: QdqGraph) -> Iterator[Violation]:
    listed = [value.name for value in graph.model.graph.input if graph.is_initializer(value.name)]
    if listed:
        names = ", ".join(repr(name) for name in listed[:3]) + (", ..." if len(listed) > 3 else "")
        yield Violation(
            "",
            f"{len(listed)} initializers are listed as inputs of the graph too ({names}): a caller may replace "
            "them, so that no tool may take them for constants and fold or quantize with them",
        )
    elif graph.model.ir_version < _FIRST_IR_WITHOUT_LISTED_INITIALIZERS and list(graph.initializers()):
        yield Violation(
            "", f"the file has IR version {graph.model.ir_version}, which wants initializers listed as inputs"
        )


@rule(
    "W19",
    "warning",
    "Something is quantized",
    repair="check that this is the quantized file; quantize the model where it is not",
)
def _find_nothing_quantized(graph: QdqGraph) -> Iterator[Violation]:
    quantized = QUANTIZED_OPERATORS | {"QuantizeLinear", "DequantizeLinear", "QGemm"}
    if not any(node.op_type in quantized or node.op_type.startswith("QLinear") for node in graph.nodes):
        yield Violation("", "it holds no QuantizeLinear and no DequantizeLinear: everything runs in float")


@rule(
    "W11",
    "warning",
    "BatchNormalization is folded",
    repair="fold it into the layer's weights before quantizing",
    fixable=True,
)
def _find_unfolded_norms(graph: QdqGraph) -> Iterator[Violation]:
    for norm in graph.of_type("BatchNormalization"):
        layer = graph.producer(norm.input[0])
        if layer is not None and layer.op_type in _HOLDS_A_NORM and graph.only_reader(norm.input[0]):
            yield Violation(
                graph.name(norm),
                f"it follows {layer.op_type} {graph.name(layer)!r} and is not folded into it, so that the layer's "
                "output is no longer what its scales were chosen for, and ONNX Runtime leaves the layer in float",
            )


@rule(
    "W20",
    "warning",
    "Tensors of different ranges are joined in float, not on one grid",
    repair="leave the joining operator and what follows it in float, its inputs quantized each with a scale of its own "
    "(quantize_static: nodes_to_exclude)",
)
def find_shared_grids(graph: QdqGraph) -> Iterator[Violation]:
    """Yield where tensors of different ranges are joined on one 8-bit grid."""
    for node in graph.of_type("Concat"):
        behind = {_step(each, graph) for each in _readers_behind(node, graph) if each.op_type == "QuantizeLinear"}
        in_front = Counter(_step(graph.operand(tensor).dequantize, graph) for tensor in node.input)
        shared = behind.union(step for step, count in in_front.items() if count > 1)
        step = max(filter(None, shared), default=0.0)
        for tensor in [each for each in node.input if each in graph.activations and step]:
            width, why = _width(tensor, graph, step)
            if width < _FEWEST_CODES * step:
                yield Violation(
                    graph.name(node),
                    f"it joins {tensor!r}, whose values span {width:.3g} at most ({why}), with others on one grid of 8 "
                    f"bits, which spans {255 * step:.3g}: {max(1, round(width / step))} of its 256 codes are left for "
                    "them, as for scores beside boxes in pixels",
                )
                break


def _readers_behind(node: onnx.NodeProto, graph: QdqGraph) -> Iterator[onnx.NodeProto]:
    ahead = [node.output[0]]
    while ahead:
        for reader in graph.readers(ahead.pop()):
            if reader.op_type in MOVES:
                ahead.extend(reader.output)
            else:
                yield reader


def _step(node: onnx.NodeProto | None, graph: QdqGraph) -> float | None:
    """Return the one scale of a Q or DQ of 8 bits; None for any other, and where codes fill fewer."""
    if node is None or graph.quantized_type(node) not in _BYTES:
        return None
    is_first = node.op_type == "QuantizeLinear"
    facts = quantization_in_front(graph, node.input[0]) if is_first else quantization_behind(graph, node.output[0])
    whole = facts is not None and facts.bits == _BITS and facts.granularity == "per_tensor"
    return facts.scale if facts is not None and whole else None


def _width(tensor: str, graph: QdqGraph, shared: float) -> tuple[float, str]:
    """Return how far a tensor's values can lie apart, as far as operators and scales but the shared tell; and why."""
    width, why = math.inf, ""
    node = graph.producer(tensor)
    while node is not None and node.op_type in _PASSED:
        step = _step(node, graph) if node.op_type not in MOVES else None
        if step is not None and step != shared and 255 * step < width:
            width, why = 255 * step, f"scale {step:.3g} of {graph.name(node)}"
        node = graph.producer(node.input[0])
    if node is not None and node.op_type in _SPANS and _SPANS[node.op_type] < width:
        width, why = _SPANS[node.op_type], f"behind {node.op_type} {graph.name(node)}"
    elif node is not None and node.op_type == "Mul":  # an objectness and a score
        sides = [graph.source(name, _PASSED) for name in node.input]
        if width > 1 and all(side is not None and _SPANS.get(side.op_type) == 1 for side in sides):
            width, why = 1.0, f"behind Mul {graph.name(node)}"
    return width, why


RULES = (find_wrong_axes, *rules_in(vars()))
