"""What holds for every loss term: its gradient, its number format, zero inputs, and that it is documented."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dfqkit import losses
from tests._arrays import draw

NOT_LOSSES = {"fsp_matrix", "attention_map"}


@dataclass(frozen=True)
class Term:
    """A term as a function of ``x``, the side under test, and ``y``, the side held fixed; both of ``shape``."""

    value: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, ...] = (3, 4)


def labels(x: Tensor) -> Tensor:
    return torch.arange(len(x)) % x.shape[1]


def statistics(term: Callable[..., Tensor]) -> Term:
    return Term(lambda x, y: term(x[0], x[1].square(), y[0], y[1].square()), (2, 5))


MAPS = (2, 3, 4, 4)
IMAGES = (2, 3, 5, 4)
TERMS: dict[str, Term] = {
    "kd_kl": Term(lambda x, y: losses.kd_kl(x, y, 2.0)),
    "kd_kl of the teacher": Term(lambda x, y: losses.kd_kl(y, x, 2.0)),
    "logit_l1": Term(losses.logit_l1),
    "logit_mse": Term(losses.logit_mse),
    "js_divergence": Term(lambda x, y: losses.js_divergence(x, y, 2.0)),
    "js_divergence of the teacher": Term(lambda x, y: losses.js_divergence(y, x, 2.0)),
    "competition": Term(losses.competition),
    "agreeing_kl": Term(lambda x, y: losses.agreeing_kl(x, x + 0.1 * y)),
    "soft_cross_entropy": Term(lambda x, y: losses.soft_cross_entropy(x, y.softmax(1), 2.0)),
    "soft_cross_entropy of the target": Term(lambda x, y: losses.soft_cross_entropy(y, x.softmax(1))),
    "pseudo_label": Term(lambda x, y: losses.pseudo_label(x)),
    "instance_entropy": Term(lambda x, y: losses.instance_entropy(x)),
    "class_balance": Term(lambda x, y: losses.class_balance(x)),
    "hard_sample": Term(lambda x, y: losses.hard_sample(x, labels(x), 2.0)),
    "hard_sample below 1": Term(lambda x, y: losses.hard_sample(x, labels(x), 0.5)),
    "soft_label_error": Term(lambda x, y: losses.soft_label_error(x, labels(x), y[:, 0].sigmoid())),
    "bn_kl": statistics(losses.bn_kl),
    "bn_l2": statistics(losses.bn_l2),
    "bn_mse": statistics(losses.bn_mse),
    "bn_normals": statistics(losses.bn_normals),
    "bn_std": statistics(losses.bn_std),
    "tv_l1": Term(lambda x, y: losses.tv_l1(x), IMAGES),
    "tv_l2": Term(lambda x, y: losses.tv_l2(x), IMAGES),
    "l2_batch": Term(lambda x, y: losses.l2_batch(x), IMAGES),
    "l2_image": Term(lambda x, y: losses.l2_image(x), IMAGES),
    "activation_l1": Term(lambda x, y: losses.activation_l1(x)),
    "relative_error": Term(losses.relative_error),
    "hint": Term(losses.hint),
    "fsp": Term(lambda x, y: losses.fsp((x[:, :2], x[..., :2, :]), (y[:, :2], y)), MAPS),
    "attention": Term(losses.attention, MAPS),
    "attention to a smaller teacher": Term(lambda x, y: losses.attention(x, y[..., :3, :2]), MAPS),
    "info_nce": Term(lambda x, y: losses.info_nce(x, y, 0.5)),
    "info_nce with a cache": Term(lambda x, y: losses.info_nce(x[:2], y[:2], 0.5, x[2:], y[2:]), (5, 4)),
    "cosine_margin": Term(lambda x, y: losses.cosine_margin(x, y[0], 0.9, 1.1), (5, 4)),
}


#: Terms with tests of their own beside this module: of objects, and of tokens.
ELSEWHERE = {"object_confidence", "object_balance", "objects", "size_spread", "similarity_entropy"}


def test_every_public_term_is_named_and_tested_here() -> None:
    functions = {name for name, value in vars(losses).items() if inspect.isfunction(value) and name[0] != "_"}
    assert functions == set(losses.__all__)
    assert {name.split(" ")[0] for name in TERMS} == functions - NOT_LOSSES - ELSEWHERE


@pytest.mark.parametrize("name", losses.__all__)
def test_every_term_says_what_better_means(name: str) -> None:
    text = inspect.getdoc(getattr(losses, name)) or ""
    assert ("Not a loss" if name in NOT_LOSSES else "Lower is better") in text
    assert "Args:" in text


@pytest.mark.parametrize("name", TERMS)
def test_gradients(name: str) -> None:
    term = TERMS[name]
    x = draw(*term.shape, seed=5, dtype=torch.float64).requires_grad_(True)
    y = draw(*term.shape, seed=6, dtype=torch.float64)
    assert float(torch.autograd.grad(term.value(x, y), x)[0].abs().sum()) > 1e-4, "nothing to check"
    assert torch.autograd.gradcheck(lambda v: term.value(v, y), (x,))


@pytest.mark.parametrize("name", TERMS)
def test_values_are_scalars_and_half_precision_is_computed_in_float32(name: str) -> None:
    term = TERMS[name]
    x, y = draw(*term.shape, seed=5).bfloat16(), draw(*term.shape, seed=6).bfloat16()
    for half in (torch.bfloat16, torch.float16):
        found = term.value(x.to(half), y.to(half))
        assert found.dtype == torch.float32
        assert found.shape == ()
    # The table computes before these terms do.
    if name not in ("agreeing_kl", "bn_kl", "bn_l2", "bn_mse", "bn_normals", "bn_std"):
        assert float(term.value(x, y)) == pytest.approx(float(term.value(x.float(), y.float())), abs=0.02)
    assert term.value(x.double(), y.double()).dtype == torch.float64


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("other", ["zero", "drawn"])
def test_zero_inputs_have_finite_values_and_gradients(name: str, other: str) -> None:
    term = TERMS[name]
    x = torch.zeros(term.shape, requires_grad=True)
    y = torch.zeros(term.shape) if other == "zero" else draw(*term.shape, seed=6)
    value = term.value(x, y)
    (gradient,) = torch.autograd.grad(value, x)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", TERMS)
def test_equal_sides_have_finite_gradients(name: str) -> None:
    """Where a norm of a difference vanishes its slope is 0 / 0 unless somebody minds."""
    term = TERMS[name]
    x = draw(*term.shape, seed=5).requires_grad_(True)
    (gradient,) = torch.autograd.grad(term.value(x, x.detach().clone()), x)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", TERMS)
def test_the_arguments_are_left_alone(name: str) -> None:
    term = TERMS[name]
    x, y = draw(*term.shape, seed=5), draw(*term.shape, seed=6)
    before = x.clone(), y.clone()
    term.value(x, y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
