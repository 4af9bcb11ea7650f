"""Terms of BatchNorm statistics against closed forms and float64 NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqkit import losses
from tests._arrays import descend, draw

TERMS: list[Callable[..., Tensor]] = [losses.bn_kl, losses.bn_l2, losses.bn_mse, losses.bn_normals, losses.bn_std]


def name(term: Callable[..., Tensor]) -> str:
    return term.__name__


def column(*values: float) -> list[Tensor]:
    return [torch.tensor([value]) for value in values]


def statistics(channels: int = 7) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.2, 2, (4, channels))


def tensors(arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(v) for v in arrays]


@pytest.mark.parametrize(("statistics", "expected"), [((0, 1, 0, 1), 0), ((1, 1, 0, 1), 0.5), ((0, 4, 0, 1), 0.8069)])
def test_bn_kl_closed_form(statistics: tuple[float, ...], expected: float) -> None:
    assert float(losses.bn_kl(*column(*map(float, statistics)))) == pytest.approx(expected, abs=5e-5)


def test_bn_kl_sums_over_channels_and_takes_the_batch_first() -> None:
    mean, variance, running_mean, running_variance = statistics()
    expected = np.sum(
        np.log(np.sqrt(running_variance / variance))
        + (variance + (mean - running_mean) ** 2) / (2 * running_variance)
        - 0.5
    )
    assert float(losses.bn_kl(*tensors(statistics()))) == pytest.approx(expected, rel=1e-12)


def test_bn_kl_stays_finite_for_dead_channels() -> None:
    found = losses.bn_kl(*column(0.0, 0.0, 0.0, 0.0))
    assert float(found) == 0.0
    assert math.isfinite(float(losses.bn_kl(*column(0.1, 0.0, 0.0, 1.0))))


def test_bn_l2_adds_two_norms_that_are_not_squared() -> None:
    mean, variance, running_mean, running_variance = statistics()
    expected = np.sqrt(np.sum((mean - running_mean) ** 2)) + np.sqrt(np.sum((variance - running_variance) ** 2))
    assert float(losses.bn_l2(*tensors(statistics()))) == pytest.approx(expected, rel=1e-12)
    doubled = np.stack([2 * v for v in statistics()])
    assert float(losses.bn_l2(*tensors(doubled))) == pytest.approx(2 * expected, rel=1e-12)


def test_bn_mse_averages_over_channels() -> None:
    mean, variance, running_mean, running_variance = statistics()
    expected = np.mean((mean - running_mean) ** 2) + np.mean((variance - running_variance) ** 2)
    assert float(losses.bn_mse(*tensors(statistics()))) == pytest.approx(expected, rel=1e-12)
    twice = np.concatenate([statistics(), statistics()], axis=1)
    assert float(losses.bn_mse(*tensors(twice))) == pytest.approx(expected, rel=1e-12)
    assert float(losses.bn_kl(*tensors(twice))) == pytest.approx(2 * float(losses.bn_kl(*tensors(statistics()))))


def test_bn_normals_averages_divergences_over_channels_of_which_dead_ones_weigh_little() -> None:
    mean, variance, running_mean, running_variance = statistics()
    floor = 1e-3 * running_variance.mean()
    old, new = running_variance + floor, variance + floor
    expected = np.mean(0.5 * ((mean - running_mean) ** 2 / old + new / old - 1 - np.log(new / old)))
    assert float(losses.bn_normals(*tensors(statistics()))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_bn_std_compares_standard_deviations(eps: float) -> None:
    mean, variance, running_mean, running_variance = statistics()
    expected = np.mean((mean - running_mean) ** 2) + np.mean(
        (np.sqrt(running_variance + eps) - np.sqrt(variance + eps)) ** 2
    )
    assert float(losses.bn_std(*tensors(statistics()), eps=eps)) == pytest.approx(expected, rel=1e-12)
    default = float(losses.bn_std(*tensors(statistics())))
    assert (default == float(losses.bn_std(*tensors(statistics()), eps=eps))) == (eps == 1e-6)


def test_the_forms_differ() -> None:
    values = [float(term(*tensors(statistics()))) for term in TERMS]
    assert all(abs(a / b - 1) > 0.05 for i, a in enumerate(values) for b in values[:i]), values


@pytest.mark.parametrize("term", TERMS, ids=name)
def test_equal_statistics_cost_nothing_and_have_no_slope(term: Callable[..., Tensor]) -> None:
    mean, variance = draw(7, seed=1), draw(7, seed=2).square() + 0.1
    variance[0] = 0.0
    given = [mean.clone().requires_grad_(True), variance.clone().requires_grad_(True)]
    value = term(*given, mean, variance)
    assert float(value.detach()) == 0.0
    for gradient in torch.autograd.grad(value, given):
        assert torch.isfinite(gradient).all()
        assert float(gradient[1:].abs().max()) < 1e-5


@pytest.mark.parametrize("term", TERMS, ids=name)
def test_one_step_moves_the_statistics_of_a_batch_toward_the_running_ones(term: Callable[..., Tensor]) -> None:
    wide = draw(64, 3, seed=0) * 2 + 1
    running_mean, running_variance = torch.zeros(3), torch.ones(3)

    def distance(v: Tensor) -> Tensor:
        return term(v.mean(0), v.var(0, correction=0), running_mean, running_variance)

    moved = descend(lambda v: 64 * distance(v), wide)
    assert ((moved.mean(0) - running_mean).abs() < (wide.mean(0) - running_mean).abs()).all()
    assert (
        (moved.var(0, correction=0) - running_variance).abs() < (wide.var(0, correction=0) - running_variance).abs()
    ).all()
    assert distance(moved) < distance(wide)
