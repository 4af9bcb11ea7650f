"""The lock of a folder in which only one process may work.

What belongs here: taking it, and saying who has it. It ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from filelock import FileLock, Timeout

from dfqkit_export.errors import ArtefactError, BusyError

#: The lock, and the process that has it: a file of its own, because Windows lets nobody read a locked one.
LOCK_FILES = _LOCK, _HOLDER = ".lock", ".lock.pid"


class FolderLock:
    """Keeps other processes out of a folder that is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / _LOCK)

    def acquire(self) -> None:
        """Take it, at once or not at all: a BusyError where another process has it."""
        try:
            self._lock.acquire(blocking=False)
            (self.folder / _HOLDER).write_text(f"{os.getpid()}\n", encoding="utf-8")
        except Timeout:
            message = (
                f"Another process (pid {self._holder()}) is working in '{self.folder}'. Wait until it ends or stop it, "
                "or choose another folder with --out."
            )
            raise BusyError(message) from None
        except OSError as error:
            self.release()
            reason = error.strerror or error
            message = f"Cannot work in '{self.folder}': {reason}. Make it writable, or choose another --out."
            raise ArtefactError(message) from error

    def release(self, *, forget: bool = False) -> None:
        """Give it back; leave no trace in the folder if it is to ``forget``."""
        if forget:
            for name in LOCK_FILES:
                with contextlib.suppress(OSError):  # Windows removes no open file
                    (self.folder / name).unlink()
        self._lock.release()

    def _holder(self) -> str:
        try:
            return (self.folder / _HOLDER).read_text(encoding="utf-8").strip() or "unknown"
        except OSError:
            return "unknown"
