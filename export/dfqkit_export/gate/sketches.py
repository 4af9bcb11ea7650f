"""Large arrays in a few numbers, and numbers as short text.

What belongs here: the sketch, the distance of two, and their text. A sketch adds up an array's values with fixed
pseudo-random signs in a few buckets; the squared length of the difference of two sketches is an unbiased estimate of
that of the difference of the arrays (Charikar, Chen, Farach-Colton, ICALP 2002, the count sketch).
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack", "relative_distance", "sketch", "unpack"]

Floats = NDArray[np.float64]

_BUCKETS = 16


def sketch(values: NDArray[np.floating[Any]]) -> Floats:
    """Return the sketch of an array: 16 numbers of about its root mean square.

    Args:
        values: Any shape; the places in C order decide the signs.
    """
    flat = np.asarray(values, np.float64).reshape(-1)
    padded = np.zeros(-(-flat.size // _BUCKETS) * _BUCKETS)
    padded[: flat.size] = flat * _signs(flat.size)
    rows = padded.reshape(-1, _BUCKETS)
    result: Floats = rows.sum(axis=0) / np.sqrt(len(rows))
    return result


def relative_distance(base: Floats, now: Floats) -> float:
    """Return |now - base|^2 / |base|^2 of two arrays, estimated from their sketches."""
    return float(np.square(now - base).sum() / max(float(np.square(base).sum()), 1e-12))


def pack(values: NDArray[Any]) -> str:
    """Write an array's bytes as text."""
    return base64.b64encode(values.tobytes()).decode("ascii")


def unpack(text: Any, dtype: str) -> NDArray[Any]:
    """Read what `pack` wrote.

    Raises:
        ValueError: It is not such a text.
    """
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype)
    except (binascii.Error, TypeError) as error:
        raise ValueError(str(error)) from None


def _signs(count: int) -> Floats:
    # Not numpy's generators: their streams may change between versions, and a baseline outlives those.
    mixed = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.where((mixed >> np.uint64(40)) & np.uint64(1), 1.0, -1.0)
