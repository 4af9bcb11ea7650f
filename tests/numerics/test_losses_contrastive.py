"""Contrastive terms against loops in float64 NumPy, where gradients flow, and what descending does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqkit import losses
from tests._arrays import array, descend, draw


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).sum(1, keepdims=True))


def row_losses(rows: np.ndarray, columns: np.ndarray, temperature: float) -> np.ndarray:
    rows, columns = unit(rows), unit(columns)
    found = []
    for i, row in enumerate(rows):
        similar = [math.exp(float(row @ column) / temperature) for column in columns]
        found.append(-math.log(similar[i] / sum(similar)))
    return np.array(found)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_info_nce_against_numpy(temperature: float) -> None:
    local, global_ = draw(5, 8, seed=1), draw(5, 8, seed=2)
    expected = row_losses(array(local), array(global_), temperature).mean()
    assert float(losses.info_nce(local, global_, temperature)) == pytest.approx(expected, rel=1e-5)


def test_info_nce_gives_current_and_cached_rows_a_mean_each() -> None:
    local, global_, old_local, old_global = (draw(n, 8, seed=seed) for n, seed in ((3, 1), (3, 2), (20, 3), (20, 4)))
    found = float(losses.info_nce(local, global_, 0.5, old_local, old_global))
    rows, columns = (np.concatenate([array(a), array(b)]) for a, b in ((local, old_local), (global_, old_global)))
    each = row_losses(rows, columns, 0.5)
    assert found == pytest.approx(each[:3].mean() + each[3:].mean(), rel=1e-5)
    assert abs(found - each.mean()) > 1, "not one mean over all rows"


def test_info_nce_at_equal_similarities_is_the_logarithm_of_the_number_of_columns() -> None:
    same = torch.ones(6, 4)
    assert float(losses.info_nce(same, same, 0.1)) == pytest.approx(math.log(6), rel=1e-6)
    cached = torch.ones(10, 4)
    assert float(losses.info_nce(same, same, 0.1, cached, cached)) == pytest.approx(2 * math.log(16), rel=1e-6)
    apart = torch.eye(6)
    assert float(losses.info_nce(apart, apart, 0.02)) == pytest.approx(0, abs=1e-6)
    assert float(losses.info_nce(apart, apart.roll(1, 0), 0.02)) == pytest.approx(50, rel=1e-3)


def test_info_nce_does_not_see_length() -> None:
    local, global_ = draw(5, 8, seed=1), draw(5, 8, seed=2)
    lengths = torch.tensor([[0.01], [1.0], [5.0], [100.0], [3.0]])
    expected = float(losses.info_nce(local, global_, 0.2))
    assert float(losses.info_nce(lengths * local, global_ / lengths, 0.2)) == pytest.approx(expected, rel=1e-5)


def test_info_nce_sends_no_gradient_to_the_global_views() -> None:
    given = [draw(n, 8, seed=seed).requires_grad_(True) for n, seed in ((3, 1), (3, 2), (4, 3), (4, 4))]
    value = losses.info_nce(given[0], given[1], 0.5, given[2], given[3])
    gradients = torch.autograd.grad(value, given, allow_unused=True)
    assert [g is not None and bool(g.any()) for g in gradients] == [True, False, True, False]


def test_info_nce_needs_both_halves_of_a_cache() -> None:
    x = draw(3, 8)
    with pytest.raises(ValueError, match="found only cached_local"):
        losses.info_nce(x, x, 0.5, cached_local=x)
    with pytest.raises(ValueError, match="found only cached_global"):
        losses.info_nce(x, x, 0.5, cached_global=x)


def test_info_nce_raises_the_similarity_of_pairs_over_that_of_strangers() -> None:
    x, global_ = draw(6, 16, seed=1), draw(6, 16, seed=2)
    old, old_global = draw(9, 16, seed=3), draw(9, 16, seed=4)

    def similarity(v: Tensor) -> tuple[float, float]:
        table = unit(array(v)) @ unit(array(global_)).T
        strangers = table[~np.eye(6, dtype=bool)].mean()
        return float(np.trace(table) / 6), float(strangers)

    for cache in ((), (old, old_global)):
        moved = descend(lambda v, cache=cache: losses.info_nce(v, global_, 0.5, *cache), x, 1.0)
        (pairs, strangers), (pairs_before, strangers_before) = similarity(moved), similarity(x)
        assert pairs > pairs_before
        assert pairs - strangers > pairs_before - strangers_before


def at(*angles: float) -> Tensor:
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


def test_cosine_margin_is_a_hinge_on_both_sides() -> None:
    centre = torch.tensor([5.0, 0.0])
    features = at(0.0, math.pi / 3, math.pi / 2, math.pi) * torch.tensor([[1.0], [9.0], [0.1], [2.0]])
    # Cosine distances 0, 0.5, 1 and 2.
    assert float(losses.cosine_margin(features, centre, 0.2, 0.9)) == pytest.approx((0.2 + 0.1 + 1.1) / 4, abs=1e-6)
    assert float(losses.cosine_margin(features, centre, 0.0, 2.0)) == pytest.approx(0, abs=1e-6)
    assert float(losses.cosine_margin(features[1:3], centre, 0.4, 1.1)) == pytest.approx(0, abs=1e-6)


def test_cosine_margin_against_numpy_with_a_centre_for_each_image() -> None:
    features, centres = draw(6, 8, seed=1), draw(6, 8, seed=2)
    distance = 1 - np.sum(unit(array(features)) * unit(array(centres)), 1)
    expected = np.mean(np.maximum(0, 0.9 - distance)) + np.mean(np.maximum(0, distance - 1.1))
    assert expected > 0
    assert float(losses.cosine_margin(features, centres, 0.9, 1.1)) == pytest.approx(expected, rel=1e-5)


def test_cosine_margin_moves_what_lies_outside_and_nothing_else() -> None:
    centre = torch.tensor([1.0, 0.0])
    x = at(0.1, 1.0, 3.0)
    moved = descend(lambda v: losses.cosine_margin(v, centre, 0.2, 1.0), x)
    before, after = (1 - unit(array(v)) @ array(centre) for v in (x, moved))
    assert after[0] > before[0]
    assert after[1] == before[1]
    assert after[2] < before[2]
