"""Damage to a run's folder, one place at a time, and what the command line makes of it.

What belongs here: the places, and the commands that must give the same bytes or a refusal. A sample of them is tried in
`tests/e2e/test_damaged_run.py`, all in `tests/benchmarks/damage.py`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

from dfqkit.cli import main
from dfqkit.config.recipe import Recipe
from dfqkit.run import execution, playing
from dfqkit.run.folder import RunFolder
from dfqkit.run.manifest import read_manifest
from dfqkit_export.files import sha256_of_file
from tests._shared import TINY, run

_MOST_LEAVES = 400


@dataclass(frozen=True)
class Place:
    """One damage: what it is called, and what does it to a copy of the folder."""

    name: str
    do: Callable[[Path], object]
    whole: bool = False  # whether the file is there as before, other in its content alone

    @property
    def file(self) -> str:
        """The file, within the folder."""
        return self.name.partition(":")[0]


def interrupted_run(path: Path, stage: str, saves: int, overrides: Sequence[str] = TINY) -> None:
    """Begin the small run and stop it after a stage saved its state so many times."""
    with pytest.MonkeyPatch.context() as patch:
        seen = [0]
        save = RunFolder.save_state

        def stop(self: RunFolder, name: str, *values: Any) -> None:
            save(self, name, *values)
            seen[0] += name == stage
            if seen[0] == saves:
                raise KeyboardInterrupt

        patch.setattr(playing, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(RunFolder, "save_state", stop)
        assert run(path, overrides=overrides) == 130


def places(folder: Path, other: Path) -> Iterator[Place]:
    """Yield every damage of a folder; ``other`` is the folder of another run."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        name = file.relative_to(folder).as_posix()
        yield from _of_file(name, file.read_bytes(), other / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, document in _changed(manifest):
        yield Place(f"manifest.json: {name}", _writes("manifest.json", json.dumps(document).encode()), whole=True)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    for name, document in _changed(recipe):
        yield Place(f"recipe.yaml: {name}", _writes("recipe.yaml", yaml.safe_dump(document).encode()), whole=True)


def _of_file(name: str, data: bytes, foreign: Path) -> Iterator[Place]:
    size = len(data)
    yield Place(f"{name}: empty", _writes(name, b""))
    yield Place(f"{name}: half", _writes(name, data[: size // 2]))
    yield Place(f"{name}: one byte short", _writes(name, data[:-1]))
    yield Place(f"{name}: one byte more", _writes(name, data + b"\0"))
    yield Place(f"{name}: zeros", _writes(name, b"\0" * size))
    yield Place(f"{name}: brackets", _writes(name, b"[" * 100_000))
    yield Place(f"{name}: deleted", lambda folder: (folder / name).unlink())
    yield Place(f"{name}: a folder", lambda folder: ((folder / name).unlink(), (folder / name).mkdir()))
    for place in sorted({0, 7, 8, 20, 90, 200, size // 3, size // 2, size - 2, size - 1}):
        if 0 <= place < size:
            flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            yield Place(f"{name}: bit {place}", _writes(name, flipped), whole=True)
    if foreign.is_file() and foreign.read_bytes() != data:
        yield Place(f"{name}: of another run", _writes(name, foreign.read_bytes()))


def _writes(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def _changed(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield copies of a document with one entry changed: gone, of another type, or another value."""
    for path in list(_paths(document))[:_MOST_LEAVES]:
        where = ".".join(map(str, path))
        value = document
        for key in path:
            value = value[key]
        for told, other in _others(value):
            changed = copy.deepcopy(document)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            if told == "gone":
                del inner[path[-1]]
            else:
                inner[path[-1]] = other
            yield f"{where} {told}", changed


def _others(value: Any) -> Iterator[tuple[str, Any]]:
    yield "gone", None
    yield "null", None
    if isinstance(value, bool):
        yield "flipped", not value
    elif isinstance(value, int | float):
        yield from (("more", value + 1), ("NaN", float("nan")), ("huge", 10**30), ("text", str(value)))
    elif isinstance(value, str):
        yield from (("other text", f"{value}x"), ("number", 7), ("escape", "\x1b[31m../../x"))
    elif isinstance(value, dict | list):
        yield from (("empty", type(value)()), ("swapped", [] if isinstance(value, dict) else {}))


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        yield (*before, key)
        yield from _paths(item, (*before, key))


class Capture(Protocol):
    """Hands out what was written to stdout and stderr since the last time, as pytest's `capsys` does."""

    def readouterr(self) -> Any: ...


class Judge:
    """Does the commands on damaged copies of a folder and says what is wrong with how they ended.

    What is known is not done again: a command that does not read the file in question, and stages that begin with a
    recipe, a manifest as read, and files with which they ran before.
    """

    def __init__(self, folder: Path, space: Path, model: bytes, capture: Capture) -> None:
        self.folder, self.space, self.model, self.capture = folder, space, model, capture
        self.bundle: dict[str, bytes] = {}
        self.report = ""
        self.ended: dict[str, Path] = {}
        if (folder / "report.json").exists():
            _, out, _ = self._do(["report", str(self._copy())])
            self.report = out
            self._do(["bundle", str(self._copy()), "--out", str(space / "whole")])
            self.bundle = _contents(space / "whole")
        self.read = {command: self._read_by(command) for command in ("report", "bundle")}

    def wrong(self, place: Place) -> list[str]:
        """Return what is wrong with how the commands took a damage: tracebacks, other bytes."""
        found = []
        # A check runs in a process of its own, which takes seconds.
        checked = place.file in ("model.onnx", "sentinel.safetensors", "report.json")
        for command in ("report", "bundle", "run", *(["check"] if checked else [])):
            if place.whole and place.file not in self.read.get(command, {place.file}):
                continue
            folder = self._copy()
            place.do(folder)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(execution, "execute", partial(self._execute, execution.execute))
                found += [f"{place.name}, {command}: {text}" for text in self._one(command, folder)]
        return found

    def _read_by(self, command: str) -> set[str]:
        """Return the files of the whole folder that a command reads, or all where nothing tells."""
        folder = self._copy()
        files = {path: path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for path in files:
            os.utime(path, (1, 2))
        self._one(command, folder)
        read = {name for path, name in files.items() if not path.exists() or path.stat().st_atime != 1}
        return read if "manifest.json" in read else set(files.values())

    def _execute(
        self, execute: Callable[..., None], folder: RunFolder, recipe: Recipe, stages: Sequence[str], **options: Any
    ) -> None:
        """Do stages; where they began with the same before, put what they left there."""
        files = {
            path.relative_to(folder.path).as_posix(): sha256_of_file(path) if path.is_file() else "a folder"
            for path in folder.path.rglob("*")
            if path.name not in ("manifest.json", "recipe.yaml") and not path.name.startswith(".")
        }
        start = [recipe.to_yaml(), str(recipe.directory), read_manifest(folder.path), files, options["device"]]
        key = hashlib.sha256(json.dumps([*start, list(stages)], sort_keys=True).encode()).hexdigest()
        if key in self.ended:
            shutil.copytree(self.ended[key], folder.path, dirs_exist_ok=True)
            return
        execute(folder, recipe, stages, **options)
        self.ended[key] = self.space / "ended" / key
        shutil.rmtree(self.ended[key], ignore_errors=True)
        shutil.copytree(folder.path, self.ended[key], ignore=shutil.ignore_patterns(".*", "recipe.yaml"))

    def _one(self, command: str, folder: Path) -> list[str]:
        out, stdout = self.space / "bundle", ""
        shutil.rmtree(out, ignore_errors=True)
        arguments = {
            "report": ["report", str(folder), "--out", str(self.space / "page.html")],
            "bundle": ["bundle", str(folder), "--out", str(out)],
            "check": ["check", str(folder), "--baseline", str(self.space / "baseline.json"), "--update"],
            "run": ["run", "--resume", str(folder), "-q"],
        }
        (self.space / "baseline.json").unlink(missing_ok=True)
        code, stdout, stderr = self._do(arguments[command])
        if code not in (0, 1, 2) or "Traceback" in stderr:
            return [f"exit code {code}: {stderr[-300:]}"]
        if code == 2 and str(self.space) not in stderr + stdout:
            return [f"no place: {stderr[-300:]}{stdout[-300:]}"]
        if code == 2 or (command == "check" and code == 1):
            return []
        if command == "run" and (folder / "model.onnx").read_bytes() != self.model:
            return ["another model, without a word"]
        if command == "report" and self.report and stdout != self.report:
            return ["another report, without a word"]
        if command == "bundle" and self.bundle and _contents(out) != self.bundle:
            differing = [name for name, data in _contents(out).items() if self.bundle.get(name) != data]
            return [f"another bundle ({', '.join(differing)}), without a word"]
        return []

    def _do(self, arguments: list[str]) -> tuple[int, str, str]:
        self.capture.readouterr()
        code = main(arguments)
        out, err = self.capture.readouterr()
        return code, out, err

    def _copy(self) -> Path:
        copied = self.space / "copy"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(self.folder, copied)
        return copied


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
