"""Writes a fake-quantized student, or its float teacher, as a standard ONNX file.

What belongs here: the step from torch to ONNX, and everything that a file carries: no custom domain, no stack traces,
names taken from the model, dynamic batch. What stands for the Q/DQ nodes while the exporter looks is `onnx_nodes`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import fx

from dfqkit.students.naming import INPUT
from dfqkit.students.onnx_names import Place, in_scopes, name_graph, places
from dfqkit.students.onnx_nodes import with_onnx_pooling, with_qdq
from dfqkit_export._version import __version__
from dfqkit_export.backends.target import Target
from dfqkit_export.files import write_bytes


def write_float(graph: fx.GraphModule, path: Path, *, metadata: Mapping[str, str], opset: int = 18) -> None:
    """Write a float graph in normal form (the teacher, BatchNorm folded) as ONNX, whole or not at all."""
    write_bytes(path, _serialise(graph, with_onnx_pooling(graph), metadata, opset))


def write_qdq(graph: fx.GraphModule, target: Target, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a calibrated Brevitas student as a QDQ file for ``target``.

    Weights are stored as int8 codes with DequantizeLinear behind them; biases as the target wants; every activation
    quantizer becomes a Q/DQ pair, with a Clip where its range has fewer than 8 bits. The file is there whole or not at
    all.

    Raises:
        TargetError: When the graph holds a quantizer that the target cannot run.
    """
    write_bytes(path, _serialise(graph, with_qdq(graph, target), metadata, target.opset))


def _serialise(graph: fx.GraphModule, written: fx.GraphModule, metadata: Mapping[str, str], opset: int) -> bytes:
    """Return the file of ``written``, which is ``graph`` on the CPU in the exporter's modules."""
    placeholder = next(n for n in graph.graph.nodes if n.op == "placeholder")
    outputs = next(n for n in graph.graph.nodes if n.op == "output").meta["outputs"]
    example = torch.zeros((2, *placeholder.meta["example_shape"]))
    known = places(graph, example.to(next((p.device for p in graph.parameters()), None)))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            in_scopes(written),
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
    _clean(model, known)
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
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


def _clean(model: onnx.ModelProto, places: Sequence[Place]) -> None:
    """Make the file say only what it must: stable names, no traces of the machine that wrote it."""
    model.producer_name, model.producer_version, model.doc_string = "dfqkit", __version__, ""
    del model.metadata_props[:]
    graph = model.graph
    name_graph(graph, places)  # reads the nodes' metadata
    del graph.value_info[:]
    for item in (graph, *graph.input, *graph.output, *graph.initializer, *graph.node):
        item.doc_string = ""
        del item.metadata_props[:]
    graph.name = "dfqkit"
