"""Writes a fake-quantized student, or its float teacher, as a standard ONNX file.

What belongs here: the step from torch to ONNX, and the only import of torch in this package (inside the functions). The
graph comes as an `fx.GraphModule` whose layers are `torch.nn` or Brevitas modules; what Brevitas learned (scales, zero
points, integer codes) is read out and written as QuantizeLinear / DequantizeLinear with integer initializers.
Everything that a file carries is decided here: no custom domain, no stack traces, names taken from the model, dynamic
batch.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from dfqkit_export.backends.target import Target
from dfqkit_export.files import write_bytes

if TYPE_CHECKING:
    from torch import fx

INPUT = "image"


def write_float(graph: fx.GraphModule, path: Path, *, metadata: Mapping[str, str], opset: int = 18) -> None:
    """Write a float graph (the teacher, BatchNorm folded) as ONNX.

    Args:
        graph: A float graph in normal form, eval mode.
        path: File to write; replaced whole or not at all.
        metadata: Text properties stored in the file.
        opset: ONNX opset.
    """
    from dfqkit.students.onnx_nodes import with_onnx_pooling

    write_bytes(path, _serialise(with_onnx_pooling(graph), metadata, opset))


def write_qdq(graph: fx.GraphModule, target: Target, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a calibrated Brevitas student as a QDQ file for ``target``.

    Weights are stored as int8 codes with DequantizeLinear behind them; biases as the target wants; every activation
    quantizer becomes a Q/DQ pair, with a Clip where its range has fewer than 8 bits.

    Args:
        graph: A fake-quantized graph as built for the same target.
        target: Decides types, bias and clipping.
        path: File to write; replaced whole or not at all.
        metadata: Text properties stored in the file.

    Raises:
        TargetError: When the graph holds a quantizer that the target cannot run.
    """
    from dfqkit.students.onnx_nodes import with_qdq

    write_bytes(path, _serialise(with_qdq(graph, target), metadata, target.opset))


def integer_bias(graph: fx.GraphModule) -> dict[str, Any]:
    """Return each layer's bias as int32 will store it, by layer name: float tensors (C_out,) on that grid."""
    from dfqkit.students.onnx_nodes import rounded_biases

    return rounded_biases(graph)


def input_scales(graph: fx.GraphModule) -> dict[str, Any]:
    """Return the scale of each quantized layer's input, by layer name: scalar tensors."""
    from dfqkit.students.onnx_nodes import input_scales as scales

    return scales(graph)


def _serialise(graph: fx.GraphModule, metadata: Mapping[str, str], opset: int) -> bytes:
    import torch

    placeholder = next(n for n in graph.graph.nodes if n.op == "placeholder")
    outputs = next(n for n in graph.graph.nodes if n.op == "output").meta["outputs"]
    example = torch.zeros((2, *placeholder.meta["example_shape"]))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=opset,
            external_data=False,
            optimize=True,
            verbose=False,
            input_names=[INPUT],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("N", min=1, max=65536)},),
        )
    if program is None:
        message = "torch.onnx.export returned nothing. This is a bug: please report it with the model."
        raise RuntimeError(message)
    model = program.model_proto
    _clean(model, outputs)
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _quiet(*names: str) -> Any:
    """Silence the exporter, which logs every step and warns of unused options."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _clean(model: onnx.ModelProto, outputs: Sequence[str]) -> None:
    """Make the file say only what it must: stable names, no traces of the machine that wrote it."""
    from dfqkit_export._version import __version__

    model.producer_name, model.producer_version, model.doc_string = "dfqkit", __version__, ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "dfqkit", ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    _name_nodes(graph, outputs)
    for node in graph.node:
        del node.metadata_props[:]


def _name_nodes(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    """Name nodes and tensors after the model's layers, so that every later report can speak the user's language."""
    tails = {"QuantizeLinear": "quantized", "Clip": "clipped", "DequantizeLinear": "dequantized"}
    tensors, nodes = {INPUT, *outputs}, set[str]()  # a layer may be called as its output is
    renamed: dict[str, str] = {}
    for node in graph.node:
        owner = _module_path(node)
        if node.op_type in tails and owner.startswith("quant."):
            node.name = _unique(f"{owner.removeprefix('quant.')}_{tails[node.op_type]}", tensors | nodes)
            tensors.add(node.name)
            if node.output[0] not in outputs:
                renamed[node.output[0]] = node.name
        elif node.op_type == "DequantizeLinear":
            node.name = _unique(f"{owner}/{node.input[0].rpartition('.')[2]}", nodes)
        else:
            node.name = _unique(owner, nodes)
        nodes.add(node.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]


def _module_path(node: onnx.NodeProto) -> str:
    """Return the module (or function) a node was traced from. Initializers tell it only until equal ones are merged."""
    for item in node.metadata_props:
        if item.key == "pkg.torch.onnx.name_scopes":
            scopes = [scope for scope in ast.literal_eval(item.value) if scope]
            return str(scopes[0]) if scopes else node.op_type
    return node.op_type


def _unique(name: str, used: set[str]) -> str:
    """``name``, or with a number where it is taken already (a layer called twice)."""
    candidate, count = name, 1
    while candidate in used:
        count += 1
        candidate = f"{name}_{count}"
    return candidate
