"""Image and feature priors against loops in float64 NumPy, and what descending them does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqkit import losses
from tests._arrays import array, descend, draw

NEIGHBOURS = [(0, 1), (1, 0), (1, 1), (1, -1)]


def pairs(x: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
    """Differences of every pixel and its neighbour at ``offset``, found one by one."""
    height, width = x.shape[2:]
    found = [
        x[:, :, i, j] - x[:, :, i + offset[0], j + offset[1]]
        for i in range(height)
        for j in range(width)
        if 0 <= i + offset[0] < height and 0 <= j + offset[1] < width
    ]
    return np.stack(found)


def test_tv_l2_adds_four_norms_over_the_whole_batch() -> None:
    x = draw(3, 2, 5, 4)
    expected = sum(np.sqrt(np.sum(pairs(array(x), offset) ** 2)) for offset in NEIGHBOURS)
    assert float(losses.tv_l2(x)) == pytest.approx(expected, rel=1e-6)


def test_tv_l1_adds_four_means() -> None:
    x = draw(3, 2, 5, 4)
    expected = sum(np.mean(np.abs(pairs(array(x), offset))) for offset in NEIGHBOURS)
    assert float(losses.tv_l1(x)) == pytest.approx(expected, rel=1e-6)


def test_total_variation_of_a_ramp() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 3, 4)
    # Right: 9 differences of 1; below: none; each diagonal: 6 of 1.
    assert float(losses.tv_l2(ramp)) == pytest.approx(3 + 2 * 6**0.5, rel=1e-6)
    assert float(losses.tv_l1(ramp)) == pytest.approx(3, rel=1e-6)


@pytest.mark.parametrize("turn", [lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)])
@pytest.mark.parametrize("term", [losses.tv_l1, losses.tv_l2])
def test_total_variation_knows_no_direction(term, turn) -> None:  # type: ignore[no-untyped-def]
    x = draw(3, 2, 5, 4)
    assert float(term(turn(x))) == pytest.approx(float(term(x)), rel=1e-6)
    assert float(term(x + 7)) == pytest.approx(float(term(x)), rel=1e-5)


def test_tv_l2_depends_on_the_batch_size_and_tv_l1_does_not() -> None:
    x = draw(3, 2, 5, 4)
    four = x.repeat(4, 1, 1, 1)
    assert float(losses.tv_l2(four)) == pytest.approx(2 * float(losses.tv_l2(x)), rel=1e-6)
    assert float(losses.tv_l1(four)) == pytest.approx(float(losses.tv_l1(x)), rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 1, 5), (2, 1, 5, 1), (2, 1, 1, 1), (2, 1, 10, 7)])
@pytest.mark.parametrize("term", [losses.tv_l1, losses.tv_l2])
def test_total_variation_of_small_images_is_finite(term, shape) -> None:  # type: ignore[no-untyped-def]
    x = draw(*shape).requires_grad_(True)
    value = term(x)
    assert torch.isfinite(value)
    assert torch.isfinite(torch.autograd.grad(value, x)[0]).all()
    constant = torch.ones(shape, requires_grad=True)
    value = term(constant)
    assert float(value.detach()) == 0.0
    assert not torch.autograd.grad(value, constant)[0].any()


def test_l2_of_the_batch_and_of_each_image() -> None:
    x = draw(3, 2, 5, 4)
    assert float(losses.l2_batch(x)) == pytest.approx(np.sqrt(np.sum(array(x) ** 2)), rel=1e-6)
    each = np.sqrt(np.sum(array(x) ** 2, axis=(1, 2, 3)))
    assert float(losses.l2_image(x)) == pytest.approx(each.mean(), rel=1e-6)
    four = x.repeat(4, 1, 1, 1)
    assert float(losses.l2_batch(four)) == pytest.approx(2 * float(losses.l2_batch(x)), rel=1e-6)
    assert float(losses.l2_image(four)) == pytest.approx(float(losses.l2_image(x)), rel=1e-6)


def test_activation_l1_is_minus_the_mean_size() -> None:
    for shape in ((6, 10), (2, 3, 4, 4)):
        x = draw(*shape)
        assert float(losses.activation_l1(x)) == pytest.approx(-np.abs(array(x)).mean(), rel=1e-6)


def roughness(x: Tensor) -> float:
    return sum(float(np.abs(pairs(array(x), offset)).sum()) for offset in NEIGHBOURS)


def test_descending_each_term_moves_what_it_names() -> None:
    x = draw(3, 2, 5, 4)
    assert roughness(descend(losses.tv_l1, x)) < roughness(x)
    assert roughness(descend(losses.tv_l2, x)) < roughness(x)
    assert descend(losses.l2_batch, x).abs().sum() < x.abs().sum()
    assert (descend(losses.l2_image, x).flatten(1).norm(dim=1) < x.flatten(1).norm(dim=1)).all()
    assert (descend(losses.activation_l1, x).abs() > x.abs()).all()
