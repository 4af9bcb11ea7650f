"""What the TensorRT family says of an engine, layer by layer, and how that answers for the layers of an ONNX file.

What belongs here: `EngineLayer`, which the readers of both runtimes fill in, and the match between engine
layers and ONNX nodes. Why a layer stayed in float is the rules' knowledge and is only asked for here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

from dfqkit_export.backends.precision import UNEXPLAINED, LayerPrecision, Realised, name_uniquely, realised
from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.target import Target
from dfqkit_export.backends.tensorrt.rules import RULES
from dfqkit_export.backends.weight_axes import find_wrong_axes
from dfqkit_export.onnxfile.graph import SourceGraph
from dfqkit_export.onnxfile.model import load_onnx

# As the engine's own texts name them, in RTX 1.7's log and in the formats of the inspector.
_TYPES = {
    "int8": "int8", "uint8": "uint8", "int4": "int4", "int32": "int32", "int64": "int64", "bool": "bool",
    "float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bf16": "bfloat16",
    "bfloat16": "bfloat16", "fp8": "float8", "fp4": "float4",
}  # fmt: skip
_TYPE = re.compile(rf"\b({'|'.join(_TYPES)})\b", re.IGNORECASE)
_FLOATS = frozenset({"float32", "float16", "bfloat16"})
# Layers that multiply: correlation, deconv and gemm in RTX; CaskConvolution, MatrixMultiply and the like in TensorRT.
_COMPUTES = re.compile(r"correlation|conv|gemm|matmul|matrixmultiply|fullyconnected", re.IGNORECASE)
# Generated element-wise code: it requantizes between integer layers and reads their sums in float, which is no loss.
_GLUE = re.compile(r"kgen|pointwise|reformat|scale|shape|signal|wait|noop|constant|shuffle|slice", re.IGNORECASE)
_OPERAND_PATH = frozenset(
    {"DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
_UNEXPLAINED = {
    False: UNEXPLAINED,
    True: "no layer of its own in the engine computes it (fused or folded under another name); counted as float",
}
# The rules for what is accepted and then computed in float, the most telling last.
_FLOAT_RULES = sorted(
    (find_wrong_axes, *(one for one in RULES if one.id in ("W3", "W4", "W6", "W15"))), key=lambda one: int(one.id[1:])
)


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """One layer of a built engine.

    Attributes:
        name: The engine's name for it.
        kind: The engine's word for what it is ("correlation", "CaskConvolution").
        inputs: Data types of its inputs without constants, in order: "int8", "float32", ...; "" where not told.
        outputs: Data types of its outputs.
        nodes: Names of the ONNX nodes that went into it.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def computes(self) -> bool:
        """Whether it is a convolution or matrix product."""
        return _COMPUTES.search(self.kind) is not None

    @property
    def integer(self) -> bool:
        """Whether it reads int8 codes."""
        return bool(self.inputs) and self.inputs[0] == "int8"


def types_in(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the data type that each text, such as "Row major Int8 format", names, or "" for it."""
    found = (_TYPE.search(text) for text in texts)
    return tuple(_TYPES[one.group(1).lower()] if one else "" for one in found)


def nodes_in(metadata: str) -> tuple[str, ...]:
    """Return the ONNX nodes that a layer's metadata names: "[ONNX Layer: a][ONNX Layer: b]", separators allowed."""
    parts = metadata.split("[ONNX Layer: ")[1:]
    return tuple(part.rpartition("]")[0] for part in parts if "]" in part)


def read_file(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file and name its nodes as a build does."""
    model = load_onnx(path)
    name_uniquely(model)
    return model


def match_layers(model: onnx.ModelProto, layers: Iterable[EngineLayer], *, target: Target) -> Realised:
    """Say how an engine executes each convolution and matrix product of the file that it was built from.

    Additions are not among the layers: the TensorRT family computes them in generated element-wise code, which reads
    and writes int8 and adds in float. For the same reason that code is not among `float_ops`. The model's nodes have
    unique names; the target's rules may say why a layer is in float.
    """
    engine = list(layers)
    graph = SourceGraph(model.graph)
    weighted = list(graph.weighted())
    executed = {node.name: _executed(node.name, engine) for node in weighted}
    integer = {name for name, layer in executed.items() if layer is not None and layer.integer}
    reasons = _reasons(model, graph, [node for node in weighted if node.name not in integer], target)
    return realised(
        model,
        (
            LayerPrecision(
                name=node.name,
                op=node.op_type,
                precision="int8" if node.name in integer else "float",
                executed_as=getattr(executed[node.name], "kind", ""),
                detail="" if node.name in integer else reasons[node.name] or _UNEXPLAINED[executed[node.name] is None],
                kernel=getattr(executed[node.name], "name", ""),
            )
            for node in weighted
        ),
        float_ops=((layer.kind, " + ".join(layer.nodes) or layer.name) for layer in engine if _is_float_work(layer)),
        operators=(layer.kind for layer in engine),
    )


def _executed(name: str, engine: list[EngineLayer]) -> EngineLayer | None:
    """Return the layer that computes a node: of those that name it, the one that multiplies; else one that fused it."""
    # Engines without detailed metadata still put the node's name into the layer's.
    named = [layer for layer in engine if name in layer.nodes] or [
        layer for layer in engine if not layer.nodes and name in re.split(r" \+ |_myl\d+_\d+$", layer.name)
    ]
    computing = [layer for layer in named if layer.computes]
    fused = [layer for layer in named if not _GLUE.search(layer.kind)]
    return next(iter([*computing, *fused]), None)


def _reasons(
    model: onnx.ModelProto, graph: SourceGraph, layers: list[onnx.NodeProto], target: Target
) -> dict[str, str]:
    """Return why each layer is in float, "" where no rule tells."""
    if not layers:
        return {}
    quantized = QdqGraph(model, target)
    problems = {
        found.node: f"{found.node!r}: {found.message} (rule {rule.id}); {found.repair or rule.repair}"
        for rule in _FLOAT_RULES
        for found in rule.find(quantized)
    }
    found = {}
    for layer in layers:
        # A pair breaks a rule on scales twice over; its first node is enough.
        around = (layer, *(node for tensor in layer.input[:2] for node in graph.path(tensor, _OPERAND_PATH)))
        broken = [problems[node.name] for node in around if node.name in problems][:1]
        unquantized = [tensor for tensor in layer.input[:2] if not _dequantized(tensor, graph)]
        if not broken and unquantized:
            broken = [f"{', '.join(map(repr, unquantized))} has no DequantizeLinear; put Q/DQ on both operands"]
        found[layer.name] = next(iter(broken), "")
    return found


def _dequantized(tensor: str, graph: SourceGraph) -> bool:
    node = graph.source(tensor, _OPERAND_PATH - {"DequantizeLinear"})
    return node is not None and node.op_type == "DequantizeLinear"


def _is_float_work(layer: EngineLayer) -> bool:
    first = layer.inputs[0] if layer.inputs else ""
    return first in _FLOATS and (layer.computes or not _GLUE.search(layer.kind))
