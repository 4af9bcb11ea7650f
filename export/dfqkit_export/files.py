"""Files that are there whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from dfqkit_export.errors import ArtefactError


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
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            temporary.unlink()
        message = (
            f"Cannot write '{path}' ({len(data)} bytes): {error.strerror or error}. What was there before is "
            "untouched. Free space or choose another place, then give the same command again."
        )
        raise ArtefactError(message) from error


def _sync_folder(folder: Path) -> None:
    """Put a rename on disk, where it is only when its folder is; Windows cannot open folders and does not need it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
