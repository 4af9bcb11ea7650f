"""A run's manifest: its form on disk, and what must hold of one before anything in it is believed.

What belongs here: reading and writing the file, and telling two recipes apart. What its entries mean for a run is
`folder`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dfqkit.config.yaml_text import read_yaml
from dfqkit_export.errors import ArtefactError, RecipeError
from dfqkit_export.files import SEAL, seal_holds, sealed, write_bytes
from dfqkit_export.words import some

MANIFEST, SCHEMA = "manifest.json", 1

_SHOWN = 5
_MOST_THREADS = 2**16
_AGAIN = "Put the original back, or begin anew with another --out."
_SHA256 = re.compile("[0-9a-f]{64}")


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write a run folder's manifest, sealed, and return it as a resumed run will read it."""
    text = json.dumps(sealed(json.loads(json.dumps(manifest))), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(folder / MANIFEST, f"{text}\n".encode())
    return _unsealed(json.loads(text))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a run folder's manifest; an ArtefactError where it is missing, changed, or of an unknown schema."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = "it has no manifest.json" if folder.is_dir() else "there is no such folder"
        message = (
            f"'{folder}' is not the folder of a run: {found}. Give the folder that `dfqkit run` named in its last "
            "line, or begin one with `dfqkit run RECIPE`."
        )
        raise ArtefactError(message) from None
    except (OSError, ValueError, RecursionError) as error:
        message = f"Cannot read '{path}': {error}. {_AGAIN}"
        raise ArtefactError(message) from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        message = (
            f"'{path}' has schema {schema!r:.40}; this version of dfqkit reads {SCHEMA}. Resume with the version that "
            "began the run, or begin anew with another --out."
        )
        raise ArtefactError(message)
    if not _is_whole(manifest):
        message = f"'{path}' lacks what every manifest has, or has something else in its place. {_AGAIN}"
        raise ArtefactError(message)
    if not seal_holds(manifest):
        message = f"'{path}' was changed since dfqkit wrote it: its entries do not fit its {SEAL}. {_AGAIN}"
        raise ArtefactError(message)
    return _unsealed(manifest)


def _unsealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key != SEAL}


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    stages, facts = manifest.get("stages"), manifest.get("facts")
    if not isinstance(manifest.get("digest"), str) or not isinstance(stages, dict) or not isinstance(facts, dict):
        return False
    threads, bound = facts.get("threads", 1), manifest.get("bound", {})
    if isinstance(threads, bool) or not isinstance(threads, int) or not 0 < threads < _MOST_THREADS:
        return False
    if not isinstance(facts.get("device", ""), str) or not isinstance(facts.get("recipe_dir", ""), str | None):
        return False
    if not isinstance(bound, dict) or not all(isinstance(entry, dict) for entry in bound.values()):
        return False
    if not all(isinstance(entry, dict) for entry in stages.values()):
        return False
    return all(_is_complete(entry) for entry in stages.values() if entry.get("status") == "complete")


def _is_complete(entry: Mapping[str, Any]) -> bool:
    files, seconds = entry.get("files"), entry.get("seconds")
    return (
        isinstance(files, dict)
        and isinstance(entry.get("facts"), dict)
        and isinstance(seconds, int | float)
        and all(isinstance(item, dict) and _SHA256.fullmatch(str(item.get("sha256"))) for item in files.values())
    )


def differences(before: str, after: str) -> str:
    """Say which keys of two recipes (YAML) differ, in one phrase; empty where they cannot be compared."""
    try:
        return told_apart(read_yaml(before, "there"), read_yaml(after, "here"))
    except RecipeError:
        return ""


def told_apart(before: object, after: object) -> str:
    """Say which values of two nested mappings differ, in one phrase."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return some([f"{key} {_short(old, key)} there, {_short(new, key)} here" for key in keys], _SHOWN, "; ")


def _short(values: Mapping[str, object], key: str) -> object:
    value = values.get(key, "absent")
    return value[:12] if isinstance(value, str) and _SHA256.fullmatch(value) else value


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
