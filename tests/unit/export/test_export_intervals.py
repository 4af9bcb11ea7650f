"""Intervals that hold: against closed forms, simulated coverage, and what metrics make of them."""

from __future__ import annotations

import numpy as np
import pytest

from dfqkit_export.measure.intervals import median_interval, paired_interval, rule_of_three
from dfqkit_export.measure.kinds import AGREEMENT
from dfqkit_export.measure.metrics import share
from dfqkit_export.tasks.classification import paired_drop


@pytest.mark.parametrize("n", [20, 540, 10_000])
def test_nothing_that_changed_leaves_three_of_n(n: int) -> None:
    low, high = paired_interval(0, 0, n)
    assert (low, high) == (-3 / n, 3 / n)
    exact = 1 - 0.05 ** (1 / n)  # the share of which n draws show none in one of twenty cases
    assert rule_of_three(n) == pytest.approx(exact, rel=0.08)


def test_both_sides_are_mirrored_and_hold_the_value() -> None:
    low, high = paired_interval(7, 2, 300)
    assert paired_interval(2, 7, 300) == pytest.approx((-high, -low))
    assert -1 <= low < 5 / 300 < high <= 1
    assert paired_interval(40, 0, 40)[1] == pytest.approx(1.0)


def test_large_counts_come_to_the_normal_interval() -> None:
    low, high = paired_interval(6000, 5000, 100_000)
    error = np.sqrt((0.11 - 0.01**2) / 100_000)
    assert (low, high) == pytest.approx((0.01 - 1.96 * error, 0.01 + 1.96 * error), abs=2e-5)


@pytest.mark.parametrize(
    ("n", "lost", "gained"), [(200, 0.01, 0.01), (540, 0.002, 0.0), (540, 0.05, 0.03), (100, 0.2, 0.1), (300, 0.03, 0)]
)
def test_paired_intervals_hold_the_truth_as_often_as_they_say(n: int, lost: float, gained: float) -> None:
    counts = np.random.default_rng(0).multinomial(n, [lost, gained, 1 - lost - gained], 2000)
    found = {(a, b): paired_interval(a, b, n) for a, b in {(int(a), int(b)) for a, b, _ in counts}}
    inside = [found[int(a), int(b)][0] <= lost - gained <= found[int(a), int(b)][1] for a, b, _ in counts]
    assert np.mean(inside) > 0.93


@pytest.mark.parametrize("n", [6, 20, 50])
def test_median_intervals_hold_the_truth_as_often_as_they_say(n: int) -> None:
    draws = np.random.default_rng(1).exponential(size=(2000, n))
    inside = [low <= np.log(2) <= high for low, high in map(median_interval, draws)]
    assert np.mean(inside) > 0.93


def test_few_values_give_all_that_there_is() -> None:
    assert median_interval([3.0, 1.0]) == (1.0, 3.0)
    assert median_interval([2.0]) == (2.0, 2.0)


def test_shares_of_all_or_none_have_an_interval_in_place_of_an_error_of_0() -> None:
    where = {"subject": "s", "data": "d"}
    assert share(AGREEMENT, np.ones(100, bool), **where).low == 97.0
    assert share(AGREEMENT, np.zeros(100, bool), **where).high == 3.0
    assert share(AGREEMENT, np.arange(100) < 50, **where).low is None


def test_the_drop_has_the_interval_of_its_pairs() -> None:
    labels = np.arange(540) % 10
    right = np.eye(10)[labels]
    drop = paired_drop(right, right, labels, subject="s", data="d")
    assert (drop.value, drop.low, drop.high) == pytest.approx((0.0, -300 / 540, 300 / 540))
    worse = right.copy()
    worse[:5] = np.roll(worse[:5], 1, axis=1)
    drop = paired_drop(right, worse, labels, subject="s", data="d")
    assert (drop.low, drop.high) == pytest.approx([100 * end for end in paired_interval(5, 0, 540)])
