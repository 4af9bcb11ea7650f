"""What each image says of how far one set of logits is from another.

What belongs here: pure functions of two arrays of shape (n, classes), the reference first, of the same images in the
same order; they give one value an image, in float64. What is made of the values is `kinds`' and `metrics`'.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["agrees", "divergence", "noise"]


def agrees(reference: NDArray[Any], logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether both choose the same class; ties go to the lower class index."""
    same: NDArray[np.bool_] = np.asarray(reference, np.float64).argmax(1) == np.asarray(logits, np.float64).argmax(1)
    return same


def divergence(reference: NDArray[Any], logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return KL(reference || logits) of the softmax distributions, in nats.

    Rounding can push the divergence of equal distributions a few ulp below zero.
    """
    first, second = (_log_softmax(np.asarray(values, np.float64)) for values in (reference, logits))
    found: NDArray[np.float64] = (np.exp(first) * (first - second)).sum(axis=1)
    return found


def noise(reference: NDArray[Any], logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the squared error of the logits, summed over the classes."""
    found: NDArray[np.float64] = np.square(np.asarray(reference, np.float64) - np.asarray(logits, np.float64)).sum(1)
    return found


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(axis=1, keepdims=True)
    normalized: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalized
