"""Files that are there whole or not at all: written beside, synced, renamed; and how a change of one is noticed."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfqkit_export.errors import ArtefactError

# For the system's call: paths are as they are, not below an open folder; and both are there.
_HERE, _SWAP = -100, 2


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader, or a kill, never sees half of it.

    Raises:
        ArtefactError: When the disk is full or the folder cannot be written; what stood there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            temporary.unlink()
        message = (
            f"Cannot write '{path}' ({len(data)} bytes): {error.strerror or error}. What was there before is "
            "untouched. Free space or choose another place, then give the same command again."
        )
        raise ArtefactError(message) from error


def sync_folder(folder: Path) -> None:
    """Put a rename on disk, where it is only when its folder is; Windows cannot open folders and does not need it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> bool:
    """Swap what two paths name in one step, so that a kill leaves both whole; return whether the system could."""
    paths = os.fsencode(one), os.fsencode(other)
    calls: dict[str, tuple[str, tuple[int | bytes, ...]]] = {
        "linux": ("renameat2", (_HERE, paths[0], _HERE, paths[1], _SWAP)),
        "darwin": ("renamex_np", (*paths, _SWAP)),
    }
    if sys.platform not in calls:
        return False
    name, arguments = calls[sys.platform]
    swap = getattr(ctypes.CDLL(None), name, None)
    return swap is not None and int(swap(*arguments)) == 0


def require_model(path: Path) -> None:
    """Refuse a model's path that leads to no file."""
    if not path.is_file():
        message = f"Model {str(path)!r} is not a file. Give the path of an .onnx file."
        raise ArtefactError(message)


def sha256_of_file(path: Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


#: The entry of a JSON document that vouches for all others.
SEAL = "seal"


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON document with a hash over all of it, by which `seal_holds` notices a change of any entry."""
    return {**{key: value for key, value in document.items() if key != SEAL}, SEAL: _seal(document)}


def seal_holds(document: Mapping[str, Any]) -> bool:
    """Return whether a document is as `sealed` made it; one without a seal, of an older version, passes."""
    try:
        return SEAL not in document or document[SEAL] == _seal(document)
    except (ValueError, RecursionError):  # NaN, which no document that was written has
        return False


def _seal(document: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in document.items() if key != SEAL}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, allow_nan=False).encode()).hexdigest()
