"""Loss terms against closed forms, float64 numpy and numerical gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqkit import losses


def logits(n: int = 6, k: int = 10, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def column(*values: float) -> list[Tensor]:
    return [torch.tensor([value]) for value in values]


@pytest.mark.parametrize(("statistics", "expected"), [((0, 1, 0, 1), 0), ((1, 1, 0, 1), 0.5), ((0, 4, 0, 1), 0.8069)])
def test_bn_kl_closed_form(statistics: tuple[float, ...], expected: float) -> None:
    assert float(losses.bn_kl(*column(*map(float, statistics)))) == pytest.approx(expected, abs=5e-5)


def test_bn_kl_sums_over_channels_and_takes_the_batch_first() -> None:
    mean, variance, running_mean, running_variance = np.random.default_rng(0).uniform(0.2, 2, (4, 7))
    expected = np.sum(
        np.log(np.sqrt(running_variance / variance))
        + (variance + (mean - running_mean) ** 2) / (2 * running_variance)
        - 0.5
    )
    found = losses.bn_kl(*(torch.from_numpy(v) for v in (mean, variance, running_mean, running_variance)))
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_bn_kl_stays_finite_for_dead_channels() -> None:
    found = losses.bn_kl(*column(0.0, 0.0, 0.0, 0.0))
    assert float(found) == 0.0
    assert math.isfinite(float(losses.bn_kl(*column(0.1, 0.0, 0.0, 1.0))))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kd_kl_against_numpy(temperature: float) -> None:
    student, teacher = logits(seed=1), logits(seed=2)
    p, q = (softmax(x.numpy().astype(np.float64) / temperature) for x in (teacher, student))
    expected = temperature**2 * np.mean(np.sum(p * (np.log(p) - np.log(q)), 1))
    assert float(losses.kd_kl(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)


def test_kd_kl_of_identical_logits_is_zero_and_rows_may_shift() -> None:
    x = logits()
    assert float(losses.kd_kl(x, x)) == pytest.approx(0, abs=1e-7)
    shift = torch.arange(6.0).unsqueeze(1)
    assert float(losses.kd_kl(x + shift, x)) == pytest.approx(0, abs=1e-6)


def test_kd_kl_at_infinite_temperature_is_centred_mse() -> None:
    student, teacher = logits(seed=1, dtype=torch.float64), logits(seed=2, dtype=torch.float64)
    difference = student - teacher
    centred = difference - difference.mean(1, keepdim=True)
    expected = centred.square().sum(1).mean() / (2 * 10)
    assert float(losses.kd_kl(student, teacher, 1e4)) == pytest.approx(float(expected), rel=1e-3)


def test_class_balance_bounds() -> None:
    even = 50 * torch.eye(10)
    assert float(losses.class_balance(even)) == pytest.approx(-math.log(10), abs=1e-5)
    collapsed = 50 * torch.eye(10)[:1].expand(8, 10)
    assert float(losses.class_balance(collapsed)) == pytest.approx(0, abs=1e-5)


def test_instance_entropy_bounds() -> None:
    assert float(losses.instance_entropy(torch.zeros(3, 10))) == pytest.approx(math.log(10), rel=1e-6)
    assert float(losses.instance_entropy(200 * torch.eye(10))) == pytest.approx(0, abs=1e-6)
    p = softmax(logits().numpy().astype(np.float64))
    assert float(losses.instance_entropy(logits())) == pytest.approx(-np.mean(np.sum(p * np.log(p), 1)), rel=1e-5)


def test_logit_differences_against_numpy() -> None:
    a, b = logits(seed=1), logits(seed=2)
    assert float(losses.logit_l1(a, b)) == pytest.approx(np.abs(a.numpy() - b.numpy()).mean(), rel=1e-5)
    assert float(losses.logit_mse(a, b)) == pytest.approx(((a.numpy() - b.numpy()) ** 2).mean(), rel=1e-5)


TERMS: dict[str, Callable[[Tensor], Tensor]] = {
    "kd_kl student": lambda x: losses.kd_kl(x, logits(3, 4, 9, dtype=x.dtype), 2.0),
    "kd_kl teacher": lambda x: losses.kd_kl(logits(3, 4, 9, dtype=x.dtype), x, 2.0),
    "logit_l1": lambda x: losses.logit_l1(x, logits(3, 4, 9, dtype=x.dtype)),
    "logit_mse": lambda x: losses.logit_mse(x, logits(3, 4, 9, dtype=x.dtype)),
    "instance_entropy": losses.instance_entropy,
    "class_balance": losses.class_balance,
    "bn_kl": lambda x: losses.bn_kl(x[0], x[1].exp(), torch.zeros(4).to(x), torch.ones(4).to(x)),
}


@pytest.mark.parametrize("term", TERMS)
def test_gradients(term: str) -> None:
    x = logits(3, 4, 5, scale=1.0, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(TERMS[term], (x,))


@pytest.mark.parametrize("term", TERMS)
def test_half_precision_is_computed_in_float32(term: str) -> None:
    x = logits(3, 4, 5, scale=1.0).bfloat16()
    assert TERMS[term](x).dtype == torch.float32


def descend(term: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(term(x), x)
    return (x - 0.1 * gradient).detach()


def test_descending_each_term_moves_what_it_names() -> None:
    x, target = logits(seed=1), logits(seed=2)
    assert losses.kd_kl(descend(lambda s: losses.kd_kl(s, target), x), target) < losses.kd_kl(x, target)
    sure = descend(losses.instance_entropy, x).softmax(1).max(1).values
    assert sure.mean() > x.softmax(1).max(1).values.mean()

    def spread(v: Tensor) -> Tensor:
        return v.softmax(1).mean(0).std()

    assert spread(descend(losses.class_balance, x)) < spread(x)
    wide = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1

    def distance(v: Tensor) -> Tensor:
        return losses.bn_kl(v.mean(0), v.var(0, correction=0), torch.zeros(3), torch.ones(3))

    moved = descend(lambda v: 64 * distance(v), wide)
    assert moved.mean(0).abs().sum() < wide.mean(0).abs().sum()
    assert (moved.var(0) - 1).abs().sum() < (wide.var(0) - 1).abs().sum()
