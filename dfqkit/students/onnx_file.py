"""Writes a fake-quantized student, or its float teacher, as a standard ONNX file.

What belongs here: the step from torch to ONNX, and everything that a file carries: no custom domain, no stack traces,
names taken from the model, dynamic batch. What stands for the Q/DQ nodes while the exporter looks is `onnx_nodes`.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, fx, nn

from dfqkit.students.inputs import of_file, separated
from dfqkit.students.naming import FILE_NAMES, IMAGE, INPUT, OPEN_AXES, file_names
from dfqkit.students.onnx_errors import untranslatable
from dfqkit.students.onnx_names import Place, in_scopes, name_ends, name_graph, places
from dfqkit.students.onnx_nodes import with_onnx_pooling, with_qdq
from dfqkit.students.onnx_tail import joined
from dfqkit_export._version import __version__
from dfqkit_export.backends.target import Target
from dfqkit_export.errors import TeacherError
from dfqkit_export.files import write_bytes
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.onnxfile.half import with_float16
from dfqkit_export.onnxfile.separate import separate_codes

_BATCH = torch.export.Dim("N", min=1, max=65536)


def write_float(graph: fx.GraphModule, path: Path, *, metadata: Mapping[str, str], opset: int = 18) -> None:
    """Write a float graph in normal form (the teacher, BatchNorm folded) as ONNX, whole or not at all."""
    image: ImageSpec | None = graph.meta.get(IMAGE)
    # Without it no session would know what goes into such a file.
    told = {} if image is None or image.plain else {"dfqkit.image": json.dumps(image.to_dict(), sort_keys=True)}
    write_model(float_model(graph, opset), path, metadata=told | dict(metadata))


def float_model(graph: fx.GraphModule, opset: int = 18) -> onnx.ModelProto:
    """Return a float graph in normal form as ONNX, without metadata.

    Raises:
        TeacherError: When an operator has no ONNX form; names it and the user's line.
    """
    return _exported(graph, with_onnx_pooling(graph), opset)


def write_qdq(graph: fx.GraphModule, target: Target, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a calibrated Brevitas student as a QDQ file for ``target``.

    Weights are stored as int8 codes with DequantizeLinear behind them; biases as the target wants; every activation
    quantizer becomes a Q/DQ pair, with a Clip where its range has fewer than 8 bits. The file is there whole or not at
    all.

    Raises:
        TargetError: When the graph holds a quantizer that the target cannot run, or numbers that float16 cannot hold.
    """
    model = _exported(graph, with_qdq(graph, target), target.opset)
    separate_codes(model)
    model = with_float16(model) if target.floats == "float16" else model
    write_model(model, path, metadata=metadata)


def write_model(model: onnx.ModelProto, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write an ONNX model with what it says of itself; the file is there whole or not at all."""
    told = onnx.ModelProto()
    told.CopyFrom(model)
    for key in sorted(metadata):
        told.metadata_props.add(key=key, value=metadata[key])
    write_bytes(path, told.SerializeToString(deterministic=True))


def _exported(graph: fx.GraphModule, written: fx.GraphModule, opset: int) -> onnx.ModelProto:
    """Return the file of ``written``, which is ``graph`` on the CPU in the exporter's modules."""
    placeholder = next(n for n in graph.graph.nodes if n.op == "placeholder")
    names, own = file_names(graph), graph.meta.get(FILE_NAMES)
    image: ImageSpec | None = graph.meta.get(IMAGE)
    # Those of another file may be names that the exporter gives as well.
    outputs = names.outputs if own is None else [f"dfqkit_output_{place}" for place in range(len(names.outputs))]
    example = torch.zeros((2, *placeholder.meta["example_shape"]))
    at_home = example.to(next((p.device for p in graph.parameters()), None))
    known = places(graph, at_home)
    try:
        scoped = in_scopes(written)
        if image is None or image.plain:
            model = _translated(scoped, example, opset, outputs)
        else:
            examples, axes = of_file(image, names.inputs)
            model = _translated(separated(scoped, image, names.inputs), examples, opset, outputs, axes)
    except Exception as error:
        raise TeacherError(untranslatable(graph, at_home, opset, error, _translated)) from error
    if names.inputs != (INPUT,) or own is not None:
        name_ends(model.graph, names, (own or names).outputs)
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in graph.meta.get(OPEN_AXES, {}).get(value.name, {}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    _clean(model, known)
    model = model if names.tail is None else joined(model, names.tail)
    onnx.checker.check_model(model, full_check=True)
    return model


def _translated(
    module: nn.Module,
    example: Tensor | Sequence[Tensor],
    opset: int,
    outputs: Sequence[str],
    axes: Sequence[Mapping[int, object]] = ({0: _BATCH},),
) -> onnx.ModelProto:
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    names = [INPUT] if len(examples) == 1 else [f"dfqkit_input_{place}" for place in range(len(examples))]
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        _quiet("torch.onnx", "onnxscript", "torch"),
    ):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            opset_version=opset,
            external_data=False,
            optimize=True,
            verbose=False,
            input_names=names,
            output_names=list(outputs),
            dynamic_shapes=tuple(axes),
        )
    if program is None:
        message = "torch.onnx.export returned nothing. This is a bug: please report it with the model."
        raise RuntimeError(message)
    return program.model_proto


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
