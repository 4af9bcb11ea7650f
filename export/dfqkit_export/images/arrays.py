"""numpy's files from unknown hands: an array is read when what its header says is what the file can hold.

What belongs here: `.npy` and `.npz`, without pickles and without believing a size. What an array means is the caller's
question.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

#: What reading a damaged file raises.
UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, MemoryError, NotImplementedError, OverflowError, RecursionError),
    *(RuntimeError, SyntaxError, TypeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
#: Bytes of an archive's member that are always allowed, and how many times the archive's size beyond them.
_ALWAYS, _TIMES = 256 * 2**20, 100


def read_arrays(path: Path, names: Collection[str]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Read those arrays of an .npz that are called so; returns them, and the names of all that it has.

    Raises:
        UNREADABLE: It is no such archive, damaged, encrypted, or a bomb; an array holds objects.
    """
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            message = "it has an array twice"
            raise ValueError(message)
        found = {}
        for name in sorted(entries.keys() & set(names)):
            size, most = entries[name].file_size, _ALWAYS + _TIMES * path.stat().st_size
            if size > most:
                message = f"array {name!r} claims {size:,} bytes; allowed are {most:,} for an archive of its size"
                raise ValueError(message)
            with archive.open(entries[name]) as file:
                found[name] = _read(file, size)
    return found, list(entries)


def read_array(path: Path) -> NDArray[Any]:
    """Read an .npy.

    Raises:
        UNREADABLE: It is none, damaged, or holds objects.
    """
    with path.open("rb") as file:
        return _read(file, path.stat().st_size)


def _read(file: IO[bytes], size: int) -> NDArray[Any]:
    """Read an array from the beginning of a file of so many bytes."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        message = f"the array is of version {version}, of 1.0 and 2.0 are read"
        raise ValueError(message)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = read_header(file)
    if dtype.kind not in "biuf":
        message = f"the array holds {dtype}; allowed are numbers, no Object arrays"
        raise ValueError(message)
    needed = math.prod(shape) * dtype.itemsize
    if any(length < 0 for length in shape) or needed > size - file.tell():
        message = (
            f"the array claims the shape {shape} of {dtype}, {needed:,} bytes, and {size - file.tell():,} are there"
        )
        raise ValueError(message)
    data = file.read(needed)
    if len(data) < needed:
        message = f"the array ends after {len(data):,} of {needed:,} bytes"
        raise EOFError(message)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
