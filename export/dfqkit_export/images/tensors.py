"""Tensors in a safetensors file, as stored images, sentinel sets and their like are kept.

What belongs here: what is said of a file that cannot be read. The format is the safetensors package's; what the tensors
mean is said where they are used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes

Array = NDArray[Any]

#: Bytes of a file that is read whole, unless the caller allows more.
MAX_FILE = 1 << 30


class TensorFile:
    """A file's header, checked; tensors are read when they are asked for.

    Attributes:
        path: The file.
        forms: Type (such as ``U8`` or ``F32``) and shape of each tensor.
        metadata: Text by text.

    Raises:
        ArtefactError: It cannot be read, is cut short, or is not of the format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            if self.path.exists() and not self.path.is_file():
                raise OSError(None, "it is no plain file")
            self._file = safe_open(os.fspath(path), framework="np")
        except OSError as error:
            message = f"Cannot read '{self.path}': {error.strerror or error}. Give the path of a .safetensors file."
            raise ArtefactError(message) from error
        except SafetensorError as error:
            message = f"'{self.path}' is not a whole .safetensors file: {error}. Copy or make it again."
            raise ArtefactError(message) from error
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 (it is no mapping)
        self.forms = {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in slices.items()}
        self.metadata: dict[str, str] = self._file.metadata() or {}

    def part(self, name: str) -> Any:
        """Return a tensor that is not read before it is indexed, and then no more of it than was asked for."""
        if name not in self.forms:
            message = f"'{self.path}' has no tensor '{name}'; it has {', '.join(self.forms) or 'none'}."
            raise ArtefactError(message)
        return self._file.get_slice(name)

    def read(self, name: str) -> Array:
        """Return a tensor in memory; numpy lacks some of the format's types."""
        self.part(name)
        try:
            return np.asarray(self._file.get_tensor(name))
        except (TypeError, AttributeError, SafetensorError) as error:  # numpy lacks some of the format's types
            message = f"Tensor '{name}' of '{self.path}' is of the type {self.forms[name][0]}, which numpy has not."
            raise ArtefactError(message) from error


def read_tensors(path: str | Path, *, limit: int = MAX_FILE) -> tuple[dict[str, Array], dict[str, str]]:
    """Read all tensors of a file of at most `limit` bytes, and its metadata."""
    file = TensorFile(path)
    size = file.path.stat().st_size
    if size > limit:
        message = f"'{path}' has {size:,} bytes; at most {limit:,} are read here. Is it the right file?"
        raise ArtefactError(message)
    return {name: file.read(name) for name in file.forms}, file.metadata


def tensor_bytes(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return what a file of these tensors holds; equal for equal tensors, whatever their order.

    Of several entries of metadata, the order in the file is not fixed.
    """
    return save({name: np.asarray(array, order="C") for name, array in tensors.items()}, dict(metadata or {}) or None)


def write_tensors(path: str | Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file, there whole or not at all."""
    write_bytes(Path(path), tensor_bytes(tensors, metadata))
