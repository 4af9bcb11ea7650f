"""Large arrays in a few numbers: sketches of codes and of layers' outputs, by which a later file is compared.

What belongs here: the sketch, the distance of two, and their short text form. A sketch adds up an array's values with
fixed pseudo-random signs in a few buckets; the squared length of the difference of two sketches is an unbiased estimate
of that of the difference of the arrays (Charikar, Chen, Farach-Colton, ICALP 2002, the count sketch).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError

__all__ = [
    "BUCKETS", "distances", "pack", "pack_sketches", "relative_distance", "sketch", "unpack",
    "unpack_sketches",
]  # fmt: skip

Floats = NDArray[np.float64]

BUCKETS = 16


def sketch(values: NDArray[np.floating[Any]]) -> Floats:
    """Return the sketch of an array: 16 numbers of about its root mean square.

    Args:
        values: Any shape; the places in C order decide the signs.
    """
    flat = np.asarray(values, np.float64).reshape(-1)
    padded = np.zeros(-(-flat.size // BUCKETS) * BUCKETS)
    padded[: flat.size] = flat * _signs(flat.size)
    rows = padded.reshape(-1, BUCKETS)
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


def distances(base: Mapping[str, Floats], now: Mapping[str, Floats]) -> dict[str, float]:
    """Return how far each layer's output is from the baseline's, relative to its size.

    Args:
        base: Sketches of the baseline's file.
        now: Sketches of today's, of the same images.

    Returns:
        |now - base|^2 / |base|^2 by layer, in the order of `now`; layers that only one of them has are left out.
    """
    found = {}
    for name, values in now.items():
        before = base.get(name)
        if before is not None and before.shape == values.shape:
            found[name] = relative_distance(before, values)
    return found


def pack_sketches(sketches: Mapping[str, Floats]) -> dict[str, str]:
    """Write sketches as text, 44 letters a layer."""
    return {name: pack(np.clip(values, -65504, 65504).astype("<f2")) for name, values in sketches.items()}


def unpack_sketches(texts: Mapping[str, object]) -> dict[str, Floats]:
    """Read what `pack_sketches` wrote.

    Raises:
        ArtefactError: Something else stands there.
    """
    try:
        return {name: unpack(text, "<f2").astype(np.float64) for name, text in texts.items()}
    except ValueError as error:
        msg = f"The baseline's fingerprints are damaged ({error}). Record it again with --update."
        raise ArtefactError(msg) from None


def _signs(count: int) -> Floats:
    # Not numpy's generators: their streams may change between versions, and a baseline outlives those.
    mixed = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.where((mixed >> np.uint64(40)) & np.uint64(1), 1.0, -1.0)
