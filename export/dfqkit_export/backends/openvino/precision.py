"""What an ONNX file became when OpenVINO compiled it: which layers run on integer codes and which in float.

What belongs here: reading the execution graph of OpenVINO's CPU plugin and matching it with the file's layers. Why a
layer stayed in float is `reasons`' question.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from dfqkit_export.backends.openvino.reasons import reason_in_openvino
from dfqkit_export.backends.openvino.session import OpenVinoSession
from dfqkit_export.backends.precision import LayerPrecision, Realised, layer_told, realised, with_unique_names
from dfqkit_export.onnxfile.graph import SourceGraph
from dfqkit_export.onnxfile.model import load_onnx

Executed = Mapping[str, str]

_INTEGERS = frozenset({"i8", "u8"})
_DATA = frozenset({"Const", "Input", "Output"})
# They change the type or the place of values and compute nothing of their own.
_BOUNDARY = frozenset({"Convert", "FakeQuantize", "Reorder", "Reshape", "Transpose"})
_QUANTIZERS = frozenset({"DequantizeLinear", "QuantizeLinear"})
# OpenVINO's passes append these to the names of what they rebuild.
_SUFFIX = re.compile(r"(/WithoutBiases|/Dequantization\w+|_original)+$")


def realised_in_openvino(path: str | Path) -> Realised:
    """Compile a file with OpenVINO's CPU plugin and report how each layer is executed.

    A layer counts as integer where the primitive that computes it reads int8 or uint8 codes; where an addition was
    fused into a convolution, that is the convolution's.
    """
    source = load_onnx(path)
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
        named = with_unique_names(source, Path(path), Path(folder))
        executed = [node for node in OpenVinoSession(named, threads=1).executed() if node["layerType"] not in _DATA]
    graph = SourceGraph(source.graph)
    by_name = _by_name(executed)
    return realised(
        source,
        (_layer(node, by_name, graph) for node in graph.layers()),
        float_ops=_float_ops(source, executed),
        operators=(node["layerType"] for node in executed),
    )


def _by_name(executed: Sequence[Executed]) -> dict[str, Executed]:
    found: dict[str, Executed] = {}
    for node in executed:
        # What only moves values around a layer is named after it too.
        if node["layerType"] not in _BOUNDARY:
            found.update(dict.fromkeys(_originals(node), node))
    return found


def _originals(node: Executed) -> list[str]:
    names = [node["name"], *node.get("originalLayersNames", "").split(",")]
    return [_SUFFIX.sub("", name) for name in names if name]


def _is_integer(node: Executed) -> bool:
    precision = node.get("runtimePrecision", "")
    # Fused subgraphs leave the precision open, and say it in the name of the kernel.
    return precision in _INTEGERS or (precision == "dynamic" and node.get("primitiveType", "").lower().endswith("_i8"))


def _layer(node: onnx.NodeProto, by_name: Mapping[str, Executed], graph: SourceGraph) -> LayerPrecision:
    # Nodes that make the model's output are named after that.
    executed = by_name.get(node.name) or by_name.get(node.output[0])
    return layer_told(
        node,
        integer=executed is not None and _is_integer(executed),
        executed=None if executed is None else (executed["layerType"], executed["name"]),
        place="execution graph",
        reason=lambda: reason_in_openvino(node, graph),
    )


def _float_ops(source: onnx.ModelProto, executed: Sequence[Executed]) -> Iterator[tuple[str, str]]:
    computing = {
        name: node.name
        for node in source.graph.node
        if node.op_type not in _QUANTIZERS
        for name in (node.name, *node.output)
    }
    for node in executed:
        names = [computing[name] for name in _originals(node) if name in computing]
        if names and node["layerType"] not in _BOUNDARY and not _is_integer(node):
            yield node["layerType"], names[0]
