"""DeepInversion and its adaptive form: the loss re-derived, the schedules, and the game."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from dfqkit.config.synthesis import Demand
from dfqkit.losses import js_divergence
from dfqkit.seeds import derive
from dfqkit.synthesis.methods.deepinversion import DeepInversionConfig, DeepInversionWeights
from dfqkit.synthesis.methods.deepinversion.method import DeepInversion
from dfqkit.synthesis.methods.deepinversion_adaptive import AdaptiveDeepInversionConfig, AdaptiveDeepInversionWeights
from dfqkit.synthesis.methods.deepinversion_adaptive.method import AdaptiveDeepInversion, author_competition
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import RecipeError
from dfqkit_export.images.spec import ImageSpec
from tests._toys import IMAGE, images, toy

Array = NDArray[np.float64]


def make(teacher: Teacher, config: DeepInversionConfig, seed: int = 0) -> DeepInversion:
    return DeepInversion(config, teacher, derive(seed, "di"), Demand(training=config.batch))


def norm_inputs(teacher: Teacher, x: Tensor) -> tuple[list[tuple[Array, nn.BatchNorm2d]], Array]:
    """Every BatchNorm's input, by plain hooks in float64, and the logits."""
    model = Teacher.from_module(teacher.model, IMAGE).model.double()
    found: list[tuple[Array, nn.BatchNorm2d]] = []
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda m, inputs, _: found.append((inputs[0].detach().numpy(), m)))
    with torch.no_grad():
        logits = model(x.double()).numpy()
    return found, logits


def cross_entropy(logits: Array, labels: Tensor) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-log_p[np.arange(len(logits)), labels.numpy()].mean())


@pytest.mark.parametrize(("first_bn", "l2_over"), [(1.0, "batch"), (10.0, "image")])
def test_the_loss_is_the_papers(teacher: Teacher, first_bn: float, l2_over: str) -> None:
    weights = {"ce": 1.0, "bn": 10.0, "tv_l2": 2.5e-5, "tv_l1": 0.3, "l2": 3e-4}
    config = DeepInversionConfig.model_validate(
        {"batch": 6, "jitter": 0, "first_bn": first_bn, "l2_over": l2_over, "weights": weights}
    )
    made = make(teacher, config)
    image = images(6)
    made._start = lambda: image.clone()  # type: ignore[method-assign]
    found = made.synthesize()

    layers, logits = norm_inputs(teacher, image)
    bn = 0.0
    for index, (value, layer) in enumerate(layers):
        mean, variance = value.mean((0, 2, 3)), value.var((0, 2, 3))
        term = np.linalg.norm(mean - layer.running_mean.numpy()) + np.linalg.norm(variance - layer.running_var.numpy())
        bn += term * (first_bn if index == 0 else 1)
    x = image.double().numpy()
    steps = [x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :],
             x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]]  # fmt: skip
    wanted = {
        "ce": cross_entropy(logits, made.labels),
        "bn": bn,
        "tv_l2": sum(np.linalg.norm(step) for step in steps),
        "tv_l1": sum(np.abs(step).mean() for step in steps),
        "l2": np.linalg.norm(x) if l2_over == "batch" else np.linalg.norm(x.reshape(6, -1), axis=1).mean(),
    }
    assert found == pytest.approx(wanted, rel=1e-4)
    assert made.best_loss == pytest.approx(sum(weights[name] * value for name, value in wanted.items()), rel=1e-4)


def test_terms_of_weight_zero_are_left_out(teacher: Teacher) -> None:
    assert set(make(teacher, DeepInversionConfig(batch=4)).synthesize()) == {"ce", "bn", "tv_l2"}


def test_the_cifar_schedule_is_the_readmes() -> None:
    config = DeepInversionConfig()
    assert (config.batch, config.steps, config.lr, config.decay) == (256, 2000, 0.05, "constant")
    assert (config.jitter, config.flip, config.first_bn) == (2, False, 1.0)
    assert config.weights.model_dump() == {"ce": 1.0, "bn": 10.0, "tv_l2": 2.5e-5, "tv_l1": 0.0, "l2": 0.0}


def test_an_imagenet_schedule_fills_what_is_not_given() -> None:
    config = DeepInversionConfig.model_validate(
        {"schedule": "imagenet0", "lr": 0.2, "weights": {"bn": 0.05}, "jitter": 8}
    )
    assert (config.batch, config.steps, config.decay, config.warmup) == (84, 3000, "cosine", 100)
    assert (config.lr, config.jitter, config.flip, config.first_bn, config.l2_over) == (0.2, 8, True, 10.0, "image")
    assert config.weights.model_dump() == {"ce": 1.0, "bn": 0.05, "tv_l2": 1e-4, "tv_l1": 0.0, "l2": 1e-5}
    assert DeepInversionConfig.model_validate_json(config.model_dump_json()) == config
    assert not DeepInversionConfig.model_validate({"schedule": "imagenet2"}).clamp
    with pytest.raises(ValidationError, match="imagenet0"):
        DeepInversionConfig.model_validate({"schedule": "imagenet3"})


@pytest.mark.parametrize(("steps", "split"), [(3000, 2000), (30, 20), (1, 0)])
def test_stages_scale_with_the_budget(teacher: Teacher, steps: int, split: int) -> None:
    config = DeepInversionConfig.model_validate({"schedule": "imagenet0", "steps": steps})
    stages = list(make(teacher, config)._schedule(steps))
    assert [(s.start, s.stop, s.shrink, s.jitter) for s in stages] == [
        (0, split, 2, 15), (split, steps, 1, 30)
    ][split == 0 :]  # fmt: skip
    assert {s.betas for s in stages} == {(0.5, 0.9)}
    long = DeepInversionConfig.model_validate({"schedule": "imagenet2", "steps": steps})
    (only,) = make(teacher, long)._schedule(steps)
    assert (only.betas, only.clamp, only.shrink) == ((0.9, 0.999), False, 1)


def test_a_low_resolution_stage_shows_half_the_size(teacher: Teacher) -> None:
    config = DeepInversionConfig.model_validate({"schedule": "imagenet0", "steps": 3, "batch": 4})
    made, sizes = make(teacher, config), []
    handle = teacher.model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
    for _ in range(3):
        made.synthesize()
    handle.remove()
    assert sizes == [8, 8, 16]
    assert made.sample(0).shape == (0, *IMAGE.shape)
    assert made.training_batch(4).shape == (4, *IMAGE.shape)


def test_a_teacher_that_takes_one_size_only_is_told_so() -> None:
    image = ImageSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.5,), classes=3)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(128, 3)).eval()
    fixed = Teacher.from_module(model, image)
    with pytest.raises(RecipeError, match=r"4x4 pixels first.*half_size to 0"):
        make(fixed, DeepInversionConfig.model_validate({"schedule": "imagenet0"}))
    assert make(fixed, DeepInversionConfig(batch=4, steps=1)).synthesize()


def test_optimising_reaches_labels_and_statistics(teacher: Teacher) -> None:
    made = make(teacher, DeepInversionConfig(batch=32, steps=60, lr=0.1, weights=DeepInversionWeights(bn=0.1)))
    terms = [made.synthesize() for _ in range(60)]
    assert terms[-1]["bn"] < 0.7 * terms[0]["bn"]
    assert terms[-1]["ce"] < 0.5 * terms[0]["ce"]
    assert set(torch.bincount(made.labels, minlength=5).tolist()) == {6, 7}


ADAPTIVE = AdaptiveDeepInversionConfig(batch=16, steps=25, lr=0.1)


def adaptive(teacher: Teacher, config: AdaptiveDeepInversionConfig = ADAPTIVE, seed: int = 0) -> AdaptiveDeepInversion:
    return AdaptiveDeepInversion(config, teacher, derive(seed, "adi"), Demand(training=16, fresh=16))


@pytest.fixture(scope="module")
def opponents() -> list[nn.Module]:
    """Copies of the teacher, each a little off, as quantization would leave them."""
    made = []
    for seed in (1, 2):
        model, rng = toy("residual"), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * parameter.std() * torch.randn(parameter.shape, generator=rng)
        made.append(model.requires_grad_(False))
    return made


def test_competition_pushes_the_divergence_up(teacher: Teacher, opponents: list[nn.Module]) -> None:
    only = AdaptiveDeepInversionWeights(competition=1.0, ce=0.0, bn=0.0, tv_l2=0.0)
    made = adaptive(teacher, ADAPTIVE.model_copy(update={"weights": only}))
    terms = [made.synthesize(opponents)["competition"] for _ in range(24)]
    assert 1 - terms[-1] > 1.4 * (1 - terms[0])
    x = made.best
    divergence = sum(float(js_divergence(s(x), teacher.model(x), 3.0)) for s in opponents) / 2
    assert divergence > 1.4 * (1 - terms[0])


def test_competition_is_the_mean_over_students(teacher: Teacher, opponents: list[nn.Module]) -> None:
    made = adaptive(teacher, ADAPTIVE.model_copy(update={"jitter": 0}))
    start = images(16)
    made._start = lambda: start.clone()  # type: ignore[method-assign]
    found = made.synthesize(opponents)["competition"]
    t, *others = (torch.softmax(model(start).detach().double() / 3, 1) for model in (teacher.model, *opponents))
    wanted = []
    for s in others:
        m = (s + t) / 2
        js = 0.5 * (s * (s / m).log()).sum(1).mean() + 0.5 * (t * (t / m).log()).sum(1).mean()
        wanted.append(1 - float(js))
    assert found == pytest.approx(sum(wanted) / 2, rel=1e-5)
    assert set(made.synthesize()) == {"ce", "bn", "tv_l2"}, "without students there is nobody to play against"


def test_a_round_of_the_game_is_a_whole_batch(teacher: Teacher, opponents: list[nn.Module]) -> None:
    made = adaptive(teacher, ADAPTIVE.model_copy(update={"steps": 3, "game_steps": 5}))
    for _ in range(made.warmup_rounds):
        made.synthesize(opponents)
    before, kept = made.cost, len(made.training)
    made.synthesize(opponents)
    assert made.cost - before == 5 * 16
    assert len(made.training) == kept + 16
    assert made.available == 16


def test_the_authors_form_is_clamped_and_reversed() -> None:
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(7, 10)) * 6, rng.normal(size=(7, 10)) * 6

    def softmax(a: Array) -> Array:
        e = np.exp(a / 3 - (a / 3).max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    p, q = softmax(s), softmax(t)
    m = ((p + q) / 2).clip(0.01, 0.99)
    p, q = p.clip(0.01, 0.99), q.clip(0.01, 0.99)
    wanted = 1 - min(max(0.5 * ((m * np.log(m / p)).sum(1).mean() + (m * np.log(m / q)).sum(1).mean()), 0), 1)
    found = author_competition(torch.tensor(s), torch.tensor(t))
    assert float(found) == pytest.approx(wanted, rel=1e-9)
    assert float(author_competition(torch.tensor(s), torch.tensor(s))) == pytest.approx(1)


def test_the_adaptive_configuration(teacher: Teacher, opponents: list[nn.Module]) -> None:
    assert ADAPTIVE.weights.competition == 10.0
    large = AdaptiveDeepInversionConfig.model_validate({"schedule": "imagenet1", "weights": {"l2": 0.0}})
    assert (large.weights.competition, large.weights.bn, large.weights.l2) == (0.2, 0.01, 0.0)
    given = AdaptiveDeepInversionConfig.model_validate({"schedule": "imagenet1", "weights": {"competition": 1.0}})
    assert given.weights.competition == 1.0
    assert AdaptiveDeepInversionConfig.model_validate_json(given.model_dump_json()) == given
    assert "student" in ADAPTIVE.needed
    author = adaptive(teacher, ADAPTIVE.model_copy(update={"form": "author"})).synthesize(opponents)["competition"]
    assert author != adaptive(teacher).synthesize(opponents)["competition"]


@pytest.mark.parametrize("stop", [2, 5])
def test_resuming_is_bitwise_the_same(teacher: Teacher, opponents: list[nn.Module], stop: int) -> None:
    config = ADAPTIVE.model_copy(update={"steps": 4})
    straight, first, resumed = (adaptive(teacher, config, seed) for seed in (0, 0, 5))
    terms = [straight.synthesize(opponents) for _ in range(9)]
    before = [first.synthesize(opponents) for _ in range(stop)]
    resumed.load_state_dict(first.state_dict())
    assert before + [resumed.synthesize(opponents) for _ in range(9 - stop)] == terms
    wanted = straight.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.state_dict().items())
