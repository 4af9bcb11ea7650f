"""Methods whose images are there already: from a stored set, or similar ones.

What belongs here: that there are enough of them, that each is for training or fresh and never both, and that a fresh
one is given once. Where images come from, and who gets which, is the method's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from dfqkit.synthesis.base import Losses, Synthesizer
from dfqkit.synthesis.drawing import Deck
from dfqkit_export.errors import ArtefactError


class GivenImages(Synthesizer):
    """Base of these methods; nothing is optimised.

    A subclass sets `training` and `fresh`, places of images for its `_read`, and `order`, which deals the former.

    Attributes:
        place: Where the images are, for messages.
        needed: Different images that the run's two synthesizers need together.
        training: Places of the images that train.
        fresh: Places of the others, in the order in which they are given.
        given: How many of them have been.
        order: Deals the training images.
    """

    training: Tensor
    fresh: Tensor
    order: Deck

    def _set_up(self) -> None:
        super()._set_up()
        self.place = str(self.config.model_dump()["path"])
        self.others = 0 if self.demand.beside is None else self.demand.beside.images
        self.needed = self.demand.images + self.others
        self.given = 0

    def _require_enough(self, found: int, limited: str = "") -> None:
        """Refuse fewer different images than both synthesizers of the run need.

        Raises:
            ArtefactError: Says how many are needed and for what.
        """
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
    def warmup_rounds(self) -> int:
        """None: nothing is optimised."""
        return 0

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """Nothing to do."""
        return {}

    @property
    def available(self) -> int:
        """Fresh images left of those taken at the start; asking for more brings none."""
        return len(self.fresh) - self.given

    def sample(self, n: int) -> Tensor:
        """Return the next ``n`` images that are in no training set; each is given once.

        Raises:
            ArtefactError: When fewer are left.
        """
        if n > self.available:
            message = (
                f"Asked for {n} fresh images, but {self.available} of {len(self.fresh)} are left of '{self.place}'. "
                "Give more images, or ask for more when the source is made (Demand.fresh)."
            )
            raise ArtefactError(message)
        self.given += n
        return self._decoded(self._read(self.fresh[self.given - n : self.given]))

    def training_batch(self, n: int) -> Tensor:
        """Return images of the training set, every one once before any comes again.

        Raises:
            ArtefactError: When there is no training set.
        """
        if not len(self.training):
            message = "There are no training images. Make the source with Demand.training above 0."
            raise ArtefactError(message)
        return self._decoded(self._read(self._dealt(n)))

    def _dealt(self, n: int) -> Tensor:
        """Return places of the next ``n`` training images."""
        return self.training[self.order.deal(n)]

    @abstractmethod
    def _read(self, places: Tensor) -> Tensor:
        """Pixels of the images at these places, uint8 (n, C, H, W), on ``self.device``."""
