"""What an image is to a network: its shape, its normalisation and, where there are any, the number of classes.

What belongs here: `ImageSpec`, the only place that converts between [0, 1] and the normalised space. It works on numpy
arrays and on torch tensors alike without importing torch, so that both halves of the project share it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.entries import Entry, completed, entries_of
from dfqkit_export.images.pixels import BGR, FLOAT, LAYOUT, PIXELS, RGB, check_pixels

ArrayLike = TypeVar("ArrayLike", bound=Any)

_RANK = 4
#: How the axes (N, C, H, W) lie in each layout.
_AXES = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 2, 3, 1)}


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Shape and normalisation of a network's input, and the number of classes that it tells apart.

    Images outside of the network are RGB (or as many channels as there are), on [0, 1] or as 8 bits. A normalised image
    is what the network takes: `(pixel_range * x - mean) / std` per channel, with x in [0, 1] and its channels in the
    network's order.

    Attributes:
        shape: Channels, height and width of one image, in pixels.
        mean: Mean per channel, in the network's order, of pixels from 0 to `pixel_range`.
        std: Standard deviation per channel, above zero, of the same pixels.
        classes: Number of classes the network tells apart, at least 2; 0 where its task has none.
        pixel_range: Largest pixel before mean and std: 1, or 255 where a network takes 0 to 255.
        channels: Order of the colours that the network takes, ``RGB`` or ``BGR``.
        layout: Order of the axes of what the file takes, ``NCHW`` or ``NHWC``; outside of files it is ``NCHW``.
        dtype: What the file takes: ``float32``, normalised; or ``uint8``, pixels that it normalises itself, the colours
            in the network's order.
        dynamic: Whether the file leaves height and width open: those of shape are the size at which images are made and
            ranges are found. A file of an ``onnx:`` teacher that leaves them open does so by itself.
        inputs: Where the network takes more than one batch of images: what each of its inputs takes, in the order of
            its forward, such as ``{"left": 3, "right": 3}`` (channels) or ``{"image": 3, "gain": {"shape": [1],
            "value": 1.0}}`` (a side input, held; or drawn with ``"range": [0, 2]``). Images are then all stacked by
            channel, and so are shape, mean and std; those of one image serve all where all have as many channels.

    Example:
        >>> ImageSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.25,), classes=10).bounds()
        (-2.0, 2.0)
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int = 0
    pixel_range: int = 1
    channels: str = RGB
    layout: str = LAYOUT
    dtype: str = FLOAT
    dynamic: bool = False
    inputs: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        """Coerce lists to tuples, then check every field."""
        object.__setattr__(self, "shape", _integers("shape", self.shape))
        object.__setattr__(self, "mean", _numbers("mean", self.mean))
        object.__setattr__(self, "std", _numbers("std", self.std))
        if len(self.shape) != 3 or min(self.shape) < 1:
            message = (
                f"Image shape {self.shape} is not usable: it must be (channels, height, width), three integers of at "
                "least 1, for example (3, 32, 32)."
            )
            raise ArtefactError(message)
        object.__setattr__(self, "inputs", entries_of(self.inputs))
        if self.inputs:
            found = completed(self.inputs, self.shape, self.mean, self.std, self.pixel_range)
            for name, value in zip(("shape", "mean", "std"), found, strict=True):
                object.__setattr__(self, name, value)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.shape[0]:
                message = (
                    f"Image {name} has {len(values)} value(s) but the image has {self.shape[0]} channel(s). "
                    f"Give {name} one value per channel."
                )
                raise ArtefactError(message)
        if min(self.std) <= 0:
            message = f"Image std {self.std} must be above zero in every channel, because images are divided by it."
            raise ArtefactError(message)
        for entry in self.inputs or entries_of({"image": self.shape[0]}):
            if entry.shape is None:
                part = slice(entry.start, entry.start + entry.channels)
                check_pixels(self.mean[part], self.std[part], self.pixel_range, self.channels, self.layout, self.dtype)
        if (
            isinstance(self.classes, bool)
            or not isinstance(self.classes, int)
            or not (self.classes == 0 or self.classes >= 2)
        ):
            message = (
                f"Number of classes must be an integer of at least 2, or left out, found {self.classes!r}. A "
                "classifier that gives one number tells 2 classes apart."
            )
            raise ArtefactError(message)

    def normalize(self, x: ArrayLike) -> ArrayLike:
        """Convert images from [0, 1], RGB where they have colours, to what the network takes.

        Args:
            x: Images (N, C, H, W) in [0, 1], floating point, numpy array or torch tensor.

        Returns:
            Images of the same kind, dtype and shape, normalised.

        Raises:
            ArtefactError: x is not a floating-point (N, C, H, W) array or tensor of this specification.
        """
        mean, std = self._constants(x)
        x = self._reordered(x)
        normalized: ArrayLike = ((x if self.pixel_range == 1 else x * self.pixel_range) - mean) / std
        return normalized

    def denormalize(self, x: ArrayLike) -> ArrayLike:
        """Convert images from the normalised space to [0, 1]; the inverse of `normalize`, without clipping.

        Args:
            x: Images (N, C, H, W), normalised, floating point, numpy array or torch tensor.

        Returns:
            Images of the same kind, dtype and shape, in [0, 1] if x lay within the bounds.

        Raises:
            ArtefactError: x is not a floating-point (N, C, H, W) array or tensor of this specification.
        """
        mean, std = self._constants(x)
        plain: ArrayLike = self._reordered(x * std + mean)
        if self.pixel_range != 1:
            plain = plain / self.pixel_range
        return plain

    @property
    def plain(self) -> bool:
        """Whether files take its images as they are outside: one float32 array (N, C, H, W), normalised."""
        return not self.inputs and self.layout == LAYOUT and self.dtype == FLOAT

    def axis(self, of: int) -> int:
        """Return where a file has an axis of (N, C, H, W)."""
        return _AXES[self.layout].index(of)

    def to_file(self, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return what the inputs of a file take of normalised images (N, C, H, W), by name; "" where none is named."""
        mean, std = self._constants(x)
        pixels = np.rint((x * std + mean) * (255 / self.pixel_range)).clip(0, 255) if self.dtype == PIXELS else x
        found = {}
        for entry in self.inputs or entries_of({" ": self.shape[0]}):
            values = entry.of(x if entry.shape is not None else pixels)
            if entry.shape is None:
                values = values.transpose(_AXES[self.layout]).astype(self.dtype)
            found[entry.name.strip()] = np.array(values, order="C")
        return found

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and the largest value that a normalised image can take, over all channels."""
        low = min((0.0 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        high = max((self.pixel_range - m) / s for m, s in zip(self.mean, self.std, strict=True))
        return low, high

    def plain_moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and deviation per channel of images on [0, 1], in their own order."""
        mean, std = (tuple(values[k] / self.pixel_range for k in self._order) for values in (self.mean, self.std))
        return mean, std

    def of(self, entry: Entry) -> ImageSpec:
        """Return the specification of one input's pixels alone."""
        part = slice(entry.start, entry.start + entry.channels)
        size = (entry.channels, *self.shape[1:])
        return replace(self, shape=size, mean=self.mean[part], std=self.std[part], classes=0, inputs=())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as lists and numbers that JSON can hold; those with a default only where it is another."""
        usual = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        extra = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        if self.inputs:
            extra["inputs"] = [entry.to_dict() for entry in self.inputs]
        return {"shape": list(self.shape), "mean": list(self.mean), "std": list(self.std), **extra}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageSpec:
        """Rebuild the specification that `to_dict` wrote.

        Args:
            values: Mapping with the keys shape, mean, std and any of the others.

        Raises:
            ArtefactError: A key is missing or unknown, or a value is not usable.
        """
        known = {field.name: field.default is MISSING for field in fields(cls)}
        missing = sorted({name for name, needed in known.items() if needed} - set(values))
        unknown = sorted(set(values) - set(known))
        if missing or unknown:
            message = f"Image specification takes the keys {sorted(known)}; missing {missing}, unknown {unknown}."
            raise ArtefactError(message)
        return cls(**values)

    def _reordered(self, x: Any) -> Any:
        if self.channels != BGR:
            return x
        found = x[:, list(self._order)]
        return np.ascontiguousarray(found) if isinstance(x, np.ndarray) else found

    @property
    def _order(self) -> tuple[int, ...]:
        """Where each channel of the network stands in an image, and the other way round."""
        order = list(range(self.shape[0]))
        if self.channels == BGR:
            for entry in self.inputs or entries_of({"image": self.shape[0]}):
                if entry.shape is None:
                    part = slice(entry.start, entry.start + entry.channels)
                    order[part] = order[part][::-1]
        return tuple(order)

    def _constants(self, x: Any) -> tuple[Any, Any]:
        shape = tuple(getattr(x, "shape", ()))
        if len(shape) != _RANK or shape[1] != self.shape[0]:
            message = f"Images must have shape (N, {self.shape[0]}, H, W), found {shape or type(x).__name__}."
            raise ArtefactError(message)
        if not (x.dtype.kind == "f" if isinstance(x, np.ndarray) else x.is_floating_point()):
            message = (
                f"Images must be floating point, found {x.dtype}. Convert uint8 images with x / 255 in float32 first."
            )
            raise ArtefactError(message)
        channels = (1, self.shape[0], 1, 1)
        if isinstance(x, np.ndarray):
            return np.array(self.mean, x.dtype).reshape(channels), np.array(self.std, x.dtype).reshape(channels)
        # new_tensor keeps torch's dtype and device, which is what makes this module independent of torch.
        return x.new_tensor(self.mean).view(channels), x.new_tensor(self.std).view(channels)


def _integers(name: str, values: Any) -> tuple[int, ...]:
    numbers = _numbers(name, values)
    if any(number != int(number) for number in numbers):
        message = f"Image {name} must hold integers, found {values!r}."
        raise ArtefactError(message)
    return tuple(int(number) for number in numbers)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        message = f"Image {name} must be a list of numbers, found {values!r}."
        raise ArtefactError(message) from None
    if isinstance(values, str) or not numbers or not all(math.isfinite(number) for number in numbers):
        message = f"Image {name} must be a non-empty list of finite numbers, found {values!r}."
        raise ArtefactError(message)
    return numbers
