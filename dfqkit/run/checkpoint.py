"""The state from which an interrupted stage continues, as one safetensors file.

What belongs here: the file's form. When it is written and what is in it is up to the stage.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes

SCHEMA = 1

_HEADER = "dfqkit"


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], scalars: Mapping[str, object], seconds: float) -> None:
    """Write tensors and scalars as one file; a kill leaves the old file or the new one.

    Tensors may be views and share memory, on any device. Scalars are what JSON gives back unchanged: text keys; lists,
    not tuples.
    """
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    header = {"schema": SCHEMA, "scalars": dict(scalars), "seconds": seconds, "crc32": _checksum(plain)}
    # One entry, because safetensors writes several in a random order, and equal states shall be equal files.
    write_bytes(path, save(plain, metadata={_HEADER: json.dumps(header)}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], float]:
    """Return the tensors (on the CPU, contiguous), scalars and seconds that were written."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            # Copied, because safetensors maps the file into memory and the next one replaces it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is not a dict
        scalars, seconds = dict(header["scalars"]), float(header["seconds"])
        if header["schema"] != SCHEMA or header["crc32"] != _checksum(tensors):
            message = "its schema or its checksum is wrong"
            raise ValueError(message)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        message = (
            f"Cannot continue from '{path}': {error}. The file is damaged or of another version: delete it and resume. "
            f"Stage '{path.stem}' then starts from its beginning; nothing else is lost."
        )
        raise ArtefactError(message) from error
    return tensors, scalars, seconds


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    # safetensors checks sizes, not contents, and a flipped bit would change the result without a word.
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, checksum)
    return checksum
