"""Zips: written so that equal bundles are equal bytes, unpacked so that nothing gets out or grows without end.

What belongs here: both directions, and nothing about what the files mean.
"""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from dfqkit_export.bundle.entries import MAX_MODEL, checked_names
from dfqkit_export.errors import ArtefactError

__all__ = ["unpack", "zipped"]

# The earliest that the format can say.
_WHEN = (1980, 1, 1, 0, 0, 0)
_BLOCK = 1 << 20
#: A bundle's texts shrink to a tenth, its model hardly; a hundred times is a bomb.
_MOST_TIMES, _ALWAYS = 100, 32 * 2**20
_ENCRYPTED = 0x1
_UNREADABLE = (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip of files, sorted by name, without a time or an owner."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _WHEN)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(entry, files[name], compresslevel=9)
    return buffer.getvalue()


def unpack(path: Path, folder: Path) -> None:
    """Unpack a zip of unknown origin into an empty folder.

    Args:
        path: the zip.
        folder: it may be left half full when this raises.

    Raises:
        ArtefactError: it is no zip or damaged; a name leads outside or occurs twice; it holds a link, a device or an
            encrypted file; or it says, or turns out, to be far larger unpacked than a bundle can be.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            checked_names((entry.orig_filename for entry in entries), f"'{path}'")
            _require_sane(entries, path)
            for entry in entries:
                target = folder / entry.orig_filename
                target.parent.mkdir(parents=True, exist_ok=True)
                _extract(archive, entry, target)
    except _UNREADABLE as error:
        message = f"'{path}' cannot be unpacked ({error}). Copy or make the bundle again."
        raise ArtefactError(message) from error


def _require_sane(entries: list[zipfile.ZipInfo], path: Path) -> None:
    for entry in entries:
        mode = entry.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or entry.flag_bits & _ENCRYPTED:
            message = f"'{path}' holds {entry.orig_filename!r}, a link, no plain file, or encrypted. Do not use it."
            raise ArtefactError(message)
    total = sum(entry.file_size for entry in entries)
    most = min(MAX_MODEL + _ALWAYS, _ALWAYS + _MOST_TIMES * path.stat().st_size)
    if total > most:
        message = (
            f"'{path}' says that it has {total:,} bytes unpacked; at most {most:,} are allowed for a file of its size. "
            "Do not use it."
        )
        raise ArtefactError(message)


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    """Write one file; zipfile itself stops at the stated size, and a wrong checksum then says that there was more."""
    with archive.open(entry) as source, target.open("xb") as file:
        while block := source.read(_BLOCK):
            file.write(block)
