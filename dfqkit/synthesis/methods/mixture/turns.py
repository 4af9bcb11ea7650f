"""Whose turn it is, where several sources give by share: source i's m-th item (from 0) is due at (m + 1/2) / share_i.

What belongs here: arithmetic on counts and shares. Items come in the order in which they are due, the source listed
first where two are due together; however many have come, each source has given its share up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def turns(given: Sequence[int], shares: Sequence[float], n: int) -> list[int]:
    """Return which source each of the next ``n`` items comes from; shares are on any scale, not all 0.

    Example:
        >>> turns([0, 0], [0.6, 0.4], 5)
        [0, 1, 0, 1, 0]
    """
    due = [
        (_due(count + ahead, share), index)
        for index, (count, share) in enumerate(zip(given, shares, strict=True))
        if share
        for ahead in range(n)
    ]
    return [index for _, index in sorted(due)[:n]]


def counts(shares: Sequence[float], n: int) -> list[int]:
    """Return how many of the first ``n`` items each source gives."""
    order = turns([0] * len(shares), shares, n)
    return [order.count(index) for index in range(len(shares))]


def until_empty(given: Sequence[int], shares: Sequence[float], left: Sequence[int | None]) -> int | None:
    """Return how many items can come before a source is due that has none ``left``; None stands for any number."""
    ends = [(_due(given[index] + count, shares[index]), index) for index, count in enumerate(left) if count is not None]
    if not ends:
        return None
    end = min(ends)
    total = 0
    for index, share in enumerate(shares):
        # How many are due before that moment: a little too few for certain, then exactly.
        count = max(given[index], math.floor(end[0] * share - 0.5) - 1)
        while (_due(count, share), index) < end:
            count += 1
        total += count - given[index]
    return total


def _due(index: int, share: float) -> float:
    return (index + 0.5) / share
