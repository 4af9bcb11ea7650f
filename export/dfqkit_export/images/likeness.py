"""Which pictures are copies of one in another set, whatever was done to them on the way.

What belongs here: the measure alone. It compares grey values of mean 0 and length 1, so that brightness, contrast and
colour do not count, of whichever of the mirrored, moved and cropped copies is nearest. How near is near depends on the
set: digits are like each other, photographs are not. So a distance counts by the share that it is of the distances to
the next nearest, as in Carlini et al., Extracting Training Data from Diffusion Models, USENIX Security 2023, section 5.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

# On the shipped digits, copies that were mirrored, moved by one pixel, cropped or made darker have shares up to 0.2,
# those with noise of 10 of 255 up to 0.45; images that were made from a network have 0.62 and more. The correlations
# of these are at most 0.974.
_SHARE, _ALIKE, _UNLIKE = 0.55, 0.985, 0.75
#: How many of the next nearest count; with fewer than three, correlation alone decides.
_NEXT = 10
#: Images are compared at up to so many pixels a side; smaller ones as they are.
_SIDE = 32
_MOVES = (-1, 0, 1)
_AT_ONCE = 2048


def copied(images: Pixels, others: Pixels) -> NDArray[np.bool_]:
    """Return which images are one of a set, or nearly.

    Args:
        images: (N, C, H, W), 8 bits.
        others: (M, C, H, W) of the same size, M at least 1.

    Returns:
        Bool (N,). An image of one grey alone is a copy of the same image only.
    """
    small = _small(images)
    nearest = np.full((len(images), _NEXT + 1), -1.0, np.float32)
    for start in range(0, len(others), _AT_ONCE):
        known = _small(others[start : start + _AT_ONCE])
        found = np.full((len(images), len(known)), -1.0, np.float32)
        for wider in (known, _cropped(known)):
            units = _unit(wider[:, 1:-1, 1:-1]).T
            for variant in _variants(small):
                np.maximum(found, _unit(variant) @ units, out=found)
        nearest = -np.sort(-np.concatenate([nearest, found], axis=1), axis=1)[:, : _NEXT + 1]
    count = min(len(others), _NEXT + 1)
    distances = np.sqrt(np.maximum(2 * (1 - nearest[:, :count]), 0))
    alike = nearest[:, 0] >= _ALIKE
    if count > 3:
        share = distances[:, 0] / np.maximum(distances[:, 1:].mean(axis=1), 1e-6)
        alike |= (share <= _SHARE) & (nearest[:, 0] >= _UNLIKE)
    flat = small.reshape(len(small), -1).std(axis=1) < 1e-3
    for index in np.flatnonzero(flat):
        alike[index] = bool((others == images[index]).all(axis=(1, 2, 3)).any())
    return np.asarray(alike)


def _variants(small: Floats) -> Iterator[Floats]:
    """Yield copies (N, h - 2, w - 2): mirrored or not, and moved by up to one pixel each way."""
    height, width = small.shape[1:]
    for turned in (small, small[:, :, ::-1], small[:, ::-1], small[:, ::-1, ::-1]):
        for down in _MOVES:
            for right in _MOVES:
                yield turned[:, 1 + down : height - 1 + down, 1 + right : width - 1 + right]


def _small(images: Pixels) -> Floats:
    """Return grey values of images, at most 32 pixels a side: means over cells of equal size, as far as that goes."""
    grey: Floats = images.mean(axis=1, dtype=np.float32)
    for axis in (1, 2):
        size = grey.shape[axis]
        if size > _SIDE:
            edges = np.rint(np.linspace(0, size, _SIDE + 1)).astype(np.int64)
            shape = [-1 if place == axis else 1 for place in range(3)]
            cells = np.diff(edges).astype(np.float32).reshape(shape)
            grey = (np.add.reduceat(grey, edges[:-1], axis=axis) / cells).astype(np.float32)
        elif size < 4:
            grey = np.repeat(grey, 4, axis=axis)
    return grey


def _cropped(grey: Floats) -> Floats:
    """Return images without the pixels at their edge, at the size they had: what a crop of one pixel leaves."""
    for axis in (1, 2):
        size = grey.shape[axis]
        at = np.linspace(1, size - 2, size)
        low = np.minimum(at.astype(np.int64), size - 2)
        part = (at - low).astype(np.float32).reshape([-1 if place == axis else 1 for place in range(3)])
        grey = grey.take(low, axis) * (1 - part) + grey.take(low + 1, axis) * part
    return grey


def _unit(windows: Floats) -> Floats:
    """Return rows of mean 0 and length 1; of one grey alone, rows of zeros."""
    flat = windows.reshape(len(windows), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    made: Floats = np.where(length > 1e-3, flat / np.maximum(length, 1e-3), 0).astype(np.float32)
    return made
