"""What a run's folder says about itself, and who may work in it.

What belongs here: reading and checking `manifest.json`, telling two runs apart, and the lock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dfqkit_export.errors import ArtefactError, BusyError
from dfqkit_export.words import some

__all__ = ["MANIFEST", "SCHEMA", "differences", "lock", "read_manifest"]

MANIFEST = "manifest.json"
SCHEMA = 1

_SHOWN = 5


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a run folder's manifest.

    Raises:
        ArtefactError: It is missing, damaged, or of an unknown schema.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = "it has no manifest.json" if folder.is_dir() else "there is no such folder"
        msg = (
            f"'{folder}' is not the folder of a run: {found}. Give the folder that `dfqkit run` named in its last "
            "line, or begin one with `dfqkit run RECIPE`."
        )
        raise ArtefactError(msg) from None
    except (OSError, ValueError) as error:
        msg = f"Cannot read '{path}': {error}. Put the original back, or begin anew with another --out."
        raise ArtefactError(msg) from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        msg = (
            f"'{path}' has schema {schema!r}; this version of dfqkit reads {SCHEMA}. Resume with the version that "
            "began the run, or begin anew with another --out."
        )
        raise ArtefactError(msg)
    if not _is_whole(manifest):
        msg = f"'{path}' lacks what every manifest has. Put the original back, or begin anew with another --out."
        raise ArtefactError(msg)
    return dict(manifest)


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    stages = manifest.get("stages")
    if not isinstance(manifest.get("digest"), str) or not isinstance(manifest.get("facts"), dict):
        return False
    if not isinstance(stages, dict) or not all(isinstance(entry, dict) for entry in stages.values()):
        return False
    complete = [entry for entry in stages.values() if entry.get("status") == "complete"]
    return all({"files", "facts", "seconds"} <= set(entry) for entry in complete)


def differences(before: str, after: str) -> str:
    """Say which keys of two recipes (YAML) differ, in one phrase; empty where they cannot be compared."""
    try:
        old, new = dict(_leaves(yaml.safe_load(before))), dict(_leaves(yaml.safe_load(after)))
    except yaml.YAMLError:
        return ""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    texts = [f"{key} {old.get(key, 'absent')} there, {new.get(key, 'absent')} here" for key in keys]
    return some(texts, _SHOWN, "; ")


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def lock(path: Path) -> int:
    """Take a lock file for this process, until the descriptor is closed or the process ends in any way.

    Args:
        path: The lock file; it is made where it is not there, and stays.

    Returns:
        The open descriptor.

    Raises:
        BusyError: Another process has it.
        ArtefactError: The file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        msg = f"Cannot work in '{path.parent}': {error.strerror or error}. Make it writable, or choose another --out."
        raise ArtefactError(msg) from error
    if os.name == "nt":
        return descriptor  # no flock there
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        msg = (
            f"Another process (pid {holder}) is working in '{path.parent}'. Wait until it ends or stop it, or choose "
            "another folder with --out."
        )
        raise BusyError(msg) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
