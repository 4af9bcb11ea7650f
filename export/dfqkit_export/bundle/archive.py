"""Zips: written so that equal bundles are equal bytes, read without being extracted.

What belongs here: both directions, and nothing about what the files mean. Of a zip, only members that are asked for by
name are read, so that no name in it ever becomes a path.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from dfqkit_export.bundle.entries import MAX_MODEL, refusal

# The earliest that the format can say.
_WHEN = (1980, 1, 1, 0, 0, 0)
_BLOCK = 1 << 20
#: A bundle's texts shrink to a tenth, its model hardly; a hundred times is a bomb.
MOST_TIMES, ALWAYS = 100, 32 * 2**20
_UNREADABLE = (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Return a zip of files, sorted by name, without a time or an owner."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _WHEN)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(entry, files[name], compresslevel=9)
    return buffer.getvalue()


def take(path: Path, folder: Path, names: Collection[str]) -> None:
    """Write the members of a zip of unknown origin that are called ``names`` into an empty folder, under these names.

    Those that the zip does not have are left out; when this raises, the folder may be left half full.

    Raises:
        ArtefactError: It is no zip or damaged; a name occurs twice; a member is encrypted; or it says, or turns out, to
            have far more in it than a bundle can have.
    """
    with _opened(path) as archive:
        for entry in _entries(archive, path, names):
            with archive.open(entry) as source, (folder / entry.filename).open("xb") as file:
                # zipfile itself stops at the stated size, and a wrong checksum then says that there was more.
                shutil.copyfileobj(source, file)


def digests(path: Path, names: Collection[str]) -> dict[str, str]:
    """Return the sha256 of the members that are called ``names``, without those that the zip does not have."""
    found = {}
    with _opened(path) as archive:
        for entry in _entries(archive, path, names):
            digest = hashlib.sha256()
            with archive.open(entry) as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
            found[entry.filename] = digest.hexdigest()
    return found


def member_names(path: Path) -> set[str]:
    """Return the names of all files in a zip, to be compared and nothing else."""
    with _opened(path) as archive:
        return {entry.filename for entry in archive.infolist() if not entry.is_dir()}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _UNREADABLE as error:
        raise refusal(path, f"cannot be read as a zip ({error}). Copy or make the bundle again.") from error


def _entries(archive: zipfile.ZipFile, path: Path, names: Collection[str]) -> list[zipfile.ZipInfo]:
    entries = [entry for entry in archive.infolist() if entry.filename in names]
    if len({entry.filename for entry in entries}) < len(entries):
        raise refusal(path, "has a file twice. Do not use it.")
    total = sum(entry.file_size for entry in entries)
    most = min(MAX_MODEL + ALWAYS, ALWAYS + MOST_TIMES * path.stat().st_size)
    if total > most:
        told = f"says that it has {total:,} bytes unpacked; at most {most:,} are allowed for a file of its size."
        raise refusal(path, f"{told} Do not use it.")
    return entries
