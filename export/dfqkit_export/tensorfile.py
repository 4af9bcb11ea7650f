"""Tensors in a file, in the safetensors format, with numpy alone.

What belongs here: the format, every way in which a file can fail to be one, and reading parts of a tensor without the
rest. What the tensors mean is said where they are used: `setfile`, `sentinel`.

The format (https://github.com/huggingface/safetensors, "Format"): eight bytes, the header's length as a little-endian
integer; the header, a JSON object of ``{name: {"dtype", "shape", "data_offsets"}}`` and text by text under
``__metadata__``; then the tensors' bytes, without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes

__all__ = ["MAX_FILE", "Entry", "TensorFile", "read_tensors", "tensor_bytes", "write_tensors"]

Array = NDArray[Any]

#: Bytes of a file that is read whole, unless the caller allows more.
MAX_FILE = 1 << 30

# Set by hand far above need: a thousand tensors take about 100 kB.
_MAX_HEADER = 16 * 2**20
_METADATA = "__metadata__"
# In the order in which the reference implementation ranks them; it writes the last ones first, and so do we.
_DTYPES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "I32": "<i4", "U32": "<u4",
    "F32": "<f4", "F64": "<f8", "I64": "<i8", "U64": "<u8",
}  # fmt: skip
_RANKS = {np.dtype(form): rank for rank, form in enumerate(_DTYPES.values())}
_NAMES = {np.dtype(form): name for name, form in _DTYPES.items()}
_LENGTH = 8
_MAX_RANK = 32  # numpy 1's


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the header says of one tensor.

    Attributes:
        dtype: the format's name, such as ``U8`` or ``F32``.
        shape: sizes; empty for a scalar.
        start: its first byte, counted from the begin of the file.
        end: the byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """A file's header, checked; tensors are read when they are asked for.

    Attributes:
        path: the file.
        entries: what it holds, by name, in the order of the file.
        metadata: text by text.

    Raises:
        ArtefactError: it cannot be read, is cut short, or is not of the format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as file:
                length = int.from_bytes(file.read(_LENGTH), "little")
                header = file.read(length) if length <= min(_MAX_HEADER, size - _LENGTH) else None
        except OSError as error:
            message = f"Cannot read '{self.path}': {error.strerror or error}. Give the path of a .safetensors file."
            raise ArtefactError(message) from error
        try:
            self.entries, self.metadata = _parsed(header, length, size)
        except (ValueError, RecursionError) as error:
            message = f"'{self.path}' is not a whole .safetensors file: {error}. Copy or make it again."
            raise ArtefactError(message) from error

    def view(self, name: str) -> Array:
        """A tensor as a read-only view into the file, of which only what is touched is read.

        Raises:
            ArtefactError: there is no such tensor, or its type has no counterpart in numpy.
        """
        entry = self._entry(name)
        dtype = np.dtype(_DTYPES[entry.dtype])
        try:
            if entry.start == entry.end:  # nothing cannot be mapped
                return np.empty(entry.shape, dtype)
            return np.memmap(self.path, dtype, "r", entry.start, (math.prod(entry.shape),)).reshape(entry.shape)
        except (OSError, ValueError) as error:
            message = f"Cannot read '{name}' of '{self.path}': {error}. Was the file changed meanwhile?"
            raise ArtefactError(message) from error

    def read(self, name: str) -> Array:
        """A tensor in memory, in the machine's byte order.

        Raises:
            ArtefactError: as `view`.
        """
        view = self.view(name)
        return np.array(view, view.dtype.newbyteorder("="), subok=False)

    def _entry(self, name: str) -> Entry:
        entry = self.entries.get(name)
        if entry is None:
            message = f"'{self.path}' has no tensor '{name}'; it has {', '.join(self.entries) or 'none'}."
            raise ArtefactError(message)
        if entry.dtype not in _DTYPES:
            message = (
                f"Tensor '{name}' of '{self.path}' is of the type {entry.dtype!r:.40}; allowed are "
                f"{', '.join(_DTYPES)}."
            )
            raise ArtefactError(message)
        return entry


def read_tensors(path: str | Path, *, limit: int = MAX_FILE) -> tuple[dict[str, Array], dict[str, str]]:
    """Read all tensors of a file, and its metadata.

    Args:
        path: the file.
        limit: bytes that it may have.

    Raises:
        ArtefactError: it is larger, cannot be read, is not of the format, or holds a type that numpy has not.
    """
    file = TensorFile(path)
    size = file.path.stat().st_size
    if size > limit:
        message = f"'{path}' has {size:,} bytes; at most {limit:,} are read here. Is it the right file?"
        raise ArtefactError(message)
    return {name: file.read(name) for name in file.entries}, file.metadata


def tensor_bytes(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """What a file of these tensors holds; equal for equal tensors and metadata, whatever their order.

    Args:
        tensors: by name; of the types that the format has.
        metadata: text by text.

    Raises:
        ArtefactError: for another type, or a reserved name.
    """
    header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    parts, offset = [], 0
    for name, array in tensors.items():
        if array.dtype.newbyteorder("<") not in _NAMES or name == _METADATA:
            message = f"Tensor '{name}' is {array.dtype}, which the format has not, or its name is reserved."
            raise ArtefactError(message)
    for name, array in sorted(tensors.items(), key=_rank):
        form = array.dtype.newbyteorder("<")
        parts.append(np.ascontiguousarray(array, form).tobytes())
        offsets = [offset, offset + len(parts[-1])]
        header[name] = {"dtype": _NAMES[form], "shape": list(array.shape), "data_offsets": offsets}
        offset = offsets[1]
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)  # so that tensors are aligned
    return b"".join([len(text).to_bytes(_LENGTH, "little"), text, *parts])


def write_tensors(path: str | Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file, there whole or not at all.

    Raises:
        ArtefactError: as `tensor_bytes`, or the file cannot be written.
    """
    write_bytes(Path(path), tensor_bytes(tensors, metadata))


def _rank(item: tuple[str, Array]) -> tuple[int, str]:
    return -_RANKS[item[1].dtype.newbyteorder("<")], item[0]


def _parsed(header: bytes | None, length: int, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries and metadata of a header, in the order of the bytes; ValueError says what is wrong."""
    if header is None or len(header) < length or size < _LENGTH:
        message = f"its header is said to have {length:,} bytes, of {size:,} that there are and {_MAX_HEADER:,} allowed"
        raise ValueError(message)
    values = json.loads(header, object_pairs_hook=_without_duplicates)
    if not isinstance(values, dict):
        message = "its header is not an object"
        raise ValueError(message)
    metadata = values.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        message = "its metadata are not text by text"
        raise ValueError(message)
    start = _LENGTH + length
    entries = sorted(((name, _entry(name, value, start)) for name, value in values.items()), key=_place)
    at = start
    for name, entry in entries:
        if entry.start != at:
            message = f"tensor {name!r:.80} begins at byte {entry.start}, the one before it ends at {at}"
            raise ValueError(message)
        at = entry.end
    if at != size:
        message = f"its tensors end at byte {at}, the file at {size}"
        raise ValueError(message)
    return dict(entries), metadata


def _place(item: tuple[str, Entry]) -> tuple[int, int]:
    return item[1].start, item[1].end


def _entry(name: str, value: Any, start: int) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        message = f"tensor {name!r:.80} must have exactly dtype, shape and data_offsets"
        raise ValueError(message)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        message = f"tensor {name!r:.80} has a type, sizes or offsets that cannot be"
        raise ValueError(message)
    begin, end = offsets
    # Python's integers do not overflow, so that no product of sizes wraps around to a small one.
    if dtype in _DTYPES and math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != end - begin:
        message = f"tensor {name!r:.80} of the shape {shape} does not have {end - begin} bytes"
        raise ValueError(message)
    return Entry(dtype=dtype, shape=tuple(shape), start=start + begin, end=start + end)


def _are_sizes(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > _MAX_RANK:
        return False
    return all(type(item) is int and 0 <= item < 2**63 for item in value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        message = "a name occurs twice in its header"
        raise ValueError(message)
    return found
