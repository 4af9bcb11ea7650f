"""What a command says, kept in a file as well; and how much of it."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from dfqkit_export.errors import ArtefactError


class _Both:
    """A stream whose text goes to a file, too, but what moves a terminal's cursor."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self._stream, self._file = stream, file

    def write(self, text: str) -> int:
        if "\x1b" not in text:
            self._file.write(text)
            self._file.flush()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def logged(path: str | None, words: Sequence[str], *, verbose: bool) -> Iterator[None]:
    """Write what is said meanwhile to the end of a file, behind the command and its time, where there is one.

    Raises:
        ArtefactError: The file cannot be written.
    """
    if verbose:
        logging.basicConfig(format="%(name)s: %(message)s", level=logging.INFO)
    if path is None:
        yield
        return
    try:
        file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        message = f"Cannot write '{path}' ({error.strerror}). Name a file in a folder that is there for --log-file."
        raise ArtefactError(message) from error
    with file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} dfqkit {shlex.join(words)}\n")
        both: Any = _Both(sys.stdout, file), _Both(sys.stderr, file)
        with contextlib.redirect_stdout(both[0]), contextlib.redirect_stderr(both[1]):
            yield
