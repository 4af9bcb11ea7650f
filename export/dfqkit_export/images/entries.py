"""What a network's inputs take of one array of images: some of its channels, or numbers that are no image.

What belongs here: `Entry`, how recipes and files write entries, and the values that each takes from stacked images.
All pixels of a call are one array (n, C, H, W): the images of several inputs are stacked by channel, and the numbers
of a side input that is drawn are the first pixels of a channel of their own, which is as wide as their range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError

#: Types of the numbers of a side input, and of its values in ONNX.
TYPES = ("float32", "int32", "int64")
_KEYS = ("name", "channels", "shape", "value", "range", "dtype", "per_image")
_EXAMPLE = "{left: 3, right: 3, gain: {shape: [1], value: 1.0}, noise: {shape: [4], range: [-1, 1]}}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One input of a network.

    Attributes:
        name: What the network's file calls it.
        start: The first of its channels in stacked images.
        channels: How many it has; 0 where it is held.
        shape: Of a side input, without the axis of the batch; None for pixels.
        value: Of a side input that is held: one number for all places, or one for each, row by row.
        range: Of one that is drawn: the lowest and the highest number.
        dtype: Type of its numbers, one of `TYPES`; drawn ones are float32.
        per_image: Whether a side input has the axis of the batch.
    """

    name: str
    start: int
    channels: int
    shape: tuple[int, ...] | None = None
    value: tuple[float, ...] | None = None
    range: tuple[float, float] | None = None
    dtype: str = "float32"
    per_image: bool = True

    def of(self, images: NDArray[np.float32]) -> NDArray[Any]:
        """Return what it takes of stacked images (n, C, H, W), normalised."""
        if self.shape is None:
            return images[:, self.start : self.start + self.channels]
        shape = (len(images), *self.shape) if self.per_image else self.shape
        if self.value is None:
            return images[:, self.start].reshape(len(images), -1)[:, : math.prod(self.shape)].reshape(shape)
        held = np.broadcast_to(np.array(self.value, self.dtype), (math.prod(self.shape),)).reshape(self.shape)
        return np.array(np.broadcast_to(held, shape))

    @property
    def told(self) -> str:
        """What it is, in words."""
        if self.shape is None:
            return f"{self.channels} channel{'s' if self.channels > 1 else ''}"
        how = f"held at {', '.join(map(str, self.value or ()))}" if self.range is None else f"from {self.range}"
        return f"{self.dtype} {list(self.shape)}, {how}"

    def to_dict(self) -> dict[str, Any]:
        """Return what `entries_of` reads."""
        if self.shape is None:
            return {"name": self.name, "channels": self.channels}
        usual = {"dtype": "float32", "per_image": True}
        found = {key: getattr(self, key) for key in _KEYS if key != "channels"}
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
        return {key: value for key, value in lists.items() if value is not None and usual.get(key) != value}


def entries_of(given: Any) -> tuple[Entry, ...]:
    """Read entries: a mapping from names to channels or to what a side input is, or a list of what `to_dict` gives.

    Raises:
        ArtefactError: Says which entry is not one, and what is allowed.
    """
    if isinstance(given, Mapping):
        sides = {name: v if isinstance(v, Mapping) else {"channels": v} for name, v in given.items()}
        given = [{"name": name, **values} for name, values in sides.items()]
    found: list[Entry] = []
    for each in given:
        values = each.to_dict() if isinstance(each, Entry) else each  # its place may be another now
        if not isinstance(values, Mapping) or not set(values) <= set(_KEYS) or not values.get("name"):
            message = f"Image inputs must be like {_EXAMPLE}, found {values!r:.100}."
            raise ArtefactError(message)
        found.append(_entry(values, sum(one.channels for one in found)))
    names = [one.name for one in found]
    if len(set(names)) < len(names) or (found and all(one.shape is not None for one in found)):
        what = "one is named twice" if len(set(names)) < len(names) else "none of them takes an image"
        message = f"Image inputs {names}: {what}. Give them like {_EXAMPLE}."
        raise ArtefactError(message)
    return tuple(found)


def _entry(given: Mapping[str, Any], start: int) -> Entry:
    values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    count = values.get("channels")
    if set(values) == {"name", "channels"} and type(count) is int and count >= 1:
        return Entry(name=str(values["name"]), start=start, channels=count)
    try:
        kinds = (("shape", int), ("range", float))
        values |= {key: tuple(map(kind, values[key])) for key, kind in kinds if key in values}
        if "value" in values:
            values["value"] = tuple(np.asarray(values["value"], float).ravel().tolist())
        problem = _problem(values)
    except (TypeError, ValueError):
        problem = "has a shape, a value or a range that is no numbers"
    if problem:
        message = f"Image input {given.get('name')!r:.80} {problem}. Give inputs like {_EXAMPLE}."
        raise ArtefactError(message)
    return Entry(**values, start=start, channels=0 if "value" in values else 1)


def _problem(values: Mapping[str, Any]) -> str:
    """Return what keeps values from being a side input; empty where nothing does."""
    held, ends, size = values.get("value"), values.get("range"), math.prod(values.get("shape", ()))
    if "shape" not in values or "channels" in values or (held is None) == (ends is None):
        return "needs its number of channels, or a shape and either a value or a range"
    if size < 1 or (held is not None and len(held) not in (1, size)):
        return f"has the shape {values['shape']}, which {len(held or ())} value(s) do not fill"
    ordered = ends is None or (len(ends) == 2 and ends[0] < ends[1])
    if not ordered or not all(map(math.isfinite, held or ends or ())):
        return f"has {held or ends}: finite numbers are needed, of a range two, the lower first"
    dtype = values.get("dtype", TYPES[0])
    if dtype not in TYPES or (ends is not None and (dtype != TYPES[0] or not values.get("per_image", True))):
        return f"has the dtype {dtype!r}: allowed are {', '.join(TYPES)}; what is drawn is {TYPES[0]}, for each image"
    return ""


def drawn(entries: Sequence[Entry]) -> list[Entry]:
    """Return the side inputs whose numbers are drawn; each has a channel."""
    return [entry for entry in entries if entry.range is not None]


def completed(
    entries: Sequence[Entry], shape: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...], top: int
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """Return shape, mean and std of the stacked images; given are those of all images, or of one where all are alike.

    A channel whose pixels are side inputs gets the mean and std that make numbers in their range of pixels up to
    ``top``.

    Raises:
        ArtefactError: The channels are not those of the entries, or too few pixels hold the numbers.
    """
    images = [entry for entry in entries if entry.shape is None]
    total, order = (sum(entry.channels for entry in some) for some in (images, entries))
    most = max((math.prod(entry.shape or ()) for entry in drawn(entries)), default=0)
    if shape[0] == order and len(mean) == len(std) == order:
        return shape, mean, std
    alike = all(entry.channels == shape[0] for entry in images) or shape[0] == total
    if not alike or not {len(mean), len(std)} <= {total, images[0].channels} or most > math.prod(shape[1:]):
        message = (
            f"Image shape {shape} with mean of {len(mean)} and std of {len(std)} value(s) does not fit the inputs, "
            f"which take {total} channel(s) in all: give the shape of all images stacked by channel, ({total}, H, W), "
            f"and a mean and a std for each. At most H x W numbers of an input can be drawn (here {most})."
        )
        raise ArtefactError(message)
    pairs = iter(zip(mean * (total // len(mean)), std * (total // len(std)), strict=True))
    found: list[tuple[float, float]] = []
    for entry in entries:
        if entry.range is None:
            found += [next(pairs) for _ in range(entry.channels)]
        else:
            low, high = entry.range
            found.append((-low * top / (high - low), top / (high - low)))
    means, stds = zip(*found, strict=True)
    return (order, *shape[1:]), means, stds
