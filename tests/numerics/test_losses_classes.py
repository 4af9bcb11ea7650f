"""Terms of one network's logits against float64 NumPy, their bounds, and what descending them does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqkit import losses
from tests._arrays import array, descend, logits, softmax

LABELS = torch.tensor([3, 0, 9, 3, 5, 1])


def of_label(p: np.ndarray) -> np.ndarray:
    return p[np.arange(len(p)), LABELS.numpy()]


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_soft_cross_entropy_against_numpy(temperature: float) -> None:
    x, target = logits(seed=1), logits(seed=2).softmax(1)
    expected = -np.mean(np.sum(array(target) * np.log(softmax(array(x) / temperature)), 1))
    assert float(losses.soft_cross_entropy(x, target, temperature)) == pytest.approx(expected, rel=1e-5)


def test_soft_cross_entropy_is_divergence_plus_entropy_and_takes_certain_targets() -> None:
    x, other = logits(seed=1), logits(seed=2)
    expected = losses.kd_kl(x, other) + losses.instance_entropy(other)
    assert float(losses.soft_cross_entropy(x, other.softmax(1))) == pytest.approx(float(expected), rel=1e-5)
    certain = torch.eye(10)[LABELS]
    assert float(losses.soft_cross_entropy(x, certain)) == pytest.approx(
        -np.mean(np.log(of_label(softmax(array(x))))), rel=1e-5
    )


def test_pseudo_label_is_the_logarithm_of_the_largest_probability() -> None:
    x = logits()
    assert float(losses.pseudo_label(x)) == pytest.approx(-np.mean(np.log(softmax(array(x)).max(1))), rel=1e-5)
    assert float(losses.pseudo_label(torch.zeros(3, 10))) == pytest.approx(math.log(10), rel=1e-6)
    assert float(losses.pseudo_label(200 * torch.eye(10))) == pytest.approx(0, abs=1e-6)


def test_pseudo_label_is_not_the_entropy() -> None:
    x = logits()
    assert float(losses.pseudo_label(x)) < float(losses.instance_entropy(x)) - 0.05


def test_instance_entropy_bounds() -> None:
    assert float(losses.instance_entropy(torch.zeros(3, 10))) == pytest.approx(math.log(10), rel=1e-6)
    assert float(losses.instance_entropy(200 * torch.eye(10))) == pytest.approx(0, abs=1e-6)
    p = softmax(array(logits()))
    assert float(losses.instance_entropy(logits())) == pytest.approx(-np.mean(np.sum(p * np.log(p), 1)), rel=1e-5)


def test_class_balance_bounds() -> None:
    even = 50 * torch.eye(10)
    assert float(losses.class_balance(even)) == pytest.approx(-math.log(10), abs=1e-5)
    collapsed = 50 * torch.eye(10)[:1].expand(8, 10)
    assert float(losses.class_balance(collapsed)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("classes", [10, 100])
def test_class_balance_is_ln_10_times_the_published_base_10_entropy(classes: int) -> None:
    """DAFL's code takes base-10 logarithms: a weight of its script is to be divided by ln 10."""
    x = logits(30, classes)
    mean = softmax(array(x)).mean(0)
    assert float(losses.class_balance(x)) == pytest.approx(math.log(10) * np.sum(mean * np.log10(mean)), rel=1e-5)
    even = 50 * torch.eye(classes)
    assert float(losses.class_balance(even)) / math.log(10) == pytest.approx(-math.log10(classes), abs=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_hard_sample_against_numpy(gamma: float) -> None:
    x = logits()
    p = of_label(softmax(array(x)))
    expected = -np.mean((1 - p) ** gamma * np.log(p))
    assert float(losses.hard_sample(x, LABELS, gamma)) == pytest.approx(expected, rel=1e-5)


def test_hard_sample_without_gamma_is_the_cross_entropy() -> None:
    certain = torch.eye(10)[LABELS]
    expected = float(losses.soft_cross_entropy(logits(), certain))
    assert float(losses.hard_sample(logits(), LABELS, 0.0)) == pytest.approx(expected, rel=1e-6)


def test_hard_sample_weighs_hard_samples_more() -> None:
    easy, hard = torch.tensor([[3.0, 0, 0]]), torch.tensor([[-1.0, 0, 0]])
    label = torch.tensor([0])

    def share(gamma: float) -> tuple[float, float]:
        x = torch.cat([easy, hard]).requires_grad_(True)
        (gradient,) = torch.autograd.grad(losses.hard_sample(x, label.repeat(2), gamma), x)
        size = gradient.norm(dim=1)
        values = [float(losses.hard_sample(v, label, gamma)) for v in (easy, hard)]
        return values[1] / sum(values), float(size[1] / size.sum())

    shares = [share(gamma) for gamma in (0.0, 0.5, 1.0, 2.0)]
    assert (np.diff(shares, axis=0) > 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 2.0])
def test_hard_sample_of_a_certain_answer_has_a_finite_gradient(gamma: float) -> None:
    x = (200 * torch.eye(10)).requires_grad_(True)
    value = losses.hard_sample(x, torch.arange(10), gamma)
    (gradient,) = torch.autograd.grad(value, x)
    assert float(value.detach()) == 0.0
    assert torch.isfinite(gradient).all()
    wrong = (200 * torch.eye(10)).roll(1, 0).requires_grad_(True)
    (gradient,) = torch.autograd.grad(losses.hard_sample(wrong, torch.arange(10), gamma), wrong)
    assert torch.isfinite(gradient).all()


def test_soft_label_error_against_numpy() -> None:
    x, target = logits(), torch.linspace(0.6, 1, 6)
    expected = np.mean((of_label(softmax(array(x))) - array(target)) ** 2)
    assert float(losses.soft_label_error(x, LABELS, target)) == pytest.approx(expected, rel=1e-5)
    # p = 0.7 beside 0.2 and 0.1, or beside 0.1 and 0.2: the other classes are free.
    for rest in ([0.2, 0.1], [0.1, 0.2]):
        row = torch.tensor([[0.7, *rest]]).log()
        found = losses.soft_label_error(row, torch.tensor([0]), torch.tensor([0.9]))
        assert float(found) == pytest.approx(0.04, abs=1e-6)


def test_descending_each_term_moves_what_it_names() -> None:
    x, target = logits(seed=1), logits(seed=2).softmax(1)

    def sureness(v: Tensor) -> float:
        return float(v.softmax(1).max(1).values.mean())

    def spread(v: Tensor) -> float:
        return float(v.softmax(1).mean(0).std())

    def label(v: Tensor) -> Tensor:
        return v.softmax(1)[torch.arange(6), LABELS]

    assert sureness(descend(losses.instance_entropy, x)) > sureness(x)
    assert sureness(descend(losses.pseudo_label, x)) > sureness(x)
    assert spread(descend(losses.class_balance, x)) < spread(x)
    moved = descend(lambda v: losses.soft_cross_entropy(v, target), x)
    assert (moved.softmax(1) - target).abs().sum() < (x.softmax(1) - target).abs().sum()
    assert (label(descend(lambda v: losses.hard_sample(v, LABELS, 2.0), x)) > label(x)).all()
    unsure = logits(seed=1, scale=1)
    wanted = torch.tensor([0.9, 0.01, 0.9, 0.01, 0.5, 0.5])
    moved = descend(lambda v: losses.soft_label_error(v, LABELS, wanted), unsure)
    assert ((label(moved) - wanted).abs() < (label(unsure) - wanted).abs()).all()
