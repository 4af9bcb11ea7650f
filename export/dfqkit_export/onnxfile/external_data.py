"""Weights that an ONNX file keeps in files beside it: read where they are whole and inside the model's own folder.

What belongs here: the walk over everything in a model that may point to another file, and what such a pointer may say.
A path out of the folder is never opened: a model that someone sent must not choose which of the reader's files it gets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from dfqkit_export.errors import ArtefactError
from dfqkit_export.onnxfile.graph import inner_graphs

#: Bytes that one protobuf message may have.
PROTOBUF_LIMIT = 2**31 - 1


def load_external_data(model: onnx.ModelProto, path: Path, *, read: bool = True) -> None:
    """Read into a model, in place, what its file keeps in other files, or make sure that `values_of` can.

    Raises:
        ArtefactError: A tensor points out of the file's folder, to a file that is not there, or beyond its end, or the
            model has 2 GiB and more with its data: what is read here is changed and written in one piece.
    """
    inner = (tensor for function in model.functions for tensor in _of_nodes(function.node))
    total = path.stat().st_size
    for tensor in (*_tensors(model.graph), *inner):
        if tensor.data_location == TensorProto.EXTERNAL:
            total += _load(tensor, path, PROTOBUF_LIMIT - total, read=read)


def _load(tensor: onnx.TensorProto, path: Path, allowed: int, *, read: bool) -> int:
    entries = {item.key: item.value for item in tensor.external_data}
    what = f"Model {str(path)!r} keeps {tensor.name!r} in"
    source = _inside(entries.get("location", ""), path, what)
    size = source.stat().st_size
    offset = _number(entries.get("offset", "0"), what)
    length = _number(entries["length"], what) if "length" in entries else max(size - offset, 0)
    if offset + length > size:
        message = (
            f"{what} {entries['location']!r}, bytes {offset} to {offset + length}, but that file has {size}. It is not "
            "complete: export or copy both again."
        )
        raise ArtefactError(message)
    if not read:
        _leave(tensor, source, offset, length)
        return 0
    if length > allowed:
        message = (
            f"Model {str(path)!r} has more than {PROTOBUF_LIMIT} bytes (2 GiB) with the data beside it; read are "
            "models up to that size. Check a smaller model of the same architecture."
        )
        raise ArtefactError(message)
    with source.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(length)
    tensor.ClearField("data_location")
    tensor.ClearField("external_data")
    return length


def _leave(tensor: onnx.TensorProto, source: Path, offset: int, length: int) -> None:
    del tensor.external_data[:]
    for key, value in {"location": str(source), "offset": str(offset), "length": str(length)}.items():
        tensor.external_data.add(key=key, value=value)


def _inside(location: str, path: Path, what: str) -> Path:
    """Return the file that a location names, after making sure that it is one and lies in the model's folder."""
    folder = path.parent.resolve()
    given = Path(location)
    try:
        source, found = (folder / given).resolve(), (folder / given).is_file()
    except (OSError, RuntimeError, ValueError):  # a name that is too long, has a NUL in it, or is a link to itself
        source, found = folder, False
    if not location or given.is_absolute() or ".." in given.parts or not source.is_relative_to(folder):
        message = (
            f"{what} {location!r}, outside of the model's own folder; nothing there was read. Save the model with its "
            "data beside it: onnx.save_model(model, path, save_as_external_data=True, location='weights.bin')."
        )
        raise ArtefactError(message)
    if not found:
        message = f"{what} {location!r}, which is not beside it. Copy that file into {str(path.parent)!r}, too."
        raise ArtefactError(message)
    return source


def _number(text: str, what: str) -> int:
    if not text.isdecimal():
        message = (
            f"{what} another file, at {text!r}, which is no number of bytes. The file is damaged: export it again."
        )
        raise ArtefactError(message)
    return int(text)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor stored in a graph, its nodes' attributes and their graphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for inner in inner_graphs(node):
            yield from _tensors(inner)
