"""The state from which an interrupted stage continues, as one safetensors file.

What belongs here: the file's form. When it is written and what is in it is up to the stage.

A file says what it belongs to and holds a sha256 over all its bytes (those of the hash itself taken as zeros), because
safetensors checks sizes, not contents: one flipped bit, in a tensor or in a number beside it, would change the result
without a word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes

SCHEMA = 2

_HEADER = "dfqkit"
_BLANK = b"0" * 64


def write_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], scalars: Mapping[str, object], seconds: float, owner: Mapping[str, str]
) -> None:
    """Write tensors and scalars as one file; a kill leaves the old file or the new one.

    Tensors may be views and share memory, on any device. Scalars are what JSON gives back unchanged: text keys; lists,
    not tuples. ``owner`` says what the state belongs to, such as its stage and its run.
    """
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    header = {"sha256": _BLANK.decode(), "schema": SCHEMA, "owner": dict(owner)}
    header |= {"scalars": dict(scalars), "seconds": seconds}
    # One entry, because safetensors writes several in a random order, and equal states shall be equal files.
    data = save(plain, metadata={_HEADER: json.dumps(header)})
    place = data.index(_BLANK)  # the hash comes first in the header, which comes first in the file
    write_bytes(path, b"".join((data[:place], _digest(data, place).encode(), data[place + len(_BLANK) :])))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], float, dict[str, str]]:
    """Return the tensors (on the CPU, contiguous), scalars, seconds and owner that were written."""
    try:
        data = path.read_bytes()
        header = _header_of(data)
        if header["schema"] != SCHEMA:
            message = f"its schema is {header['schema']!r}, needed is {SCHEMA}"
            raise ValueError(message)
        stated = header["sha256"]
        if stated != _digest(data, data.index(stated.encode())):
            message = "its checksum is wrong"
            raise ValueError(message)
        tensors = {name: tensor.clone() for name, tensor in load(data).items()}
        return tensors, dict(header["scalars"]), float(header["seconds"]), dict(header["owner"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        message = (
            f"Cannot continue from '{path}': {error}. The file is damaged or of another version: delete it and resume. "
            f"Stage '{path.stem}' then starts from its beginning; nothing else is lost."
        )
        raise ArtefactError(message) from error


def require_owner(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse a state that is whole, but of something else."""
    other = [f"{key} {found.get(key, 'unknown'):.40} there, {value:.40} here" for key, value in wanted.items()]
    other = [text for text, (key, value) in zip(other, wanted.items(), strict=True) if found.get(key) != value]
    if other:
        message = (
            f"Cannot continue from '{path}': it belongs to something else ({'; '.join(other)}). Put the file back "
            "that was there, or delete it and resume, which starts that stage from its beginning."
        )
        raise ArtefactError(message)


def _header_of(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    if not 0 < size <= len(data) - 8:
        message = "it is cut short"
        raise ValueError(message)
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_HEADER])
    return dict(header)


def _digest(data: bytes, place: int) -> str:
    digest, view = hashlib.sha256(), memoryview(data)
    for part in (view[:place], _BLANK, view[place + len(_BLANK) :]):
        digest.update(part)
    return digest.hexdigest()
