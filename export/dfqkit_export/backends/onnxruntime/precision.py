"""What an ONNX file became when ONNX Runtime loaded it: which layers run in integer kernels and which in float.

What belongs here: running a file through the runtime's graph optimizer and matching the result with the file's layers.
Why a layer stayed in float is `reasons`' question.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.inliner

from dfqkit_export.backends import precision
from dfqkit_export.backends.onnxruntime.reasons import float_reasons
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.onnxfile.graph import SourceGraph
from dfqkit_export.onnxfile.model import load_onnx

# Kernels of ONNX Runtime's CPU provider that multiply or add integer codes.
INTEGER_OPS = frozenset(
    {"ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearAdd"}
    | {"QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearConvTranspose", "QLinearGlobalAveragePool"}
    | {"QLinearLeakyRelu", "QLinearMatMul", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid"}
    | {"QLinearSoftmax", "QLinearWhere"}
)
# These integer kernels give float results: always, or (QGemm) where no output scale is given as input 7.
_FLOAT_RESULT = frozenset({"ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"})
_QGEMM_OUTPUT_SCALE = 7
# What layers are in files that the optimizer wrote.
_WRITTEN_AS_KERNELS = frozenset(
    {"QGemm", "QLinearAdd", "QLinearConv", "QLinearConvTranspose", "QLinearMatMul"}
    | {"ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
)
_BOUNDARY = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_MOVES = frozenset(
    {"Cast", "Constant", "Flatten", "Identity", "ReorderInput", "ReorderOutput", "Reshape", "Squeeze", "Transpose"}
    | {"Unsqueeze", "Shape"}
)
# ONNX Runtime 1.32's layout transformer appends this to the names of the nodes that it rebuilds.
_TOKEN = re.compile(r"_token_\d+$")


def realised_in_onnxruntime(path: str | Path) -> precision.Realised:
    """Load a file into ONNX Runtime with all optimizations and report how each layer is executed."""
    source = load_onnx(path, weights=False)
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
        named = Path(path)
        if source.functions or precision.name_uniquely(source):
            source = load_onnx(path)
            if source.functions:  # whose nodes the runtime's account is about
                source, named = onnx.inliner.inline_local_functions(source), Path(folder, "inlined.onnx")
                onnx.save(source, str(named))
            named = precision.with_unique_names(source, named, Path(folder))
        optimized_path = Path(folder) / "optimized.onnx"
        OrtSession(named, threads=1, optimized_path=optimized_path, lean=True)
        optimized = onnx.load(str(optimized_path), load_external_data=False)
    graph = SourceGraph(source.graph)
    layers = _layers(graph, source.graph)
    executed = _match(graph, layers, optimized.graph)
    return precision.realised(
        source,
        (_layer(node, executed.get(node.name), graph) for node in layers),
        float_ops=((node.op_type, _TOKEN.sub("", node.name)) for node in _float_nodes(optimized.graph)),
        operators=(node.op_type for node in optimized.graph.node),
    )


def _layers(graph: SourceGraph, proto: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the file's layers, those too that it has as integer kernels, as the optimizer writes them."""
    known = {id(node) for node in graph.layers()}
    return [node for node in proto.node if id(node) in known or node.op_type in _WRITTEN_AS_KERNELS]


def _match(source: SourceGraph, layers: list[onnx.NodeProto], optimized: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    by_name: dict[str, onnx.NodeProto] = {}
    by_weight: dict[str, onnx.NodeProto] = {}
    by_output: dict[str, onnx.NodeProto] = {}
    for node in optimized.node:
        if node.op_type in _MOVES:
            if node.input and node.input[0] in by_output:
                by_output.update(dict.fromkeys(node.output, by_output[node.input[0]]))
        elif node.op_type not in _BOUNDARY:
            by_name[_TOKEN.sub("", node.name)] = node
            by_output.update(dict.fromkeys(node.output, node))
            # Float convolutions in the blocked layout are named after the output tensor that they replace.
            by_output[node.name.removesuffix("_nchwc")] = node
            for tensor in filter(None, node.input):
                by_weight.setdefault(tensor, node)
    executed: dict[str, onnx.NodeProto] = {}
    for layer in layers:
        # Fusions that rename the node keep the name of the weight, or of the last output that they swallowed.
        candidates = [
            by_name.get(layer.name),
            by_weight.get(source.weight_initializer(layer) or ""),
            *(by_output.get(tensor) for tensor in source.fused_outputs(layer)),
            *(_adding_convolution(by_output.get(tensor)) for tensor in layer.input if layer.op_type == "Add"),
        ]
        found = [node for node in candidates if node is not None]
        if found:
            executed[layer.name] = found[0]
    return executed


def _adding_convolution(node: onnx.NodeProto | None) -> onnx.NodeProto | None:
    # A float convolution takes the other operand of an Add that it swallowed as its fourth input.
    adds = node is not None and node.op_type in ("Conv", "FusedConv") and len(node.input) > 3
    return node if adds else None


def _layer(node: onnx.NodeProto, executed: onnx.NodeProto | None, graph: SourceGraph) -> precision.LayerPrecision:
    return precision.layer_told(
        node,
        integer=executed is not None and executed.op_type in INTEGER_OPS,
        executed=None if executed is None else (executed.op_type, _TOKEN.sub("", executed.name)),
        place="optimized graph",
        reason=lambda: next((f"{reason.found}; {reason.repair}" for reason in float_reasons(node, graph)), ""),
    )


def _float_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
    is_float = {value.name for value in graph.input if value.type.tensor_type.elem_type in floats}
    for node in graph.node:
        reads_float = any(name in is_float for name in node.input)
        if reads_float and node.op_type not in _BOUNDARY | _MOVES | INTEGER_OPS:
            yield node
        if _gives_float(node, reads_float):
            is_float.update(node.output)


def _gives_float(node: onnx.NodeProto, reads_float: bool) -> bool:
    if node.op_type == "DequantizeLinear" or node.op_type in _FLOAT_RESULT:
        return True
    if node.op_type == "QGemm":
        return len(node.input) <= _QGEMM_OUTPUT_SCALE or not node.input[_QGEMM_OUTPUT_SCALE]
    return reads_float and node.op_type not in INTEGER_OPS | _BOUNDARY | {"Shape"}
