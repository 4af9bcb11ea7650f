"""ZSKT: it raises what teacher and student disagree by, and nothing else; never without a student."""

from __future__ import annotations

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
from dfqkit.synthesis.methods.zskt import ZSKTConfig
from dfqkit.synthesis.methods.zskt.method import ZSKT
from dfqkit.teacher.load import Teacher, load_teacher
from dfqkit_export.errors import RecipeError
from dfqkit_export.images.spec import ImageSpec
from tests._toys import IMAGE, Head, images, randomise, student

SMALL = ZSKTConfig(batch=16, latent=8, width=4, warmup=3, memory=24)
DIGITS = Path(__file__).parents[2] / "recipes" / "digits" / "teacher.safetensors"


@pytest.fixture(scope="module")
def opponent() -> nn.Module:
    return student("residual", "w4a4")


def make(teacher: Teacher, seed: int = 0, **changes: object) -> ZSKT:
    return ZSKT(SMALL.model_copy(update=changes), teacher, derive(seed, "zskt"), Demand(game_rounds=3))


def small_net(channels: int, seed: int = 3) -> nn.Module:
    """Another architecture than any teacher's here, in float."""
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Conv2d(channels, 6, 3, stride=2), nn.ReLU(), Head(6))
    return randomise(model, seed).requires_grad_(False)


def log_softmax(logits: Tensor) -> NDArray[np.float64]:
    x = logits.double().numpy()
    return x - x.max(1, keepdims=True) - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))


def test_the_term_is_minus_the_mean_divergence_of_all_students(teacher: Teacher, opponent: nn.Module) -> None:
    x = images(10)
    students = [opponent, small_net(3)]
    log_t = log_softmax(teacher.logits(x))
    with torch.no_grad():
        raw = [member(x) for member in students]
    kl = [(np.exp(log_t) * (log_t - log_softmax(logits))).sum(1).mean() for logits in raw]
    terms = make(teacher)._terms(x, students)
    assert set(terms) == {"adversarial"}
    assert float(terms["adversarial"]) == pytest.approx(-np.mean(kl), rel=1e-4)
    l1 = [np.abs(logits.double().numpy() - teacher.logits(x).double().numpy()).mean() for logits in raw]
    terms = make(teacher, adversary="l1")._terms(x, students)
    assert float(terms["adversarial"]) == pytest.approx(-np.mean(l1), rel=1e-5)


@pytest.mark.parametrize("adversary", ["kl", "l1"])
@pytest.mark.parametrize("warmup", [0, 20])
def test_the_generator_raises_the_divergence(
    teacher: Teacher, opponent: nn.Module, adversary: str, warmup: int
) -> None:
    config = SMALL.model_copy(
        update={"adversary": adversary, "warmup": warmup, "lr": 5e-3, "lr_game": 5e-3, "batch": 32}
    )
    made = ZSKT(config, teacher, derive(0), Demand(game_rounds=20))
    curve = [-made.synthesize([opponent])["adversarial"] for _ in range(20)]
    assert np.mean(curve[-4:]) > 1.2 * np.mean(curve[:4])


def test_on_digits_a_small_student_is_found_out() -> None:
    image = ImageSpec(shape=(1, 16, 16), mean=(0.3,), std=(0.32,), classes=10)
    teacher = load_teacher("dfqkit.models:digits_cnn", image, DIGITS)
    rival = nn.Sequential(nn.Flatten(), nn.Linear(256, 10)).eval().requires_grad_(False)
    for parameter in rival.parameters():
        parameter.zero_()  # it answers every class alike, so that KL is ln 10 - H(T): the most is where T is sure
    made = ZSKT(SMALL.model_copy(update={"batch": 48, "width": 8, "warmup": 20, "lr": 2e-2}), teacher, derive(0))
    curve = [-made.synthesize([rival])["adversarial"] for _ in range(20)]
    log_p = log_softmax(teacher.logits(made.sample(64)))
    assert curve[-1] == pytest.approx(np.log(10) + (np.exp(log_p) * log_p).sum(1).mean(), abs=0.25)
    assert curve[-1] > curve[0] + 0.3


def test_without_a_student_it_says_what_to_pass(teacher: Teacher) -> None:
    made = make(teacher)
    with pytest.raises(RecipeError, match=r"given no student.*synthesize\(\[student\]\).*dfq, dafl"):
        made.synthesize()
    assert (made.warmed, made.cost) == (0, 0)


def test_the_warm_up_comes_first_and_leaves_no_memory(teacher: Teacher, opponent: nn.Module) -> None:
    made = make(teacher, steps=2)
    assert made.warmup_rounds == 3
    for _ in range(3):
        made.synthesize([opponent])
    assert (made.warmed, made.played, made.cost, made.remembered) == (3, 0, 48, 0)
    made.synthesize([opponent])
    assert (made.warmed, made.played, made.cost, made.remembered) == (3, 1, 80, 24)


def test_the_learning_rate_starts_anew_in_the_game(teacher: Teacher, opponent: nn.Module) -> None:
    made = make(teacher, lr=1e-3, lr_game=4e-3)
    rates = []
    for _ in range(6):
        made.synthesize([opponent])
        rates.append(made.optimizers[0].param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-3)
    assert rates[3] == pytest.approx(4e-3)
    assert rates[0] > rates[1] > rates[2]
    assert rates[3] > rates[4] > rates[5]


@pytest.mark.parametrize("stop", [0, 2, 4])
def test_resuming_is_bitwise_the_same(teacher: Teacher, opponent: nn.Module, stop: int) -> None:
    straight, first = make(teacher), make(teacher)
    terms = [straight.synthesize([opponent]) for _ in range(5)]
    before = [first.synthesize([opponent]) for _ in range(stop)]
    resumed = make(teacher, seed=99)
    resumed.load_state_dict(first.state_dict())
    assert before + [resumed.synthesize([opponent]) for _ in range(5 - stop)] == terms
    assert torch.equal(resumed.training_batch(12), straight.training_batch(12))
    assert resumed.cost == straight.cost


def test_it_needs_nothing_of_the_teacher_but_logits(teacher: Teacher, opponent: nn.Module) -> None:
    plain = Teacher.from_module(small_net(3, seed=5), IMAGE)
    require_needs(SMALL, plain)
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    made = make(plain)
    made.synthesize([opponent])
    assert all(torch.equal(before[name], value) for name, value in plain.model.state_dict().items())
    assert all(parameter.grad is None for model in (plain.model, opponent) for parameter in model.parameters())
    assert made.sample(3).shape == (3, *IMAGE.shape)


def test_config_is_closed_and_survives_json() -> None:
    with pytest.raises(ValidationError, match="adversary"):
        ZSKTConfig.model_validate({"adversary": "js"})
    with pytest.raises(ValidationError, match="weights"):
        ZSKTConfig.model_validate({"weights": {"bn": 1}})
    assert ZSKTConfig.model_validate_json(SMALL.model_dump_json()) == SMALL
