"""GENIE-D: the loss written down again in float64, two schedules, swinging convolutions, and resuming at any step."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.methods.genie import GENIEConfig, GENIEWeights
from dfqkit.synthesis.methods.genie.method import GENIE
from dfqkit.teacher.load import Teacher
from tests._hooks import hooks_on
from tests._toys import images, toy

SMALL = GENIEConfig(batch=8, steps=4, latent=6, width=4)
EPS = 1e-6  # under both roots


def make(teacher: Teacher, seed: int = 0, demand: Demand | None = None, **changes: object) -> GENIE:
    return GENIE(
        SMALL.model_copy(update=changes), teacher, derive(seed, "genie"), demand or Demand(training=8, fresh=8)
    )


def published(synthesizer: GENIE, z: Tensor) -> dict[str, Tensor]:
    entered: list[tuple[nn.BatchNorm2d, Tensor]] = []
    model = copy.deepcopy(synthesizer.teacher.model).double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda module, inputs: entered.append((module, inputs[0])))
    x = copy.deepcopy(synthesizer.member).double()(z)
    model(x)

    def distance(y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        means = ((y.mean((0, 2, 3)) - mean) ** 2).mean()
        deviations = (y.var((0, 2, 3), correction=0) + EPS).sqrt() - (variance + EPS).sqrt()
        return means + (deviations**2).mean()

    return {
        "bn": sum(distance(y, layer.running_mean, layer.running_var) for layer, y in entered),
        "image": distance(x, torch.zeros(3), torch.ones(3)),
    }


def test_loss_and_gradient_are_the_published_ones(teacher: Teacher) -> None:
    weights = GENIEWeights(bn=0.7, image=1.9)
    synthesizer = make(teacher, swing=False, weights=weights)
    begin, seen = synthesizer._begin, {}

    def begin_and_look() -> None:
        begin()
        z = synthesizer.z.detach().double().requires_grad_()
        seen.update(published(synthesizer, z))
        seen["z"] = torch.autograd.grad(0.7 * seen["bn"] + 1.9 * seen["image"], z)[0]

    synthesizer._begin = begin_and_look  # type: ignore[method-assign]
    terms = synthesizer.synthesize()
    assert set(terms) == {"bn", "image"}
    for name, value in terms.items():
        assert value == pytest.approx(float(seen[name].detach()), rel=1e-4), name
    # After one step Adam's first moment is (1 - 0.9) times the gradient.
    gradient = 10 * synthesizer.latent_optimizer.state[synthesizer.z]["exp_avg"].double()
    assert torch.allclose(gradient, seen["z"], rtol=1e-2, atol=1e-4 * float(seen["z"].abs().max()))


def test_strided_convolutions_swing_in_synthesis_only(teacher: Teacher) -> None:
    x = images(4)
    before = teacher.logits(x)
    swinging, still = make(teacher), make(teacher, swing=False)
    assert list(swinging.swing.layers) == ["b1.0", "down.0"]
    assert not still.swing.layers
    assert swinging.synthesize()["bn"] != still.synthesize()["bn"]
    assert torch.equal(teacher.logits(x), before)
    assert not hooks_on(teacher.model)


def test_the_generators_rate_decays(teacher: Teacher) -> None:
    synthesizer = make(teacher, steps=8, decay_every=3)
    rates = []
    for _ in range(8):
        synthesizer.synthesize()
        rates.append(synthesizer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01] * 3 + [0.0095] * 3 + [0.009025] * 2)


def test_the_latents_rate_falls_on_a_plateau_to_its_floor(teacher: Teacher) -> None:
    """Every step but a batch's first counts as one without progress."""
    synthesizer = make(teacher, steps=10, patience=1, lr_latent_floor=0.004, lr_latent=0.1, swing=False)
    rates = []
    for _ in range(10):
        synthesizer.synthesize()
        synthesizer.plateau.best = 0.0
        rates.append(synthesizer.latent_optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01] + [0.004] * 6)
    for _ in range(10):
        synthesizer.synthesize()
    assert synthesizer.finished == 2
    synthesizer.synthesize()
    assert synthesizer.latent_optimizer.param_groups[0]["lr"] == 0.1, "the next batch starts anew"


def test_schedules_scale_with_the_steps(teacher: Teacher) -> None:
    full = make(teacher, steps=4000)
    assert (full.patience, full.decay_every) == (100, 100)
    short = make(teacher, steps=80, decay_every=7)
    assert (short.patience, short.decay_every) == (2, 7)
    assert make(teacher, steps=3).decay_every == 1


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 6])
def test_resuming_is_bitwise_the_same(teacher: Teacher, stop: int) -> None:
    changes = {"patience": 1, "lr_generator": 3.0, "decay_every": 1}
    straight = make(teacher, **changes)
    terms, rates = [], []
    for _ in range(8):
        terms.append(straight.synthesize())
        rates.append(straight.latent_optimizer.param_groups[0]["lr"])
    assert len(set(rates)) > 1, "the test needs a plateau"
    first = make(teacher, **changes)
    before = [first.synthesize() for _ in range(stop)]
    state = first.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    resumed = make(teacher, seed=99, **changes)
    resumed.load_state_dict(state)
    if stop % 4 > 0:
        plateau, expected = resumed.plateau, first.plateau
        assert (plateau.best, plateau.num_bad_epochs) == (expected.best, expected.num_bad_epochs)
    after = [resumed.synthesize() for _ in range(stop, 8)]
    assert before + after == terms
    ours, theirs = resumed.state_dict(), straight.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert all(torch.equal(state[name], kept[name]) for name in kept), "resuming changed the state it started from"


def test_every_batch_has_a_generator_of_its_own(teacher: Teacher) -> None:
    synthesizer = make(teacher)
    weights = []
    for _ in range(2):
        synthesizer._begin()
        weights.append(synthesizer.member.project.weight.clone())
    assert not torch.equal(*weights)


def test_students_change_nothing(teacher: Teacher) -> None:
    synthesizer = make(teacher)
    for _ in range(synthesizer.warmup_rounds):
        synthesizer.synthesize()
    assert synthesizer.cost == 2 * 4 * 8
    assert synthesizer.synthesize([toy("residual", 1)]) == {}
    assert synthesizer.cost == 2 * 4 * 8


def test_its_loss_falls(teacher: Teacher) -> None:
    synthesizer = make(teacher, batch=16, steps=40, width=8, latent=16)
    terms = [synthesizer.synthesize() for _ in range(40)]
    assert terms[-1]["bn"] < 0.3 * terms[0]["bn"]


def test_config_is_closed_and_survives_json() -> None:
    with pytest.raises(ValidationError, match="swings"):
        GENIEConfig.model_validate({"swings": True})
    assert GENIEConfig.model_validate_json(SMALL.model_dump_json()) == SMALL
    assert SMALL.at_cost(16 * 30 + 3, Demand(training=8, fresh=8)).model_dump()["steps"] == 30
