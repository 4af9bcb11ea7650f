"""Methods whose images are there already: from a stored set, or similar ones.

What belongs here: that there are enough of them, that each is for training or fresh and never both, and that a fresh
one is given once. Where images come from, and who gets which, is the method's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfqkit.synthesis.base import DrawnSynthesizer
from dfqkit.synthesis.drawing import Deck
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.stored import image_digest


def first_places(images: Iterable[NDArray[np.uint8]]) -> dict[bytes, int]:
    """Return the places of the images that are equal to none before them, by digest."""
    first: dict[bytes, int] = {}
    for place, image in enumerate(images):
        first.setdefault(image_digest(image), place)
    return first


class GivenImages(DrawnSynthesizer):
    """Base of these methods; nothing is optimised.

    A subclass sets `training` and `fresh`, places of images for its `_read`, `order`, which deals the former, and
    `digest`, which tells its images from others.
    """

    #: What is called given, order and digest in a state.
    state_names: ClassVar[tuple[str, str, str]]
    digest: bytes
    training: Tensor
    fresh: Tensor  # in the order in which they are given
    order: Deck

    def _set_up(self) -> None:
        super()._set_up()
        self.place = str(self.config.model_dump()["path"])
        self.others = 0 if self.demand.beside is None else self.demand.beside.images
        self.needed = self.demand.images + self.others  # different ones, by the run's two synthesizers together
        self.given = 0

    def _require_enough(self, found: int, limited: str = "") -> None:
        """Refuse fewer different images than both synthesizers of the run need."""
        if found >= self.needed:
            return
        demand = self.demand
        other = f" and {self.others} for the synthesizer beside it" if self.others else ""
        message = (
            f"'{self.place}'{limited} has {found} different images, but {self.needed} are needed: {demand.training} to "
            f"train on, {demand.fresh} fresh ones{other}. Give more images, or ask for fewer in the recipe's bank "
            "section (calibration, training, held_out, grading)."
        )
        raise ArtefactError(message)

    @property
    def available(self) -> int:
        """Fresh images left of those taken at the start; asking for more brings none."""
        return len(self.fresh) - self.given

    def sample(self, n: int) -> Tensor:
        """Return the next ``n`` images that are in no training set; each is given once."""
        if n > self.available:
            message = (
                f"Asked for {n} fresh images, but {self.available} of {len(self.fresh)} are left of '{self.place}'. "
                "Give more images, or ask for more when the source is made (Demand.fresh)."
            )
            raise ArtefactError(message)
        self.given += n
        return self.decoded(self._read(self.fresh[self.given - n : self.given]))

    def training_batch(self, n: int) -> Tensor:
        """Return images of the training set, every one once before any comes again."""
        if not len(self.training):
            message = "There are no training images. Make the source with Demand.training above 0."
            raise ArtefactError(message)
        return self.decoded(self._read(self._dealt(n)))

    def _dealt(self, n: int) -> Tensor:
        """Return places of the next ``n`` training images."""
        return self.training[self.order.deal(n)]

    def state_dict(self) -> dict[str, Tensor]:
        """Return what was given, what comes next, the random state, and of the images only a hash."""
        digest = torch.tensor(list(self.digest), dtype=torch.uint8)
        held = (torch.tensor(self.given), self.order.rest.clone(), digest)
        return {"rng": self.rng.get_state(), **dict(zip(self.state_names, held, strict=True))}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken, with the same images."""
        given, order, digest = (state[name] for name in self.state_names)
        if bytes(digest.tolist()) != self.digest:
            message = (
                f"The images in '{self.place}' are not those that this run began with. Put them back, or begin another "
                "run."
            )
            raise ArtefactError(message)
        self.given = int(given)
        self.order.rest = order.to(self.device).clone()
        self.rng.set_state(state["rng"].cpu())

    @abstractmethod
    def _read(self, places: Tensor) -> Tensor:
        """Pixels of the images at these places, uint8 (n, C, H, W), on ``self.device``."""
