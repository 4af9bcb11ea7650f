"""Drawing from given images; what it is and who gets what is told in the package."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfqkit.synthesis.drawing import Deck
from dfqkit.synthesis.given import GivenImages, first_places
from dfqkit.synthesis.methods.images import ImagesConfig
from dfqkit_export.images.labelled import load_images
from dfqkit_export.images.stored import image_digest

_LOG = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]


class Images(GivenImages):
    """Images similar to the lost ones, from a file or folder, used as they are; labels are ignored."""

    config: ImagesConfig
    state_names = ("images.given", "images.order", "images.digest")

    def _set_up(self) -> None:
        super()._set_up()
        own = self.demand.images
        found = self._found()
        taken = found[:own] if self.config.part == "training" else found[len(found) - own :]
        self.digest = image_digest(taken)
        self.pixels = torch.from_numpy(np.ascontiguousarray(taken.transpose(0, 3, 1, 2))).to(self.device)
        self.order = Deck(self.demand.training, self.rng)
        self._choose(torch.randperm(own, generator=self.rng, device=self.device))

    def _choose(self, chosen: Tensor) -> None:
        """Give these images out in this order, those that train first."""
        self.chosen = self.order.items = chosen
        self.training, self.fresh = chosen.tensor_split([self.demand.training])

    def _found(self) -> Pixels:
        """Different images (N, H, W, C) in the order of their hashes, enough for both synthesizers of the run."""
        needed, limit = self.needed, self.config.limit
        alone = self.demand.beside is None
        read = self._load(limit if alone else min(limit or needed, needed))
        if len(read) < needed and not alone:
            read = self._load(limit)  # some of those were equal
        self._require_enough(len(read), "" if limit is None else f", limit {limit},")
        return read

    def _load(self, limit: int | None) -> Pixels:
        config = self.config
        # No label is too high: the images may be of classes that the teacher does not know.
        spec = dataclasses.replace(self.teacher.image, classes=2**31)
        pixels = load_images(config.path, spec, resize=config.resize, crop=config.crop, limit=limit).images
        first = first_places(pixels)
        if len(first) < len(pixels):
            _LOG.info("%d of %d images of '%s' are copies.", len(pixels) - len(first), len(pixels), config.path)
        return pixels[[first[key] for key in sorted(first)]]

    def _dealt(self, n: int) -> Tensor:
        return self.order.deal(n)

    def _read(self, places: Tensor) -> Tensor:
        return self.pixels[places]

    def state_dict(self) -> dict[str, Tensor]:
        """Return, beside the rest, which images do what."""
        return {**super().state_dict(), "images.chosen": self.chosen.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        super().load_state_dict(state)
        self._choose(state["images.chosen"].clone().to(self.device))
