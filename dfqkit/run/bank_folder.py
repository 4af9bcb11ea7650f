"""A portable set of images while it is written: shard by shard, and from where an interrupted one continues.

What belongs here: the order in which files are written, and what an unfinished folder must be to be continued. A shard
is written first, then the state from which the next one is made (which lists the shard), then ``set.json``: whatever
moment a kill comes at, the state says what is there, and every shard that it lists is whole. Without a state, only a
list that says ``finished`` is believed; anything else is begun again. The form of the files is
`dfqkit_export.images.bank_file`, who makes the images `bank_making`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dfqkit.images.bank import ImageBank
from dfqkit.run.checkpoint import read_checkpoint, require_owner, write_checkpoint
from dfqkit.run.folder import require_space
from dfqkit.run.lock import FolderLock
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import SEAL, seal_holds, sealed, sha256_of_file, write_bytes
from dfqkit_export.images.bank_file import SCHEMA, SET_FILE
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks import task_of
from dfqkit_export.words import some

_STATE = "state.safetensors"
_SHOWN = 3
#: Room for the state and the lists.
_SPARE = 64 * 2**20


def facts_of(path: Path) -> dict[str, Any]:
    """Return what ``set.json`` of a folder says, unchecked; empty where there is none that can be read."""
    try:
        facts = json.loads((path / SET_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


class BankFolder:
    """A set's folder; enter it (``with``) to begin or continue it, and to keep other processes out.

    Attributes:
        request: What decides the images; an unfinished folder must have been begun with the same. Among it ``wanted``
            images and ``shard``, the images in one file.
        facts: What else ``set.json`` tells; of a folder that is continued, its own are kept.
        shards: Names, sizes and sha256 of the shards that are whole.
        state: Tensors and values that were saved last; None at the beginning.
    """

    def __init__(self, path: Path, request: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self.path, self.request, self.facts = path, dict(request), dict(facts)
        self.shards: list[dict[str, Any]] = []
        self.state: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self.finished = False
        self._lock = FolderLock(path)

    @property
    def n(self) -> int:
        """Images that are there."""
        return sum(int(shard["n"]) for shard in self.shards)

    @property
    def complete(self) -> bool:
        """Whether all images are there."""
        return self.n == int(self.request["wanted"])

    @property
    def next_size(self) -> int:
        """Images in the next shard."""
        return int(min(self.request["shard"], self.request["wanted"] - self.n))

    def __enter__(self) -> BankFolder:
        self._make()
        self._lock.acquire()
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release(forget=self.finished or not (self.path / SET_FILE).exists())

    def join(self) -> None:
        """Begin it, or look at what was begun, without keeping others out: for sets of independent shards alone."""
        self._make()
        self._begin()

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"Cannot make the folder '{self.path}': {error.strerror or error}. Choose another with --out."
            raise ArtefactError(message) from error

    def _begin(self) -> None:
        if not (self.path / SET_FILE).exists():
            foreign = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
            if foreign:
                message = (
                    f"Folder '{self.path}' holds files that are not of a set: "
                    f"{some(foreign, _SHOWN)}. Choose a new or an empty folder with --out."
                )
                raise ArtefactError(message)
            self._require_space()
            self._write_list({})
            return
        begun = facts_of(self.path)
        self._require_same(begun)
        self.facts = {key: value for key, value in begun.items() if key != SEAL}
        if begun.get("finished") is True:
            self.shards, self.finished = begun["shards"], True
            (self.path / _STATE).unlink(missing_ok=True)  # a kill may have come before
            return
        if (self.path / _STATE).exists():
            tensors, values, _, owner = read_checkpoint(self.path / _STATE)
            require_owner(self.path / _STATE, owner, self.owner)
            self.state = tensors, values
            self.shards, self.facts["cost"] = values["shards"], values["cost"]
            self._require_shards()
        else:
            self.facts["cost"] = 0  # nothing vouches for the shards that are there: from the first one on
        self._require_space()
        self._write_list({})  # a kill may have come between the state and the list

    def _require_same(self, begun: Mapping[str, Any]) -> None:
        if begun.get("schema") != SCHEMA:
            message = (
                f"'{self.path / SET_FILE}' is not one that this version can continue (schema {begun.get('schema')}, "
                f"needed {SCHEMA}). Choose another folder with --out."
            )
            raise ArtefactError(message)
        if not seal_holds(begun):
            message = (
                f"'{self.path / SET_FILE}' was changed since it was written: it does not fit its {SEAL}. Put the "
                "original back, or choose another folder with --out."
            )
            raise ArtefactError(message)
        keys = dict.fromkeys((*self.request, "independent"))  # which only sets of such shards have
        other = [key for key in keys if begun.get(key) != self.request.get(key)]
        if other:
            shown = "; ".join(
                f"{key} {_short(begun.get(key))} there, {_short(self.request.get(key))} here" for key in other
            )
            message = f"Folder '{self.path}' holds another set ({shown}). Choose another folder with --out."
            raise ArtefactError(message)

    def _require_shards(self) -> None:
        for shard in self.shards:
            file = self.path / shard["name"]
            if not file.is_file() or sha256_of_file(file) != shard["sha256"]:
                message = (
                    f"'{file}' is missing or not as it was written, so the set cannot be continued. Put it back, or "
                    f"delete '{self.path / _STATE}' and give the same command again, which makes all shards anew."
                )
                raise ArtefactError(message)

    def _require_space(self) -> None:
        image = ImageSpec.from_dict(self.request["image"])
        one = math.prod(image.shape) + task_of(self.request.get("task")).image_bytes(image)
        require_space(self.path, (self.request["wanted"] - self.n) * one + _SPARE)

    def add(self, bank: ImageBank, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Write the next shard, and the state after it; ``cost`` in its values is the teacher passes spent so far."""
        name = f"shard-{len(self.shards):05d}.safetensors"
        bank.save(self.path / name)
        self.shards.append({"name": name, "n": len(bank), "sha256": sha256_of_file(self.path / name)})
        self.save_state(tensors, values)
        self._write_list({"cost": values["cost"]})

    def take(self, shards: Sequence[Mapping[str, Any]], cost: int) -> None:
        """List shards that are there, whoever made them."""
        self.shards = [{key: shard[key] for key in ("name", "n", "sha256")} for shard in shards]
        self._write_list({"cost": cost})

    def save_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Save from where to continue, between shards too."""
        write_checkpoint(self.path / _STATE, tensors, {**values, "shards": self.shards}, 0.0, self.owner)

    @property
    def owner(self) -> dict[str, str]:
        """Hash of what decides the images, which what belongs to them names."""
        request = json.dumps(self.request, sort_keys=True)
        return {"set": hashlib.sha256(request.encode()).hexdigest()}

    def finish(self, warnings: Sequence[str]) -> None:
        """Say in the list that the set is finished, and drop the state."""
        self._write_list({"warnings": list(warnings), "finished": True})
        (self.path / _STATE).unlink(missing_ok=True)
        self.finished = True

    def _write_list(self, facts: Mapping[str, Any]) -> None:
        self.facts |= facts
        document = {"schema": SCHEMA, "n": self.n, **self.request, "cost": 0, "finished": False, "warnings": []}
        document |= self.facts
        document |= {"n": self.n, "shards": self.shards}
        text = json.dumps(sealed(json.loads(json.dumps(document))), indent=2, ensure_ascii=False, allow_nan=False)
        write_bytes(self.path / SET_FILE, f"{text}\n".encode())


def _short(value: object, length: int = 60) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}..."
