"""A model without the bytes of its large tensors: these stay in the file and are pointed to.

What belongs here: walking a file's protobuf without parsing it, and reading one tensor that was left there. A runtime
that is given a skeleton maps the file into memory, where it would copy it twice.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

#: Bytes from which on a tensor is left in the file.
LARGE = 2**16
#: Where tensors are, by the numbers of the fields in onnx.proto: a graph's nodes (1) and initializers (5), a node's
#: attributes (5), an attribute's tensor (5) and graph (6).
_INNER = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
}
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5
#: Types whose numbers numpy has as they are stored.
_PLAIN = frozenset("bBhHiIlLqQefd?")


def skeleton(path: Path) -> bytes:
    """Return a file's model with the large tensors as external data in the file itself.

    Raises:
        ValueError: It is no protobuf, or ends too early.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return b"".join(_without_tensors(content, (0, len(content)), "model", path.name))


def _without_tensors(content: mmap.mmap, span: tuple[int, int], kind: str, name: str) -> Iterator[bytes]:
    place, end = span
    while place < end:
        begun = place
        tag, place = _varint(content, place, end)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, place = _varint(content, place, end)
        elif wire in (_EIGHT, _FOUR):
            place += 8 if wire == _EIGHT else 4
        elif wire == _LENGTH:
            length, inside = _varint(content, place, end)
            place = inside + length
        else:
            message = f"field {field} has the wire type {wire}"
            raise ValueError(message)
        if place > end:
            message = f"field {field} ends behind its message"
            raise ValueError(message)
        inner = _INNER.get(kind, {}).get(field)
        if wire == _LENGTH and length >= LARGE and (inner or (kind, field) == ("tensor", _RAW_DATA)):
            if inner:
                yield _message(field, b"".join(_without_tensors(content, (inside, place), inner, name)))
            else:
                yield _pointer(name, inside, length)
        else:
            yield content[begun:place]


def _varint(content: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while place < end and shift < 64:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    message = "a number has no end"
    raise ValueError(message)


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _message(field: int, content: bytes) -> bytes:
    return _number(field << 3 | _LENGTH) + _number(len(content)) + content


def _pointer(name: str, offset: int, length: int) -> bytes:
    entries = {"location": name, "offset": str(offset), "length": str(length)}
    told = (_message(1, key.encode()) + _message(2, value.encode()) for key, value in entries.items())
    place = _number(_DATA_LOCATION << 3) + _number(TensorProto.EXTERNAL)
    return b"".join([*(_message(_EXTERNAL_DATA, entry) for entry in told), place])


def values_of(tensor: onnx.TensorProto) -> NDArray[Any]:
    """Return a tensor's values, from the file that it was left in where it was, as `load_onnx` made sure that it may.

    Raises:
        KeyError, TypeError, ValueError: It is not whole.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(place["offset"]), int(place["length"])
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if dtype.char in _PLAIN and tensor.data_type not in (TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.UINT4):
        values = np.fromfile(place["location"], dtype.newbyteorder("<"), length // dtype.itemsize, offset=offset)
        return values.reshape(tuple(tensor.dims))
    whole = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=raw_bytes(tensor))
    return numpy_helper.to_array(whole)


def raw_bytes(tensor: onnx.TensorProto) -> bytes:
    """Return a tensor's bytes as they are stored, in the file that it was left in where it was; b"" of other forms."""
    if tensor.data_location != TensorProto.EXTERNAL:
        stored: bytes = tensor.raw_data
        return stored
    place = {entry.key: entry.value for entry in tensor.external_data}
    with Path(place["location"]).open("rb") as file:
        file.seek(int(place["offset"]))
        return file.read(int(place["length"]))
