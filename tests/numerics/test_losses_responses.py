"""Terms between logits against float64 NumPy, their limits, and the forms other codes use."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqkit import losses
from tests._arrays import array, descend, logits, softmax


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.sum(p * (np.log(p) - np.log(q)), 1)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kd_kl_against_numpy(temperature: float) -> None:
    student, teacher = logits(seed=1), logits(seed=2)
    p, q = (softmax(array(x) / temperature) for x in (teacher, student))
    expected = temperature**2 * np.mean(divergence(p, q))
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


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_divergence_averaged_over_classes_too_is_smaller_by_their_number(classes: int) -> None:
    """The default reduction of PyTorch, which GDFQ, Qimera and ZSKT keep: a weight of theirs is to be divided by K."""
    student, teacher = logits(k=classes, seed=1), logits(k=classes, seed=2)
    p, q = softmax(array(teacher)), softmax(array(student))
    over_elements = np.mean(p * (np.log(p) - np.log(q)))
    assert float(losses.kd_kl(student, teacher)) == pytest.approx(classes * over_elements, rel=1e-5)


def test_logit_differences_against_numpy() -> None:
    a, b = logits(seed=1), logits(seed=2)
    assert float(losses.logit_l1(a, b)) == pytest.approx(np.abs(array(a) - array(b)).mean(), rel=1e-5)
    assert float(losses.logit_mse(a, b)) == pytest.approx(((array(a) - array(b)) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_js_divergence_against_numpy(temperature: float) -> None:
    student, teacher = logits(seed=1), logits(seed=2)
    p, q = (softmax(array(x) / temperature) for x in (teacher, student))
    m = (p + q) / 2
    expected = np.mean(divergence(p, m) + divergence(q, m)) / 2
    found = float(losses.js_divergence(student, teacher, temperature))
    assert found == pytest.approx(expected, abs=1e-6)
    assert found == pytest.approx(float(losses.js_divergence(teacher, student, temperature)), abs=1e-7)
    assert float(losses.competition(student, teacher, temperature)) == pytest.approx(1 - expected, abs=1e-6)


def test_competition_is_at_temperature_3() -> None:
    student, teacher = logits(seed=1), logits(seed=2)
    assert losses.competition(student, teacher) == 1 - losses.js_divergence(student, teacher, 3.0)


def test_js_divergence_lies_between_0_and_ln_2() -> None:
    x = logits()
    assert float(losses.js_divergence(x, x)) == pytest.approx(0, abs=1e-7)
    assert float(losses.js_divergence(x + torch.arange(6.0).unsqueeze(1), x)) == pytest.approx(0, abs=1e-6)
    sure = 1e4 * torch.eye(10)
    assert float(losses.js_divergence(sure, sure.roll(1, 0))) == pytest.approx(math.log(2), abs=1e-6)
    assert float(losses.competition(sure, sure.roll(1, 0))) == pytest.approx(1 - math.log(2), abs=1e-6)
    for seed in range(20):
        found = float(losses.js_divergence(logits(seed=seed, scale=5), logits(seed=100 + seed, scale=5)))
        assert 0 < found < math.log(2)


def author_js(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The published code's form: mixture first in both divergences, all three clamped and not renormalised."""
    p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    m = (p + q) / 2
    p, q, m = (v.clamp(0.01, 0.99) for v in (p, q, m))
    return (0.5 * (m * (m / p).log()).sum(1) + 0.5 * (m * (m / q).log()).sum(1)).mean()


def test_js_divergence_is_the_authors_form_for_small_differences_only() -> None:
    teacher, direction = logits(k=4, seed=1, scale=1, dtype=torch.float64), logits(k=4, seed=2, dtype=torch.float64)
    assert (teacher / 3).softmax(1).min() > 0.05, "no clamp may act"

    def distance(step: float) -> float:
        student = teacher + step * direction
        ours, theirs = losses.js_divergence(student, teacher, 3.0), author_js(student, teacher, 3.0)
        return abs(float(theirs / ours) - 1)

    assert distance(1e-3) < 1e-4
    # Neither form changes when p and q change places, so their ratio departs from 1 with the square of the step.
    assert distance(1e-1) == pytest.approx(100 * distance(1e-2), rel=0.2)
    assert distance(3) > 0.05


def test_the_authors_clamp_silences_many_classes() -> None:
    teacher, student = logits(k=1000, seed=1, scale=1), logits(k=1000, seed=2, scale=1).requires_grad_(True)
    (theirs,) = torch.autograd.grad(author_js(student, teacher, 3.0), student)
    (ours,) = torch.autograd.grad(losses.js_divergence(student, teacher, 3.0), student)
    assert not theirs.any()
    assert (ours != 0).float().mean() > 0.99


def test_agreeing_kl_counts_only_images_both_name_alike() -> None:
    teacher = logits(8, seed=2)
    student = torch.where(torch.arange(8).unsqueeze(1) < 5, teacher + 0.3 * logits(8, seed=1).sigmoid(), -teacher)
    p, q = softmax(array(teacher)), softmax(array(student))
    agree = p.argmax(1) == q.argmax(1)
    assert 0 < agree.sum() < 8
    expected = np.sum(divergence(p, q)[agree]) / 8
    assert float(losses.agreeing_kl(student, teacher)) == pytest.approx(expected, rel=1e-4)
    x = student.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(losses.agreeing_kl(x, teacher), x)
    assert (gradient.abs().sum(1) > 0).tolist() == agree.tolist()


def test_agreeing_kl_is_zero_where_nobody_agrees_and_kd_kl_where_all_do() -> None:
    teacher = 5 * torch.eye(10)
    assert float(losses.agreeing_kl(teacher.roll(1, 0), teacher)) == 0.0
    student = teacher * torch.linspace(0.1, 2, 10).unsqueeze(1)
    assert float(losses.agreeing_kl(student, teacher)) == pytest.approx(float(losses.kd_kl(student, teacher)), rel=1e-6)


def test_descending_brings_the_answers_nearer() -> None:
    x, target = logits(seed=1), logits(seed=2)

    def distance(v: Tensor) -> float:
        return float((v.softmax(1) - target.softmax(1)).abs().sum())

    for term in (losses.kd_kl, losses.logit_l1, losses.logit_mse, losses.js_divergence):
        assert distance(descend(lambda v, term=term: term(v, target), x, 0.5)) < distance(x)
    near = target + 0.5 * x / x.abs().max()
    assert distance(descend(lambda v: losses.agreeing_kl(v, target), near, 0.5)) < distance(near)


def test_descending_the_adversaries_drives_the_answers_apart() -> None:
    target = logits(seed=2, scale=1)
    x = target + logits(seed=1, scale=0.1)

    def distance(v: Tensor) -> float:
        return float((v.softmax(1) - target.softmax(1)).abs().sum())

    assert distance(descend(lambda v: losses.competition(v, target), x, 1.0)) > distance(x)
    assert distance(descend(lambda v: -losses.agreeing_kl(v, target), x, 1.0)) > distance(x)
