"""DAFL: its three terms and their logarithms, the features it reads, its average, and that students change nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.build import require_needs
from dfqkit.synthesis.methods.dafl import DAFLConfig, DAFLWeights
from dfqkit.synthesis.methods.dafl.method import DAFL
from dfqkit.teacher.load import Teacher, load_teacher
from dfqkit_export.errors import RecipeError, TeacherError
from dfqkit_export.images.spec import ImageSpec
from tests._messages import raises_naming
from tests._toys import IMAGE, Head, images, randomise

SMALL = DAFLConfig(batch=16, latent=8, width=4, warmup=6, memory=24)
DIGITS = Path(__file__).parents[2] / "recipes" / "digits" / "teacher.safetensors"


class Deaf(nn.Module):
    """A student that must not be asked."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError


def make(teacher: Teacher, seed: int = 0, **changes: object) -> DAFL:
    return DAFL(SMALL.model_copy(update=changes), teacher, derive(seed, "dafl"), Demand(game_rounds=4))


def probabilities(logits: Tensor) -> NDArray[np.float64]:
    shifted = logits.double().numpy() - logits.double().numpy().max(1, keepdims=True)
    powers: NDArray[np.float64] = np.exp(shifted)
    return powers / powers.sum(1, keepdims=True)


def answers(teacher: Teacher, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and what enters the last layer."""
    seen: list[Tensor] = []
    last = [m for m in teacher.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = teacher.logits(x)
    handle.remove()
    return logits, seen[0]


def test_terms_on_fixed_images(teacher: Teacher) -> None:
    x = images(12)
    logits, features = answers(teacher, x)
    assert features.shape == (12, 12)
    p = probabilities(logits)
    terms = make(teacher)._terms(x, [])
    assert set(terms) == set(DAFLWeights.model_fields)
    assert float(terms["one_hot"]) == pytest.approx(-np.log(p.max(1)).mean(), rel=1e-5)
    assert float(terms["activation"]) == pytest.approx(-np.abs(features.double().numpy()).mean(), rel=1e-5)
    mean = p.mean(0)
    assert float(terms["class_balance"]) == pytest.approx((mean * np.log(mean)).sum(), rel=1e-5)


def test_the_default_balance_is_the_authors_5_in_base_10(teacher: Teacher) -> None:
    x = images(12)
    made = make(teacher)
    mean = probabilities(answers(teacher, x)[0]).mean(0)
    ours = made.weights["class_balance"] * float(made._terms(x, [])["class_balance"])
    assert ours == pytest.approx(5 * (mean * np.log10(mean)).sum(), rel=1e-5)
    assert made.weights["class_balance"] == pytest.approx(2.1715, abs=1e-4)


@pytest.mark.parametrize("term", list(DAFLWeights.model_fields))
def test_each_term_falls_when_it_is_alone(teacher: Teacher, term: str) -> None:
    alone = DAFLWeights.model_validate(dict.fromkeys(DAFLWeights.model_fields, 0.0) | {term: 1.0})
    made = make(teacher, batch=32, warmup=12, weights=alone)
    curve = [made.synthesize()[term] for _ in range(12)]
    assert np.mean(curve[-3:]) < np.mean(curve[:3])


def test_students_are_not_looked_at(teacher: Teacher) -> None:
    drawn = []
    for students in ([], [Deaf()]):
        made = make(teacher, memory=0, lr=1e-3, lr_game=1e-3, warmup=4)
        terms = [made.synthesize(students) for _ in range(4)]
        drawn.append((terms, made.cost, made.sample(6)))
    assert drawn[0][:2] == drawn[1][:2]
    assert torch.equal(drawn[0][2], drawn[1][2])
    assert (made.warmed, made.played) == (0, 4)


def test_rounds_beside_students_are_remembered(teacher: Teacher) -> None:
    made = make(teacher, steps=2, memory=80)
    made.synthesize()
    assert made.remembered == 0
    made.synthesize([Deaf()])
    assert (made.remembered, made.cost) == (32, 48)


@pytest.mark.parametrize("balance_average", [0.0, 0.9])
def test_resuming_is_bitwise_the_same(teacher: Teacher, balance_average: float) -> None:
    rounds: list[list[nn.Module]] = [[], [], [Deaf()], [Deaf()]]
    straight = make(teacher, balance_average=balance_average)
    terms = [straight.synthesize(students) for students in rounds]
    for stop in (0, 1, 3):
        first = make(teacher, balance_average=balance_average)
        before = [first.synthesize(students) for students in rounds[:stop]]
        resumed = make(teacher, seed=99, balance_average=balance_average)
        resumed.load_state_dict(first.state_dict())
        assert before + [resumed.synthesize(students) for students in rounds[stop:]] == terms
        assert torch.equal(resumed.mean, straight.mean)
    assert torch.equal(resumed.training_batch(12), straight.training_batch(12))


def test_the_average_of_batches(teacher: Teacher) -> None:
    made = make(teacher, balance_average=0.75)
    means = [probabilities(answers(teacher, images(8, seed))[0]).mean(0) for seed in (1, 2, 3)]
    wanted = means[0]
    for seed, mean in zip((1, 2, 3), means, strict=True):
        wanted = 0.75 * wanted + 0.25 * mean
        found = made._terms(images(8, seed), [])["class_balance"]
        assert float(found) == pytest.approx((wanted * np.log(wanted)).sum(), rel=1e-4)
        np.testing.assert_allclose(made.mean.numpy(), wanted, rtol=1e-4)
    assert not made.mean.requires_grad


def test_the_average_keeps_the_gradients_size(teacher: Teacher) -> None:
    """d/dt of sum_k q_k ln q_k, with the average's q in the logarithm and the batch's own mean in the derivative."""
    made = make(teacher, balance_average=0.75)
    past = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1])
    made.mean = past.clone()
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (found,) = torch.autograd.grad(made._averaged_balance(logits), logits)
    p = torch.softmax(logits.detach().double(), 1)
    slope = torch.log(0.75 * past.double() + 0.25 * p.mean(0)) / len(p)
    wanted = p * (slope - (p * slope).sum(1, keepdim=True))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)


def squeezed(out: int = 5) -> nn.Module:
    """Ends in a convolution with one output per class, then pools (SqueezeNet)."""
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, out, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    return randomise(model)


def test_a_last_convolutions_input_is_pooled_first() -> None:
    teacher = Teacher.from_module(squeezed(), IMAGE)
    made = make(teacher)
    _, features = answers(teacher, images(4))
    assert features.dim() == 4
    pooled = features.double().numpy().mean((2, 3))
    assert float(made._terms(images(4), [])["activation"]) == pytest.approx(-np.abs(pooled).mean(), rel=1e-5)
    made.synthesize()


class Bare(nn.Module):
    """Answers by positions, without a last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x).mean((2, 3))[:, : IMAGE.classes]


def test_a_teacher_without_features_is_refused() -> None:
    teacher = Teacher.from_module(randomise(Bare()), IMAGE)
    with pytest.raises(TeacherError, match=r"'Bare' has no features .* Use a method"):
        make(teacher)
    with raises_naming(RecipeError, "last layer"):
        require_needs(SMALL, teacher)


def test_neither_batch_norm_nor_a_student_is_needed() -> None:
    with torch.random.fork_rng(devices=[]):
        plain = randomise(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Head(6)))
    teacher = Teacher.from_module(plain, IMAGE)
    require_needs(SMALL, teacher)
    assert set(make(teacher).synthesize()) == set(DAFLWeights.model_fields)


def test_on_digits_the_warm_up_makes_the_teacher_sure_and_even() -> None:
    image = ImageSpec(shape=(1, 16, 16), mean=(0.3,), std=(0.32,), classes=10)
    teacher = load_teacher("dfqkit.models:digits_cnn", image, DIGITS)
    config = DAFLConfig(batch=48, latent=32, width=8, warmup=24, lr=3e-2)

    def drawn(weights: DAFLWeights, rounds: int) -> tuple[float, float]:
        """Cross-entropy with the teacher's own answer, and the entropy of its mean answer as a share of ln 10."""
        made = DAFL(config.model_copy(update={"weights": weights}), teacher, derive(0))
        for _ in range(rounds):
            made.synthesize()
        p = probabilities(teacher.logits(made.sample(200)))
        return float(-np.log(p.max(1)).mean()), float(-(p.mean(0) * np.log(p.mean(0))).sum() / math.log(10))

    _, uneven = drawn(DAFLWeights(), 0)
    unsure, _ = drawn(DAFLWeights(one_hot=0, activation=0), 24)
    cross_entropy, even = drawn(DAFLWeights(), 24)
    assert cross_entropy < 0.9 * unsure
    assert uneven < 0.9 < 0.96 < even


def test_config_is_closed_and_survives_json() -> None:
    with pytest.raises(ValidationError, match="balance_average"):
        DAFLConfig(balance_average=1.0)
    with pytest.raises(ValidationError, match="bn"):
        DAFLConfig.model_validate({"weights": {"bn": 1}})
    assert DAFLConfig.model_validate_json(SMALL.model_dump_json()) == SMALL
