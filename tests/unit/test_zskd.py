"""ZSKD: concentrations and targets as the paper has them, drawn from the method's own generator alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.methods.zskd import ZSKDConfig
from dfqkit.synthesis.methods.zskd.method import ZSKD, dirichlet, log_gamma_variables, scaled_similarity
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import TeacherError
from tests._messages import raises_naming
from tests._toys import IMAGE, conv_bn

SMALL = ZSKDConfig(batch=10, steps=4)
PIXELS = math.prod(IMAGE.shape)


def make(teacher: Teacher, seed: int = 0, **changes: object) -> ZSKD:
    config = ZSKDConfig.model_validate(SMALL.model_dump() | changes)
    return ZSKD(config, teacher, derive(seed, "zskd"), Demand(training=20, fresh=0))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rows_are_cosines_scaled_to_the_unit_interval_row_by_row(teacher: Teacher) -> None:
    weight = teacher.model.get_submodule("head.fc").weight.double().numpy()
    rows = []
    for i in range(len(weight)):
        cosines = [w @ weight[i] / np.linalg.norm(w) / np.linalg.norm(weight[i]) for w in weight]
        rows.append([(c - min(cosines)) / (max(cosines) - min(cosines)) for c in cosines])
    found = make(teacher).similarity.numpy()
    np.testing.assert_allclose(found, rows, atol=1e-12)
    assert found.min() == 0
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-12)


def test_classes_that_cannot_be_told_apart_are_equally_likely() -> None:
    assert torch.equal(scaled_similarity(torch.ones(3, 4)), torch.ones(3, 3, dtype=torch.float64))


def test_half_the_targets_have_each_beta_and_the_floor_stays(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Tensor] = []

    def note(concentration: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        asked.append(concentration)
        return dirichlet(concentration, generator)

    monkeypatch.setattr("dfqkit.synthesis.methods.zskd.method.dirichlet", note)
    zskd = make(teacher)
    zskd.synthesize()
    (concentration,) = asked
    # The largest is the class's own, beta * 1 + floor; the smallest the floor alone, whatever beta is.
    expected = torch.tensor([1.0, 0.1] * 5, dtype=torch.float64) + 1e-4
    torch.testing.assert_close(concentration.amax(1), expected)
    torch.testing.assert_close(concentration.amin(1), torch.full((10,), 1e-4, dtype=torch.float64))
    own = concentration.argmax(1)
    assert sorted(own.tolist()) == sorted([*range(5)] * 2)
    for row, label, beta in zip(concentration, own, [1.0, 0.1] * 5, strict=True):
        torch.testing.assert_close(row, beta * zskd.similarity[label] + 1e-4)


@pytest.mark.parametrize("shape", [0.3, 1.0, 4.5, 60.0])
def test_gamma_variables_have_the_moments_of_theirs(shape: float) -> None:
    n = 200_000
    logs = log_gamma_variables(torch.full((n,), shape), rng())
    assert logs.dtype == torch.float64
    x = logs.exp()
    third = 2 * shape
    assert float(x.mean()) == pytest.approx(shape, abs=5 * math.sqrt(shape / n))
    assert float(x.var()) == pytest.approx(shape, rel=0.03)
    assert float(((x - shape) ** 3).mean()) == pytest.approx(third, rel=0.15)
    # E[ln x] = digamma(a) tells whether the small values are right, too.
    digamma = float(torch.special.digamma(torch.tensor(shape, dtype=torch.float64)))
    assert float(logs.mean()) == pytest.approx(digamma, abs=5 * float(logs.std()) / math.sqrt(n))


def test_tiny_shapes_stay_finite() -> None:
    # ln Gamma(a) for a near 0 is about -E/a with E exponential.
    logs = log_gamma_variables(torch.full((50_000,), 1e-4), rng())
    assert bool(torch.isfinite(logs).all())
    assert float(logs.mean()) == pytest.approx(-1e4, rel=0.03)


@pytest.mark.parametrize("shape", [0.0, -0.5, -3.0, math.nan, math.inf])
def test_shapes_that_have_no_gamma_variable_are_refused(shape: float) -> None:
    with raises_naming(ValueError, "shape", "above 0"):
        log_gamma_variables(torch.tensor([1.0, shape]), rng())


@pytest.mark.parametrize("beta", [0.0, -1.0])
def test_a_factor_of_the_concentration_is_above_0(beta: float) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        ZSKDConfig.model_validate({"betas": [1.0, beta]})


def test_dirichlet_has_the_moments_of_its_own() -> None:
    alpha = torch.tensor([1.0001, 0.4, 0.05, 2.0], dtype=torch.float64)
    y = dirichlet(alpha.expand(100_000, 4), rng()).numpy()
    a, total = alpha.numpy(), float(alpha.sum())
    mean = a / total
    covariance = (np.diag(mean) - np.outer(mean, mean)) / (total + 1)
    np.testing.assert_allclose(y.sum(1), 1, atol=1e-12)
    assert y.min() >= 0
    np.testing.assert_allclose(y.mean(0), mean, atol=4e-3)
    np.testing.assert_allclose(np.cov(y.T), covariance, atol=2e-3)


def test_the_smallest_concentrations_give_distributions() -> None:
    y = dirichlet(torch.full((500, 10), 1e-4), rng())
    assert bool(torch.isfinite(y).all())
    torch.testing.assert_close(y.sum(1), torch.ones(500, dtype=torch.float64))
    assert float(y.max(1).values.median()) > 0.999


def test_draws_repeat_and_leave_the_global_generator_alone(teacher: Teacher) -> None:
    before = torch.get_rng_state()
    alpha = torch.full((4, 5), 0.3)
    assert torch.equal(dirichlet(alpha, rng(3)), dirichlet(alpha, rng(3)))
    assert not torch.equal(dirichlet(alpha, rng(3)), dirichlet(alpha, rng(4)))
    make(teacher).synthesize()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loss_is_the_cross_entropy_at_temperature_20_of_uniform_noise(teacher: Teacher) -> None:
    zskd = make(teacher)
    zskd._begin()
    plain = IMAGE.denormalize(zskd.x.detach())
    assert 0 <= float(plain.min()) < 0.01
    assert 0.99 < float(plain.max()) <= 1 + 1e-6
    assert abs(float(plain.mean()) - 0.5) < 5 / math.sqrt(12 * 10 * PIXELS)
    logits, y = teacher.logits(zskd.x.detach()).double().numpy() / 20, zskd.target.double().numpy()
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    found = zskd._step([], 0, 4)
    assert found == pytest.approx({"soft_label": -(y * log_softmax).sum(1).mean()}, rel=1e-5)


def test_rescaling_makes_the_batch_fill_the_range_after_every_step(teacher: Teacher) -> None:
    scaled, clamped = make(teacher, lr=0.5), make(teacher, rescale=False, lr=0.5)
    for zskd in (scaled, clamped):
        zskd.synthesize()
    plain = IMAGE.denormalize(scaled.x.detach())
    assert (float(plain.min()), float(plain.max())) == pytest.approx((0, 1), abs=1e-6)
    # Nothing was cut off: only the two extremes touch the bounds, where clamping leaves many.
    assert int((plain < 1e-6).sum()) == 1
    assert int((IMAGE.denormalize(clamped.x.detach()) < 1e-6).sum()) > 100


def test_images_come_to_the_targets(teacher: Teacher) -> None:
    zskd = make(teacher, steps=60, lr=0.1)
    terms = [zskd.synthesize()["soft_label"] for _ in range(60)]
    assert terms[-1] < terms[0] - 0.05


def test_continuing_within_a_batch_keeps_its_targets(teacher: Teacher) -> None:
    straight = make(teacher)
    terms = [straight.synthesize() for _ in range(8)]
    first = make(teacher)
    found = [first.synthesize() for _ in range(6)]
    second = make(teacher, seed=9)
    second.load_state_dict(first.state_dict())
    found += [second.synthesize() for _ in range(2)]
    assert found == terms
    assert torch.equal(second.training, straight.training)


def test_a_teacher_without_a_linear_head_is_refused() -> None:
    model = nn.Sequential(conv_bn(3, IMAGE.classes), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(TeacherError, match="no linear head"):
        make(Teacher.from_module(model, IMAGE))
