"""From one image, encoded or decoded, to pixels of the size a model takes.

What belongs here: decoding, bicubic resize and centre crop of single images. Pillow is imported inside the functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError, RuntimeUnavailableError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DEEP_MODES = ("I", "F")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Decode, resize and crop single images, with the rounding of torchvision's Resize and CenterCrop.

    Attributes:
        channels: Channels of the result: 1 grey, 3 RGB, 4 RGBA.
        resize: Length in pixels of the shorter side after a bicubic resize, or None.
        crop: Side in pixels of the centred square to cut out, or None.
    """

    channels: int
    resize: int | None = None
    crop: int | None = None

    @property
    def active(self) -> bool:
        """Whether the size of images changes."""
        return self.resize is not None or self.crop is not None

    def decode(self, file: BinaryIO | Path, name: str) -> NDArray[np.uint8]:
        """Decode one image file and preprocess it to uint8 (H, W, C); errors call it `name`."""
        library = pillow()
        try:
            with library.open(file) as image:
                image.load()
                return self.convert(image, name)
        except (OSError, SyntaxError, ValueError, library.DecompressionBombError) as error:
            message = f"Image {name!r} cannot be decoded ({error}). Replace it or take it out of the set."
            raise ArtefactError(message) from None

    def convert(self, image: Any, name: str) -> NDArray[np.uint8]:
        """Preprocess a `PIL.Image.Image` to uint8 (H, W, C); errors call it `name`."""
        if self.channels not in _MODES:
            message = (
                f"Image {name!r} cannot be decoded to {self.channels} channels; image files have {sorted(_MODES)}. "
                "Store such data as an .npz of the model's own size."
            )
            raise ArtefactError(message)
        if image.mode.startswith(_DEEP_MODES):
            # Pillow would clip such pixels at 255 without a word.
            message = f"Image {name!r} has Pillow mode {image.mode!r}, allowed are 8 bits a channel. Convert it first."
            raise ArtefactError(message)
        image = image.convert(_MODES[self.channels])
        if self.resize is not None:
            shorter = min(image.size)
            size = tuple(self.resize if side == shorter else int(self.resize * side / shorter) for side in image.size)
            image = image.resize(size, pillow().Resampling.BICUBIC)
        if self.crop is not None:
            image = _centre_crop(image, self.crop, name)
        pixels: NDArray[np.uint8] = np.array(image, dtype=np.uint8)
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def apply(self, pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
        """Preprocess pixels uint8 (H, W, C) that have the right number of channels; errors call them `name`."""
        if not self.active:
            return pixels
        return self.convert(pillow().fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), name)


def _centre_crop(image: Any, side: int, name: str) -> Any:
    if side > min(image.size):
        message = (
            f"Crop {side} is larger than image {name!r} ({image.size[1]}x{image.size[0]} pixels). "
            "Give a smaller crop, or resize first."
        )
        raise ArtefactError(message)
    left, top = (round((length - side) / 2.0) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def pillow() -> Any:
    """Return Pillow's module of images, or say how to install it."""
    try:
        from PIL import Image
    except ImportError:
        message = (
            "Reading image files needs Pillow, which is not installed. Run pip install pillow, or use an .npz of uint8."
        )
        raise RuntimeUnavailableError(message) from None
    return Image
