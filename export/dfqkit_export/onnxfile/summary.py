"""What a quantized ONNX file is: its frame, and what each layer's weights, bias and activations are stored as.

What belongs here: facts about a file and its layers, whoever made it. Whether they are good for a target is the
checker's question; what a runtime makes of them is `precision`'s. One tensor at a time is `quantization`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from dfqkit_export.onnxfile.canonical.opened import forms, opened
from dfqkit_export.onnxfile.graph import SourceGraph, has_input, type_name
from dfqkit_export.onnxfile.model import metadata_in
from dfqkit_export.onnxfile.quantization import (
    QuantFacts,
    WeightFacts,
    quantization_behind,
    quantization_in_front,
    weight_of,
)
from dfqkit_export.onnxfile.shapes import told_sizes


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """What one layer of the file is stored as.

    Attributes:
        name: Name of the node, or of its output where it has none.
        op: ONNX operator.
        weight: How its weight is stored, or None where it has none.
        bias: "none", "int32" (behind a DequantizeLinear), the float type, or "computed".
        input: Quantization of the first input, or None where the layer reads float.
        residual: The same of the second input where that is an activation (Add), else None.
        output: Quantization of the output (behind a Relu where one follows), or None where it stays float.
    """

    name: str
    op: str
    weight: WeightFacts | None
    bias: str
    input: QuantFacts | None
    residual: QuantFacts | None
    output: QuantFacts | None


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What a file is as a whole.

    Attributes:
        opset: Version of ONNX's own operators; 0 where the file imports none.
        domains: Other operator domains with their versions.
        ir_version: Version of the file format.
        producer: Name and version of what wrote it.
        inputs: Name and type of each input that is no initializer: ``image: float32 (N, 3, 32, 32)``.
        outputs: The same of each output.
        nodes: Number of operators.
        quantize: Number of QuantizeLinear.
        dequantize: Number of DequantizeLinear.
        parameters: Number of stored numbers.
        metadata: The file's own text properties.
        layers: Every layer; those of integer operators as the float operators between quantizers that they stand for.
        quantized_as: How: "Q/DQ pairs", "integer operators (QOperator)", "dynamic quantization"; empty for float files.
    """

    opset: int
    domains: dict[str, int]
    ir_version: int
    producer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: int
    quantize: int
    dequantize: int
    parameters: int
    metadata: dict[str, str]
    layers: tuple[LayerFacts, ...]
    quantized_as: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        return asdict(self)


def file_facts(model: onnx.ModelProto) -> FileFacts:
    """Return what a checked file is."""
    versions = {item.domain or "ai.onnx": item.version for item in model.opset_import}
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    operators = [node.op_type for node in graph.node]
    return FileFacts(
        opset=versions.pop("ai.onnx", 0),
        domains=versions,
        ir_version=model.ir_version,
        producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
        inputs=tuple(_described(value) for value in graph.input if value.name not in stored),
        outputs=tuple(_described(value) for value in graph.output),
        nodes=len(operators),
        quantize=operators.count("QuantizeLinear"),
        dequantize=operators.count("DequantizeLinear"),
        parameters=sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in graph.initializer),
        metadata=metadata_in(model),
        layers=layer_facts(opened(model)),
        quantized_as=forms(model),
    )


def layer_facts(model: onnx.ModelProto) -> tuple[LayerFacts, ...]:
    """Return what each layer that computes is stored as, in the file's order."""
    graph = SourceGraph(model.graph)
    return tuple(layer_of(graph, node) for node in graph.layers())


def layer_of(graph: SourceGraph, node: onnx.NodeProto) -> LayerFacts:
    """Return what one layer of a graph is stored as."""
    weight = weight_of(graph, node)
    two = weight is None and len(node.input) > 1
    return LayerFacts(
        name=node.name or node.output[0],
        op=node.op_type,
        weight=weight,
        bias=_bias(graph, node),
        input=quantization_behind(graph, node.input[0]),
        residual=quantization_behind(graph, node.input[1]) if two else None,
        output=quantization_in_front(graph, graph.fused_outputs(node)[-1]),
    )


def _bias(graph: SourceGraph, node: onnx.NodeProto) -> str:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or not has_input(node, 2):
        return "none"
    maker = graph.producer(node.input[2])
    values = graph.constant(maker.input[0] if maker is not None and maker.input else node.input[2])
    return str(values.dtype) if values is not None else "computed"


def _described(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    kind = type_name(tensor.elem_type)
    kind = {"float": "float32", "double": "float64"}.get(kind, kind)
    shown = "" if not tensor.HasField("shape") else f" {told_sizes(value)}"
    return f"{value.name}: {kind}{shown}"
