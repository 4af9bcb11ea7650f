"""Images similar to the lost ones, used as they are.

What belongs here: reading them, and who gets which. There is no paper and no loss. Labels are ignored: whatever the
images show, the teacher says what it is. The one duty is that no image plays two parts:

- Images that are equal pixel by pixel count once.
- The rest is put in the order of a hash of the pixels, which depends neither on the seed nor on names or folders. The
  synthesizer that trains takes from the front of it, the separate one that grades from the back; each is told by
  `Demand.beside` how many the other takes.
- Of what is taken, the seed decides what trains and what is fresh.

Of a source that can be read in part no more images are read than both together need, evenly spread over it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import Self

from dfqkit.synthesis.base import NO_DEMAND, Demand, Losses, Synthesizer, SynthesizerConfig
from dfqkit.synthesis.deck import Deck
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.labelled import load_images
from dfqkit_export.images.stored import image_digest

_LOG = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]


class ImagesConfig(SynthesizerConfig):
    """The ``synthesis`` section of a recipe with ``method: images``."""

    method: Literal["images"] = "images"
    path: str = Field(
        min_length=1,
        description="Images: .npz, a folder, class folders, .zip with labels.csv, torchvision:NAME:ROOT (its test "
        "split), as for validate.data; labels are ignored. They should not be the images that validate.data measures "
        "on.",
    )
    resize: int | None = Field(None, ge=1, description="Shorter side, bicubic, before the crop.")
    crop: int | None = Field(None, ge=1, description="Centre crop.")
    limit: int | None = Field(
        None, ge=1, description="Only so many images, evenly spread; null: as many as the run needs."
    )
    part: Literal["training", "grading"] = Field(
        "training", description="Which end of them; the source that grades is given the other one."
    )

    def resolved(self, find: Callable[[str], str]) -> Self:
        """The same with the path found; a torchvision data set is not a file."""
        if self.path.startswith("torchvision:"):
            return self
        return self.model_copy(update={"path": find(self.path)})


class Images(Synthesizer):
    """Images similar to the lost ones, from a file or folder, used as they are; labels are ignored."""

    Config = ImagesConfig
    needs: ClassVar[frozenset[str]] = frozenset({"images"})

    def __init__(
        self, config: ImagesConfig, teacher: Teacher, generator: torch.Generator, demand: Demand = NO_DEMAND
    ) -> None:
        super().__init__(config, teacher, generator, demand)
        self.config = config
        own = demand.training + demand.fresh
        found = self._found()
        taken = found[:own] if config.part == "training" else found[len(found) - own :]
        self.digest = torch.tensor(list(image_digest(taken)), dtype=torch.uint8)
        self.pixels = torch.from_numpy(np.ascontiguousarray(taken.transpose(0, 3, 1, 2))).to(self.device)
        self.chosen = torch.randperm(own, generator=generator, device=self.device)
        self.given = 0
        self.order = Deck(demand.training, generator, self.chosen)

    @classmethod
    def real_data_of(cls, config: SynthesizerConfig) -> str:
        """Always: they are it."""
        return "similar images"

    @classmethod
    def grading_config(cls, config: SynthesizerConfig) -> SynthesizerConfig:
        """The same images from the other end."""
        return config.model_copy(update={"part": "grading"})

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
