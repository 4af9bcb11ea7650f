"""Intervals of 95 % by drawing images again and again: for numbers that are no mean over images.

What belongs here: the draws, and intervals of what was computed of each. The bootstrap of percentiles (Efron, Annals of
Statistics 1979); images are drawn, not what is in them, so that boxes and pixels of one image stay together.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.measure.kinds import Metric, MetricKind

#: Draws of a set; the ends of an interval move by a few percent of its width from seed to seed.
DRAWS = 200


def draws(n: int, count: int = DRAWS) -> NDArray[np.float64]:
    """Return how often each of n images is in each of ``count`` draws of n, (count, n); the same for the same n."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64)


def interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return between what 95 % of the finite draws lie; None without any."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def ratio_db(kind: MetricKind, signal: NDArray[np.float64], noise: NDArray[np.float64], **where: Any) -> Metric:
    """Return 10 log10(sum signal / sum noise) of per-image powers (N,), in dB; None where either sum is 0."""
    total, error = float(signal.sum()), float(noise.sum())
    if not total or not error:
        return kind.metric(value=None, n=len(noise), **where)
    drawn = draws(len(noise))
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = 10 * np.log10((drawn @ signal) / (drawn @ noise))
    return kind.metric(value=10 * math.log10(total / error), n=len(noise), interval=interval(spread), **where)


def ratio(kind: MetricKind, above: NDArray[np.float64], below: NDArray[np.float64], **where: Any) -> Metric:
    """Return 100 sum(above) / sum(below) of per-image sums (N,), in percent; None where the second is 0."""
    total = float(below.sum())
    if not total:
        return kind.metric(value=None, n=len(below), **where)
    drawn = draws(len(below))
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = 100 * (drawn @ above) / (drawn @ below)
    return kind.metric(value=100 * float(above.sum()) / total, n=len(below), interval=interval(spread), **where)


def mean(kind: MetricKind, values: NDArray[np.float64], **where: Any) -> Metric:
    """Return the mean over images (N,) with its standard error, None for one image."""
    n = len(values)
    stderr = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return kind.metric(value=float(values.mean()), n=n, stderr=stderr, **where)
