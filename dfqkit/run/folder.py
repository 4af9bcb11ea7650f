"""One run's folder on disk: what lies in it, what is complete, and where an interrupted stage continues.

What belongs here: `RunFolder`. Everything is written beside, synced and renamed, and a stage is listed in the manifest
last, so that listed means complete. What the stages do is `stages`, who may work in the folder `lock`.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqkit.run.lock import LOCK_FILES, FolderLock
from dfqkit.run.manifest import MANIFEST, SCHEMA, differences, read_manifest, told_apart, write_manifest
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import sha256_of_file, write_bytes
from dfqkit_export.words import some

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger(__name__)

_RECIPE = "recipe.yaml"
# What a kill can leave behind before the manifest is there for the first time.
_LEFTOVERS = {*LOCK_FILES, f".{_RECIPE}.part", f".{MANIFEST}.part"}
_SHOWN = 5


class RunFolder:
    """A run's folder; enter it (``with``) to keep other processes out while working in it.

    Make one with `create` or `open`. The lock dies with the process, however that ends.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self._manifest = manifest
        self._lock = FolderLock(path)
        self._begun: dict[str, float] = {}
        self._spent: dict[str, float] = {}

    @classmethod
    def create(cls, path: str | Path, *, recipe_text: str, digest: str, facts: Mapping[str, object]) -> RunFolder:
        """Make the folder of a new run, or open that of the same run, which continues it.

        Args:
            path: Where; missing folders are made, an empty one is used.
            recipe_text: The resolved recipe as YAML.
            digest: Its sha256; two runs with the same one are the same run.
            facts: What the results depend on beside the recipe (versions, device, threads); anything JSON holds.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            names = sorted(entry.name for entry in path.iterdir())
        except OSError as error:
            message = f"Cannot use '{path}' as a run folder: {error.strerror or error}. Choose another one with --out."
            raise ArtefactError(message) from error
        if MANIFEST in names:
            folder = cls.open(path)
            if folder.digest != digest:
                differing = differences(folder.recipe_text(), recipe_text) or "another recipe"
                message = (
                    f"Folder '{path}' holds another run ({differing}). Choose another one with --out, or continue that "
                    f"run with `dfqkit run --resume {path}`."
                )
                raise ArtefactError(message)
            return folder
        foreign = [name for name in names if name not in _LEFTOVERS and not _is_recipe(path / name, recipe_text)]
        if foreign:
            message = (
                f"Folder '{path}' holds files that are not of a run: {some(foreign, _SHOWN)}. "
                "A run needs a new or an empty folder: choose another one with --out."
            )
            raise ArtefactError(message)
        write_bytes(path / _RECIPE, recipe_text.encode())
        folder = cls(path, {"schema": SCHEMA, "digest": digest, "facts": dict(facts), "stages": {}})
        folder._write_manifest()
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open the folder of a run that was begun before."""
        return cls(Path(path), read_manifest(Path(path)))

    @property
    def digest(self) -> str:
        """The sha256 of the resolved recipe this run began with."""
        return str(self._manifest["digest"])

    def run_facts(self) -> dict[str, Any]:
        """Return the facts that the run began with."""
        return dict(self._manifest["facts"])

    def recipe_text(self) -> str:
        """Return the resolved recipe."""
        try:
            return (self.path / _RECIPE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            message = f"Cannot read '{self.path / _RECIPE}': {error}. Put it back, or begin anew with another --out."
            raise ArtefactError(message) from error

    def done(self, stage: str) -> bool:
        """Return whether a stage is complete and all its files are as it left them; a changed one is an ArtefactError.

        A file that is gone makes the stage undone: it is run again and gives the same file.
        """
        entry = self._manifest["stages"].get(stage, {})
        if not _is_complete(entry):
            return False
        for name, expected in entry["files"].items():
            file = self.path / name
            if not file.is_file():
                _LOG.warning("'%s' is gone from '%s': stage '%s' is not complete.", name, self.path, stage)
                return False
            self._require_as_left(stage, name, expected["sha256"])
        return True

    def require(self, name: str) -> Path:
        """Return a file of the run that is going to be read; one that its stage left otherwise is an ArtefactError."""
        for stage, entry in self._manifest["stages"].items():
            expected = entry["files"].get(name) if _is_complete(entry) else None
            if expected is not None and (self.path / name).is_file():
                self._require_as_left(stage, name, expected["sha256"])
        return self.path / name

    def _require_as_left(self, stage: str, name: str, expected: str) -> None:
        file = self.path / name
        try:
            found = sha256_of_file(file)
        except OSError as error:
            message = f"Cannot read '{file}': {error.strerror or error}. Make it readable, or put the original back."
            raise ArtefactError(message) from error
        if found != expected:
            message = (
                f"'{file}' is not as stage '{stage}' left it: its sha256 was {expected} and is {found}. "
                f"Put the original back, or delete the file and run `dfqkit run --resume {self.path}`, which makes "
                "it again."
            )
            raise ArtefactError(message)

    def bound(self, what: str) -> dict[str, Any]:
        """Return what the run was bound to; empty where that did not happen yet."""
        return dict(self._manifest.get("bound", {}).get(what, {}))

    def bind(self, what: str, identity: Mapping[str, Any], advice: str) -> None:
        """Note what the run depends on beside its recipe, or refuse to go on with another; JSON holds ``identity``.

        A run has one of each: what was computed from the one cannot be mixed with what comes of the other.
        """
        before = self.bound(what)
        if not before:
            self._manifest.setdefault("bound", {})[what] = dict(identity)
            self._write_manifest()
        elif before != identity:
            message = (
                f"The {what} is not the one that the run in '{self.path}' began with "
                f"({told_apart(before, dict(identity))}). {advice}"
            )
            raise ArtefactError(message)

    def begin(self, stage: str) -> None:
        """Note that a stage starts or continues."""
        entry = self._manifest["stages"].setdefault(stage, {})
        if _is_complete(entry):
            self.clear_state(stage)  # of a stage that is done anew; it must not end where it ended before
        entry["status"] = "open"
        self._begun[stage] = time.monotonic()
        self._write_manifest()

    def finish(self, stage: str, files: Sequence[str], facts: Mapping[str, object]) -> None:
        """List a stage as complete, with files that are whole on disk and facts that JSON holds; drop its saved state.

        Where a stage that is done anew gives other files than before, the stages after it are no longer complete.
        """
        missing = [name for name in files if not (self.path / name).is_file()]
        if missing:
            message = f"Stage '{stage}' did not leave {', '.join(missing)} in '{self.path}'. Run it again."
            raise ArtefactError(message)
        listed = {name: _listing(self.path / name) for name in sorted(files)}
        stages = self._manifest["stages"]
        now = time.monotonic()
        if stages.get(stage, {}).get("files", listed) != listed:
            for later in list(stages)[list(stages).index(stage) + 1 :]:
                self.clear_state(later)
                del stages[later]
        stages[stage] = {
            "status": "complete",
            "seconds": round(self._spent.get(stage, 0.0) + now - self._begun.get(stage, now), 3),
            "files": listed,
            "facts": dict(facts),
        }
        self._write_manifest()
        self.clear_state(stage)

    def adopt(self, stage: str, source: RunFolder) -> None:
        """Take over a complete stage of another run: copies of its files, and what it found out.

        That the stage is the same in both runs is up to the caller.
        """
        entry = source._complete(stage)
        for name, expected in entry["files"].items():
            try:
                data = (source.path / name).read_bytes()
            except OSError as error:
                message = (
                    f"Cannot take over '{source.path / name}': {error.strerror or error}. Run stage '{stage}' again."
                )
                raise ArtefactError(message) from error
            write_bytes(self.path / name, data)
            if _listing(self.path / name) != expected:
                message = (
                    f"'{source.path / name}' is not as stage '{stage}' left it. Delete it and run the stage again."
                )
                raise ArtefactError(message)
        self._manifest["stages"][stage] = entry
        self._write_manifest()

    def rewrite(self, stage: str, name: str, data: bytes) -> None:
        """Replace a file of a complete stage from which nothing else is made, such as a rendering of the report."""
        files = self._complete(stage)["files"]
        if files.pop(name, None) is not None:
            self._write_manifest()  # a kill between the two leaves the file unlisted, not damaged
        write_bytes(self.path / name, data)
        self._complete(stage)["files"][name] = _listing(self.path / name)
        self._write_manifest()

    def ended(self, stage: str) -> bool:
        """Return whether a stage is listed as complete; whether its files are as it left them, `done` says."""
        return _is_complete(self._manifest["stages"].get(stage, {}))

    def facts(self, stage: str) -> dict[str, Any]:
        """Return what a complete stage found out; an ArtefactError if it is not complete."""
        return dict(self._complete(stage)["facts"])

    def seconds(self, stage: str) -> float:
        """Return how long a complete stage took, up to its last saved state in processes that were killed."""
        return float(self._complete(stage)["seconds"])

    def save_state(self, stage: str, tensors: Mapping[str, Tensor], scalars: Mapping[str, object]) -> None:
        """Replace the state from which an interrupted stage continues (`checkpoint.write_checkpoint`)."""
        from dfqkit.run.checkpoint import write_checkpoint

        elapsed = time.monotonic() - self._begun[stage] if stage in self._begun else 0.0
        write_checkpoint(
            self._state(stage), tensors, scalars, self._spent.get(stage, 0.0) + elapsed, self._owner(stage)
        )

    def load_state(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors (on the CPU, contiguous) and scalars that were saved last, or None.

        The state of another stage, run or teacher is an ArtefactError. One that the manifest lists may be of another
        run, from which its stage was taken over.
        """
        path = self._state(stage)
        if not path.exists():
            return None
        from dfqkit.run.checkpoint import read_checkpoint, require_owner

        tensors, scalars, seconds, owner = read_checkpoint(path)
        wanted = self._owner(stage)
        name = path.relative_to(self.path).as_posix()
        if any(name in entry["files"] for entry in self._manifest["stages"].values() if _is_complete(entry)):
            del wanted["run"]
            self.require(name)
        require_owner(path, owner, wanted)
        self._spent[stage] = seconds
        return tensors, scalars

    def _owner(self, stage: str) -> dict[str, str]:
        return {"stage": stage, "run": self.digest, "teacher": str(self.bound("teacher").get("sha256", ""))}

    def clear_state(self, stage: str) -> None:
        """Forget the saved states of a stage and of its parts, if any."""
        for path in (self._state(stage), *self._state(stage).parent.glob(f"{stage}.*.safetensors")):
            path.unlink(missing_ok=True)
        self._spent.pop(stage, None)

    def require_space(self, size: int) -> None:
        """Refuse to start what cannot be written, ``size`` in bytes."""
        require_space(self.path, size)

    def __enter__(self) -> RunFolder:
        self._lock.acquire()
        try:
            manifest = read_manifest(self.path)
            if manifest["digest"] != self.digest:
                message = f"Another run was begun in '{self.path}' at the same time. Choose another folder with --out."
                raise ArtefactError(message)
        except ArtefactError:
            self.__exit__()
            raise
        self._manifest = manifest  # another process may have worked here since this one looked
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _complete(self, stage: str) -> dict[str, Any]:
        entry: dict[str, Any] = self._manifest["stages"].get(stage, {})
        if not _is_complete(entry):
            message = (
                f"Stage '{stage}' of '{self.path}' is not complete. Continue with `dfqkit run --resume {self.path}`."
            )
            raise ArtefactError(message)
        return entry

    def _state(self, stage: str) -> Path:
        return self.path / "state" / f"{stage}.safetensors"

    def _write_manifest(self) -> None:
        self._manifest = write_manifest(self.path, self._manifest)


def require_space(folder: Path, size: int) -> None:
    """Refuse to start where so many bytes are not free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        message = (
            f"'{folder}' has {free / 1e6:,.0f} MB free, and about {size / 1e6:,.0f} MB are needed. Free space, or "
            "choose a folder on another disk with --out."
        )
        raise ArtefactError(message)


def _is_complete(entry: Mapping[str, Any]) -> bool:
    return entry.get("status") == "complete"


def _listing(path: Path) -> dict[str, Any]:
    return dict(sha256=sha256_of_file(path), size=path.stat().st_size)


def _is_recipe(path: Path, text: str) -> bool:
    return path.name == _RECIPE and path.is_file() and path.read_bytes() == text.encode()
