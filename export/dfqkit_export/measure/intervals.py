"""Intervals of 95 % that hold where a standard error does not: at no event at all, and with few calls.

What belongs here: pure functions of counts and numbers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

#: Two-sided 95 % of a normal distribution.
_Z = 1.959964
_STEPS = 60


def rule_of_three(n: int) -> float:
    """Return the largest share of which n draws may show none, at 95 %: 3 / n (Hanley and Lippman-Hand, JAMA 1983)."""
    return min(1.0, 3.0 / n)


def paired_interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of (lost - gained) / n, a difference of two shares of the same n images.

    Tango's score interval (Statistics in Medicine 1998), which holds for small counts, where an interval of standard
    errors is too narrow. Where no image changed, no more than 3 / n of all may: an image that is lost and one that is
    gained are both changes, so the difference lies within 3 / n to either side.

    Args:
        lost: Images that only the reference has right.
        gained: Images that only the subject has right.
        n: All images, at least 1.
    """
    if lost == gained == 0:
        return -rule_of_three(n), rule_of_three(n)
    middle = (lost - gained) / n
    return _root(lost, gained, n, middle, -1.0), _root(lost, gained, n, middle, 1.0)


def median_interval(values: ArrayLike) -> tuple[float, float]:
    """Return the 95 % interval of a median: two order statistics, without an assumption about the distribution.

    Fewer than six values hold no such interval; the smallest and the largest are given.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    below, chance = 0, 0.5**n
    while chance <= 0.025 and below < n // 2:  # the share of samples with no more than `below` values under the median
        below += 1
        chance += math.comb(n, below) * 0.5**n
    first = max(0, below - 1)
    return float(ordered[first]), float(ordered[n - 1 - first])


def _root(lost: int, gained: int, n: int, middle: float, side: float) -> float:
    """Find where the score is z, between the measured difference and the end of what is possible, by halving."""
    inner, outer = middle, side
    for _ in range(_STEPS):
        tried = (inner + outer) / 2
        if abs(_score(lost, gained, n, tried)) > _Z:
            outer = tried
        else:
            inner = tried
    return (inner + outer) / 2


def _score(lost: int, gained: int, n: int, difference: float) -> float:
    """How many standard deviations the counts are from what a true difference would give, by constrained likelihood."""
    b = (2 * n - lost + gained) * difference - lost - gained
    c = -gained * difference * (1 - difference)
    only_gained = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * only_gained + difference * (1 - difference))
    distance = lost - gained - n * difference
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0
