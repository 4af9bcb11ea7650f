"""Drawing from a stored set of images; what it is and who gets what is told in the package."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfqkit.synthesis.drawing import Deck
from dfqkit.synthesis.given import GivenImages, first_places
from dfqkit.synthesis.methods.bank import BankConfig
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.stored import StoredBank

_LOG = logging.getLogger(__name__)


class Bank(GivenImages):
    """Images of a stored set, each for training or fresh, never both."""

    config: BankConfig
    state_names = ("given", "order", "set")

    def _set_up(self) -> None:
        super()._set_up()
        self.stored = StoredBank.open(Path(self.config.path))
        self._require_fitting()
        self.stored.verify()
        self.digest = bytes.fromhex(self.stored.digest)
        different = first_places(code for codes, _ in self.stored.each_shard() for code in codes)
        split = self._split(list(different.values()))
        self.training, self.fresh = (torch.tensor(part, dtype=torch.int64, device=self.device) for part in split)
        self.order = Deck(len(self.training), self.rng)
        cost = self.set_cost
        _LOG.info("Set '%s': %d images, made at a cost of %s teacher passes.", self.place, len(self.stored), cost)

    @property
    def set_cost(self) -> int | None:
        """Teacher passes that making the set took; None where it does not say."""
        cost = self.stored.facts.get("cost")
        return cost if isinstance(cost, int) else None

    def _require_fitting(self) -> None:
        stored, teacher, path = self.stored, self.teacher, self.config.path
        ours, theirs = teacher.image, stored.spec
        if theirs.shape != ours.shape:
            message = (
                f"Image set '{path}' has images of shape {theirs.shape}, teacher '{teacher.name}' takes {ours.shape}. "
                "Make a set for this teacher with `dfqkit synthesize RECIPE --n N`."
            )
            raise ArtefactError(message)
        if stored.teacher != teacher.sha256 and not self.config.other_teacher:
            message = (
                f"Image set '{path}' was made for another teacher (weights {stored.teacher[:12]}, '{teacher.name}' has "
                f"{teacher.sha256[:12]}). Make one for this teacher with `dfqkit synthesize RECIPE --n N`, or set "
                "synthesis.other_teacher=true to use its images nevertheless."
            )
            raise ArtefactError(message)
        if not stored.complete:
            _LOG.warning("Image set '%s' is not finished: %d of %d images.", path, len(stored), stored.wanted)

    def _split(self, indices: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return places of the training and of the fresh images."""
        self._require_enough(len(indices))
        grades = self.config.part == "grading"
        mine, theirs = _spread(indices, self.demand.images if grades else self.others)
        mine = mine if grades else theirs
        if not self.demand.training:
            return [], mine
        fresh, training = _spread(mine, self.demand.fresh)
        return training, fresh

    def _read(self, places: Tensor) -> Tensor:
        return torch.from_numpy(self.stored.take(places.tolist())[0]).to(self.device)


def _spread(items: Sequence[Any], count: int) -> tuple[list[Any], list[Any]]:
    """``count`` items evenly spread over all, and the others."""
    total = len(items)
    taken = [(place + 1) * count // total > place * count // total for place in range(total)]
    chosen = [item for item, mine in zip(items, taken, strict=True) if mine]
    return chosen, [item for item, mine in zip(items, taken, strict=True) if not mine]
