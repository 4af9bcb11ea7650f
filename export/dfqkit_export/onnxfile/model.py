"""Reading an ONNX file that somebody else may have made: complete, sane, and nothing outside its folder.

What belongs here: `load_onnx` and every way in which a file can be no model, and `require_images` for files that are
models but take no images. Whether a model is good for a target is the checker's question.
"""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import require_model
from dfqkit_export.onnxfile.external_data import PROTOBUF_LIMIT, load_external_data
from dfqkit_export.onnxfile.graph import OWN_DOMAINS, opset_of, parameter_inputs, type_name
from dfqkit_export.onnxfile.skeleton import skeleton

_NEWEST_IR = 1000  # far beyond what there is: a runtime says what it takes
_OLDEST_OPSET = 7  # what ONNX Runtime reads at all (docs/Versioning.md)
#: Begins every file with an ir_version, which all exporters write first: field 1, a number.
_FIRST_BYTE = b"\x08"
_ENTRY = {b"PK\x03\x04": "a zip archive (a torch checkpoint?)", b"\x80": "a pickle", b"\x89PNG": "a PNG image"}

# import_module, because protobuf has no type information.
_DECODE_ERROR: type[Exception] = import_module("google.protobuf.message").DecodeError


def load_onnx(path: str | Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read an ONNX file, with its external data where it has such; nodes are in order and initializers whole.

    Without `weights`, large tensors stay in their files, for `values_of` to read one at a time: such a model is looked
    at, never changed or written.

    Raises:
        ArtefactError: It does not exist, is too large to be one, is no ONNX, is truncated, has an opset that is not
            read here, keeps data elsewhere than beside itself, or holds nodes that ONNX does not allow or a graph that
            does not fit together.
    """
    file = Path(path)
    model = _parsed(file, whole=weights)
    _check_versions(model, file)
    load_external_data(model, file, read=weights)
    _check_nodes(model, file)
    _check_graph(model.graph, file)
    return model


def metadata_in(model: onnx.ModelProto) -> dict[str, str]:
    """Return a file's own text properties; of a key that stands twice, the last."""
    return {entry.key: entry.value for entry in model.metadata_props}


def require_images(model: onnx.ModelProto, path: str | Path) -> None:
    """Refuse a model that does not take one batch of float32 images, such as (N, 3, 224, 224).

    Inputs that only quantizers read, as scales and zero points, are no images: they are the checker's question.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    parameters = parameter_inputs(model.graph)
    inputs = [value for value in model.graph.input if value.name not in stored | parameters]
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs) or "none"
        message = (
            f"Model {str(path)!r} has {len(inputs)} inputs ({names}); allowed is one, a batch of images. Export the "
            "network alone, with weights as initializers and not as inputs."
        )
        raise ArtefactError(message)
    tensor = inputs[0].type.tensor_type
    sizes = list(tensor.shape.dim)
    if tensor.elem_type != TensorProto.FLOAT or len(sizes) != 4:
        message = (
            f"Model {str(path)!r} takes {inputs[0].name!r} of type {type_name(tensor.elem_type)} with {len(sizes)} "
            "dimensions; allowed is float with 4: images, channels, height, width. Put conversions in front of the "
            "model, not into it."
        )
        raise ArtefactError(message)
    if sizes[0].HasField("dim_value") and sizes[0].dim_value == 0:  # below, as Paddle writes it, is any number
        message = (
            f"Model {str(path)!r} takes batches of 0 images in {inputs[0].name!r}. Export it with a batch of at least "
            "1, or with a symbolic one."
        )
        raise ArtefactError(message)
    still_open = [size.dim_param or "?" for size in sizes[1:] if not size.dim_value > 0]
    if still_open:
        message = (
            f"Model {str(path)!r} leaves {', '.join(repr(name) for name in still_open)} of its input "
            f"{inputs[0].name!r} open; only the batch size, the first, may be. Export it with the size of the images "
            "that it is to take."
        )
        raise ArtefactError(message)


def _parsed(path: Path, *, whole: bool) -> onnx.ModelProto:
    require_model(path)
    size = path.stat().st_size
    if size > PROTOBUF_LIMIT:
        message = (
            f"Model {str(path)!r} has {size} bytes; an ONNX file has at most {PROTOBUF_LIMIT} (2 GiB), the limit of "
            "protobuf. Keep its weights beside it: onnx.save_model(model, path, save_as_external_data=True)."
        )
        raise ArtefactError(message)
    try:
        content = path.read_bytes() if whole else skeleton(path)
        model: onnx.ModelProto = onnx.ModelProto.FromString(content)
    except (ValueError, _DECODE_ERROR):
        content, model = b"", onnx.ModelProto()
    with path.open("rb") as file:
        begins = file.read(16)
    if not model.graph.node and not begins.startswith(_FIRST_BYTE):
        message = f"Model {str(path)!r} is not an ONNX file but {_what(begins)}. Give the path of an .onnx file."
        raise ArtefactError(message)
    if not model.graph.node:
        message = (
            f"Model {str(path)!r} is not a complete ONNX file: its {size} bytes end too early, are damaged, or hold no "
            "operators. Export or copy it again."
        )
        raise ArtefactError(message)
    return model


def _what(content: bytes) -> str:
    if not content:
        return "empty"
    known = next((what for start, what in _ENTRY.items() if content.startswith(start)), None)
    return known or f"begins with {content[:8]!r}"


def _check_versions(model: onnx.ModelProto, path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    if not 0 < model.ir_version <= _NEWEST_IR:
        message = (
            f"Model {str(path)!r} has IR version {model.ir_version}; read are 1 to {_NEWEST_IR}. The file is damaged: "
            "export or copy it again."
        )
        raise ArtefactError(message)
    version = opset_of(model)
    if version is None:
        own = any(node.domain in OWN_DOMAINS for node in model.graph.node)
        if own:
            message = f"Model {str(path)!r} names no opset, so it is not a complete ONNX file. Export or copy it again."
            raise ArtefactError(message)
        return
    if version > newest:
        message = (
            f"Model {str(path)!r} has opset {version}; onnx {onnx.__version__} knows {_OLDEST_OPSET} to {newest}. "
            "Upgrade onnx, or export with an older opset, such as 18."
        )
        raise ArtefactError(message)
    if version < _OLDEST_OPSET:
        message = (
            f"Model {str(path)!r} has opset {version}; read are {_OLDEST_OPSET} to {newest}. Export it again, or use "
            "onnx.version_converter.convert_version(model, 18)."
        )
        raise ArtefactError(message)


def _check_nodes(model: onnx.ModelProto, path: Path) -> None:
    """Refuse nodes with other inputs, outputs or attributes than their operator has; the unknown ones are E6's."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    context.opset_imports = opsets
    for index, node in enumerate(model.graph.node):
        problem = "" if node.output else "it has no output"
        # protobuf gives what is no UTF-8 as bytes.
        if not all(isinstance(text, str) for text in (node.op_type, node.domain, node.name, *node.input, *node.output)):
            message = (
                f"Model {str(path)!r}: names of node number {index} are no text. The file is damaged: copy it again."
            )
            raise ArtefactError(message)
        try:
            # Graphs inside a node read the tensors around it, which the check of a single node does not know; nor does
            # it take values that stay in the file.
            alone = not any(
                item.HasField("g") or item.graphs or item.t.data_location == TensorProto.EXTERNAL
                for item in node.attribute
            )
            if alone and onnx.defs.has(node.op_type, opsets.get(node.domain, 0), node.domain):
                onnx.checker.check_node(node, context)
        except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
            problem = str(error).partition("\n")[0].rstrip(".")
        if problem:
            message = (
                f"Model {str(path)!r}: node {node.name or f'{node.op_type}[{index}]'!r} is not what ONNX allows: "
                f"{problem}. Export it again."
            )
            raise ArtefactError(message)


def _require_whole(tensor: onnx.TensorProto) -> None:
    if tensor.data_location != TensorProto.EXTERNAL:
        numpy_helper.to_array(tensor)
        return
    length = int(next(entry.value for entry in tensor.external_data if entry.key == "length"))
    bits = 4 if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4) else 8
    bits *= np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    if any(size < 0 for size in tensor.dims) or length != -(-math.prod(tensor.dims) * bits // 8):
        message = f"{length} bytes do not hold {list(tensor.dims)} numbers of {bits} bits"
        raise ValueError(message)


def _check_graph(graph: onnx.GraphProto, path: Path) -> None:
    """Refuse initializers that are not whole, nodes that read what nothing has made, and outputs that nothing makes."""
    made = {""} | {value.name for value in graph.input}
    for tensor in graph.initializer:
        try:
            _require_whole(tensor)
        except (KeyError, TypeError, ValueError) as error:
            message = (
                f"Model {str(path)!r} holds an initializer {tensor.name!r} that is not whole: {error}. Export or copy "
                "it again."
            )
            raise ArtefactError(message) from None
        made.add(tensor.name)
    made.update(tensor.values.name for tensor in graph.sparse_initializer)
    for index, node in enumerate(graph.node):
        missing = next((name for name in node.input if name not in made), None)
        if missing is not None:
            message = (
                f"Model {str(path)!r}: node {node.name or f'{node.op_type}[{index}]'!r} reads {missing!r}, which no "
                "input, initializer or earlier node makes. Export it again."
            )
            raise ArtefactError(message)
        again = next((name for name in node.output if name and name in made), None)
        if again is not None:
            message = f"Model {str(path)!r}: {again!r} is made twice, which ONNX does not allow. Export it again."
            raise ArtefactError(message)
        made.update(node.output)
    outputs = [value.name for value in graph.output]
    unmade = [name for name in outputs if name not in made]
    if unmade or not outputs:
        found = f"the output {unmade[0]!r}, which nothing makes" if unmade else "no output"
        message = f"Model {str(path)!r} has {found}. Export it again."
        raise ArtefactError(message)
