"""What a bundle of unknown origin may hold: names that stay inside, plain files, texts of a sane size.

What belongs here: every check of what a manifest lists and a folder holds.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dfqkit_export.errors import ArtefactError

MAX_JSON = 32 * 2**20
#: What protobuf can hold.
MAX_MODEL = 2**31
_MAX_NAME, _MAX_FILES = 240, 1000
_RESERVED = frozenset('<>:"|?*\\')
#: Devices on Windows, whatever follows a dot.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})


def refusal(path: Path, told: str) -> ArtefactError:
    """Return the error that says what is wrong with a file or folder."""
    return ArtefactError(f"'{path}' {told}")


def check_names(names: Collection[str], where: str) -> None:
    """Refuse names of files, relative and with slashes, that `where` lists.

    Raises:
        ArtefactError: A name is absolute, leads outside, has characters that a file system gives a meaning, or is the
            same as another one but for upper and lower case; or there are too many.
    """
    seen = set()
    if len(names) > _MAX_FILES:
        message = f"{where} lists {len(names)} files; at most {_MAX_FILES} are read."
        raise ArtefactError(message)
    for name in names:
        parts = name.split("/")
        if (
            len(name) > _MAX_NAME
            or not printable(name)
            or _RESERVED & set(name)
            or any(part in ("", ".", "..") or part != part.strip() or part.endswith(".") for part in parts)
            or any(part.partition(".")[0].rstrip().casefold() in _DEVICES for part in parts)
        ):
            message = (
                f"{where} lists the file name {name!r:.100}, which is not allowed: names are relative, stay inside, "
                "and have only plain characters. The bundle was not made by dfqkit, or was changed; do not use it."
            )
            raise ArtefactError(message)
        if name.casefold() in seen:
            message = f"{where} lists {name!r} twice (some systems do not tell upper from lower case). Do not use it."
            raise ArtefactError(message)
        seen.add(name.casefold())


def printable(text: object) -> bool:
    """Return whether it is text that changes no terminal and no log: no control characters, no line breaks."""
    return isinstance(text, str) and text.isprintable()


def plain_file(root: Path, name: str) -> Path | None:
    """Return a file of a folder by its checked name, reached through no link below it; None where it is not there.

    Raises:
        ArtefactError: A link is on the way, or it is no plain file.
    """
    path = root
    for part in name.split("/"):
        path = path / part
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return None
        except OSError as error:
            message = f"Cannot read '{path}': {error.strerror or error}."
            raise ArtefactError(message) from error
        if stat.S_ISLNK(mode):
            raise refusal(path, "is a symbolic link; a bundle holds plain files only. Copy it with links resolved.")
    if not stat.S_ISREG(mode):
        raise refusal(path, "is not a plain file. Copy the bundle again.")
    return path


def read_text(path: Path, most: int = MAX_JSON) -> str:
    """Read a text file of at most so many bytes.

    Raises:
        ArtefactError: It is larger, cannot be read, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise refusal(path, f"is larger than the {most:,} bytes that are read of such a file. Is it the right one?")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        message = f"Cannot read '{path}': {error}. Copy it again."
        raise ArtefactError(message) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtefactError: As `read_text`, or it is not JSON (see `parse_json`), or no object.
    """
    text = read_text(path)
    try:
        values = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise refusal(path, f"is not JSON: {error}. Copy the bundle again.") from error
    if not isinstance(values, dict):
        raise refusal(path, f"must hold an object, found {type(values).__name__}. Copy the bundle again.")
    return values


def parse_json(text: str) -> Any:
    """Read JSON to the letter: no name twice in an object, no numbers that are not finite.

    Raises:
        ValueError, RecursionError: It is something else.
    """
    return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        message = f"{text:.20} is no finite number"
        raise ValueError(message)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            message = f"the name {name!r:.80} occurs twice in an object"
            raise ValueError(message)
        found[name] = value
    return found
