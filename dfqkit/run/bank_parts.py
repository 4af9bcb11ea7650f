"""Sets whose shards are made independently of each other, in any order and place.

What belongs here: what one shard leaves, and how shards become a set. Shard ``k`` is what the recipe's synthesizer
makes, warmed up anew, from random numbers derived from the seed and ``k``. It leaves its file in the set's folder and,
last, a list of its own in ``parts/`` with the file's sha256: whatever is listed there is whole, whoever made it, and
two that make the same shard write the same bytes. No lock is needed for that. Who fills a shard is `bank_making`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dfqkit.images.bank import ImageBank
from dfqkit.run.checkpoint import read_checkpoint, require_owner, write_checkpoint
from dfqkit.run.parts import machine, parted
from dfqkit_export.files import SEAL, seal_holds, sealed, sha256_of_file, sync_folder, write_bytes

#: Folder of what shards leave beside their files, gone from a finished set.
PARTS = "parts"


def shard_name(index: int) -> str:
    """Return the file of a shard."""
    return f"shard-{index:05d}.safetensors"


class PartFolder:
    """One shard of a set while it is made: what `Making` fills, as it fills a whole set.

    Attributes:
        request: That of the set, of which this is a shard of ``wanted`` images.
        state: Tensors and values that an interrupted process left; None at the beginning.
        listed: What the shard's list says, once it is made: ``name``, ``n``, ``sha256``, ``cost`` and ``machine``.
    """

    def __init__(self, path: Path, request: Mapping[str, Any], index: int, owner: str) -> None:
        wanted = min(request["shard"], request["wanted"] - index * request["shard"])
        self.request = {**request, "wanted": wanted}
        self.file = path / shard_name(index)
        self._list, self._state = path / PARTS / f"{index:05d}.json", path / PARTS / f"{index:05d}.safetensors"
        self._owner = {"set": owner, "shard": str(index)}
        self.listed = self._read()
        self.state: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    @property
    def n(self) -> int:
        """Images that are there."""
        return 0 if self.listed is None else int(self.listed["n"])

    @property
    def complete(self) -> bool:
        """Whether the shard is there."""
        return self.listed is not None

    @property
    def next_size(self) -> int:
        """Images in the shard."""
        return int(self.request["wanted"])

    def load(self) -> None:
        """Take up the state of an interrupted process, where there is one."""
        if self._state.exists():
            tensors, values, _, owner = read_checkpoint(self._state)
            require_owner(self._state, owner, self._owner)
            self.state = tensors, values

    def save_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Save from where to continue."""
        write_checkpoint(self._state, tensors, values, 0.0, self._owner)

    def add(self, bank: ImageBank, _tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Write the shard, then its list."""
        own = self._list.with_name(f"{self.file.stem}.{socket.gethostname()}.{os.getpid()}")  # others may make it, too
        bank.save(own)
        own.replace(self.file)
        sync_folder(self.file.parent)
        facts = {"name": self.file.name, "n": len(bank), "sha256": sha256_of_file(self.file), "cost": values["cost"]}
        gpu = str(self.request["device"]).startswith("cuda")
        self.listed = sealed({**facts, **self._owner, "machine": machine(gpu=gpu)})
        write_bytes(own, json.dumps(self.listed).encode())
        own.replace(self._list)
        self._state.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        """Return the shard's list; None where it is not there, not of this set, or not what the file is."""
        try:
            facts = json.loads(self._list.read_text(encoding="utf-8"))
            ours = seal_holds(facts) and all(facts[key] == value for key, value in self._owner.items())
            if not ours or sha256_of_file(self.file) != facts["sha256"]:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return {key: value for key, value in facts.items() if key != SEAL}


def shards_of(request: Mapping[str, Any]) -> int:
    """Return how many shards a set has."""
    return int(-(-request["wanted"] // request["shard"]))


def gathered(path: Path, request: Mapping[str, Any], owner: str, missing: Callable[[list[int]], None]) -> list[Any]:
    """Return the lists of all shards, in order, after those that are not there were made by ``missing``."""
    parts = [PartFolder(path, request, index, owner) for index in range(shards_of(request))]
    left = [index for index, part in enumerate(parts) if not part.complete]
    if left:
        missing(left)
        for index in left:
            parts[index] = PartFolder(path, request, index, owner)  # read again: a worker's word is not its file
    return [part.listed for part in parts]


def machines_told(lists: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what readers must be told of the machines that made the shards: nothing where they are of one kind."""
    other = parted([shard["machine"] for shard in lists])
    told = (
        f"Shards were made on machines of several kinds ({other}): made anew elsewhere, their last digits may differ."
    )
    return [told] if other else []


def forget_parts(path: Path) -> None:
    """Remove what shards left beside their files."""
    shutil.rmtree(path / PARTS, ignore_errors=True)
