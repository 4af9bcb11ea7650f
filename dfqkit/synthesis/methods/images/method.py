"""Drawing from given images; what it is and who gets what is told in the package."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfqkit.config.synthesis import NO_DEMAND, Demand
from dfqkit.synthesis.base import Losses, Synthesizer
from dfqkit.synthesis.drawing import Deck
from dfqkit.synthesis.methods.images import ImagesConfig
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.labelled import load_images
from dfqkit_export.images.stored import image_digest

_LOG = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]


class Images(Synthesizer):
    """Images similar to the lost ones, from a file or folder, used as they are; labels are ignored."""

    config: ImagesConfig

    def __init__(
        self, config: ImagesConfig, teacher: Teacher, generator: torch.Generator, demand: Demand = NO_DEMAND
    ) -> None:
        super().__init__(config, teacher, generator, demand)
        own = demand.training + demand.fresh
        found = self._found()
        taken = found[:own] if config.part == "training" else found[len(found) - own :]
        self.digest = torch.tensor(list(image_digest(taken)), dtype=torch.uint8)
        self.pixels = torch.from_numpy(np.ascontiguousarray(taken.transpose(0, 3, 1, 2))).to(self.device)
        self.chosen = torch.randperm(own, generator=generator, device=self.device)
        self.given = 0
        self.order = Deck(demand.training, generator, self.chosen)

    def _found(self) -> Pixels:
        """Different images (N, H, W, C) in the order of their hashes, enough for both synthesizers of the run.

        Raises:
            ArtefactError: when there are fewer; says how many are needed and for what.
        """
        demand, config = self.demand, self.config
        beside = 0 if demand.beside is None else demand.beside.training + demand.beside.fresh
        needed = demand.training + demand.fresh + beside
        read = self._read(config.limit if demand.beside is None else min(config.limit or needed, needed))
        if len(read) < needed and demand.beside is not None:
            read = self._read(config.limit)  # some of those were equal
        if len(read) >= needed:
            return read
        limited = f", limit {config.limit}" if config.limit is not None else ""
        other = f" and {beside} for the synthesizer beside it" if beside else ""
        message = (
            f"Source 'images' needs {needed} different images, {demand.training} to train on, {demand.fresh} fresh "
            f"ones{other}, but found {len(read)} in '{config.path}'{limited}. Give more images, or ask for fewer in "
            "the recipe's bank section (calibration, training, held_out, grading)."
        )
        raise ArtefactError(message)

    def _read(self, limit: int | None) -> Pixels:
        config = self.config
        # No label is too high: the images may be of classes that the teacher does not know.
        spec = dataclasses.replace(self.teacher.image, classes=2**31)
        pixels = load_images(config.path, spec, resize=config.resize, crop=config.crop, limit=limit).images
        first: dict[bytes, int] = {}
        for index, image in enumerate(pixels):
            first.setdefault(image_digest(image), index)
        if len(first) < len(pixels):
            _LOG.info("%d of %d images of '%s' are copies.", len(pixels) - len(first), len(pixels), config.path)
        return pixels[[first[key] for key in sorted(first)]]

    @property
    def warmup_rounds(self) -> int:
        """None: nothing is optimised."""
        return 0

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """Nothing to do."""
        return {}

    @property
    def available(self) -> int:
        """Fresh images left of those taken at the start; asking for more brings none."""
        return len(self.chosen) - self.demand.training - self.given

    def sample(self, n: int) -> Tensor:
        """The next ``n`` images that are in no training set; each is given once.

        Raises:
            ArtefactError: when fewer are left.
        """
        if n > self.available:
            total = self.available + self.given
            message = (
                f"Asked for {n} fresh images, but {self.available} are left of {total}. Ask for more when the source "
                "is made (Demand.fresh)."
            )
            raise ArtefactError(message)
        start = self.demand.training + self.given
        self.given += n
        return self._decoded(self.chosen[start : start + n])

    def training_batch(self, n: int) -> Tensor:
        """Images of the training set, every one once before any comes again.

        Raises:
            ArtefactError: when there is no training set.
        """
        if not self.demand.training:
            message = "There are no training images. Make the source with Demand.training above 0."
            raise ArtefactError(message)
        return self._decoded(self.order.deal(n))

    def _decoded(self, indices: Tensor) -> Tensor:
        return self.teacher.image.normalize(self.pixels[indices].float() / 255)

    def state_dict(self) -> dict[str, Tensor]:
        """Which images do what, what was given, and the random state; of the images only a hash."""
        state = {
            "images.chosen": self.chosen,
            "images.order": self.order.rest,
            "images.given": torch.tensor(self.given),
            "images.digest": self.digest,
            "rng": self.rng.get_state(),
        }
        return {name: value.clone() for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ArtefactError: when the images are not those of then.
        """
        if not torch.equal(state["images.digest"].cpu(), self.digest):
            message = (
                f"The images in '{self.config.path}' are not those that this run began with. Put them back, or begin a "
                "new run."
            )
            raise ArtefactError(message)
        self.chosen, self.order.rest = (state[f"images.{n}"].clone().to(self.device) for n in ("chosen", "order"))
        self.order.items = self.chosen
        self.given = int(state["images.given"])
        self.rng.set_state(state["rng"].cpu())
