"""Replay beside numpy: probabilities, weights, what is kept and for how long, and gradients that weigh as told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqkit.config.distill import DistillConfig
from dfqkit.seeds import derive
from dfqkit.training.replay import Replay, weighed
from dfqkit_export.errors import RecipeError
from tests._messages import raises_naming
from tests._offset import Offset
from tests._toys import images, toy_teacher
from tests.unit.test_distill import distiller, synthesizer_of


def replay(batch: int = 4, **changes: Any) -> Replay:
    config = DistillConfig.model_validate({"batch": batch, "replay": changes})
    return Replay(config, Offset(toy_teacher("option_a"), derive(0, "offset")), derive(0, "replay"))


def filled(made: Replay, count: int, classes: int = 3) -> tuple[Any, Any]:
    """Keep so many images, and return their distances and classes."""
    rng = np.random.default_rng(0)
    distances, of_class = rng.exponential(size=count).astype("float32"), rng.choice(classes, count, p=[0.7, 0.2, 0.1])
    made.batch(count, lambda n: images(n, 1))
    made.note(torch.from_numpy(distances), torch.from_numpy(of_class))
    return distances, of_class


def probabilities(distances: Any, classes: Any, difficulty: float, balance: float) -> Any:
    """Return the formula's, image by image."""
    there = set(classes.tolist())
    share = [np.mean(classes == of_class) * len(there) for of_class in classes]
    found = [
        (d + distances.mean() / 100) ** difficulty * s**-balance
        for d, s in zip(distances.astype(float), share, strict=True)
    ]
    return np.array(found) / np.sum(found)


@pytest.mark.parametrize(("difficulty", "balance"), [(0.6, 1.0), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
def test_probabilities_are_those_of_the_formula(difficulty: float, balance: float) -> None:
    made = replay(difficulty=difficulty, balance=balance, images=200)
    distances, classes = filled(made, 100)
    wanted = probabilities(distances, classes, difficulty, balance)
    found = made.probabilities().double().numpy()
    np.testing.assert_allclose(found, wanted, rtol=2e-5)
    if (difficulty, balance) == (0, 1):  # classes come evenly
        np.testing.assert_allclose([found[classes == of_class].sum() for of_class in range(3)], 1 / 3, rtol=1e-5)


def test_images_are_drawn_as_often_as_they_should_and_weigh_accordingly() -> None:
    made = replay(images=20, share=0.9, correction=0.7)
    distances, classes = filled(made, 20)
    wanted = probabilities(distances, classes, 0.6, 1.0)
    first = made.codes.clone()
    counts, old = np.zeros(20), 0
    for _ in range(400):
        before = first.clone()
        made.codes.copy_(first)
        made.seen = 20
        made.distances[:20], made.classes[:20] = torch.from_numpy(distances), torch.from_numpy(classes)
        drawn = made.batch(10, lambda n: images(n, 2))
        chosen = made.places[0].numpy()
        old += len(chosen)
        counts += np.bincount(chosen, minlength=20)
        weights = (20 * wanted[chosen]) ** -0.7
        np.testing.assert_allclose(made.weights[:9], weights / weights.mean(), rtol=1e-4)
        assert float(made.weights[9]) == 1
        assert torch.equal(made.synthesizer.coded(drawn[:9]), before[chosen])
    assert old == 3600
    spread = np.sqrt(old * wanted * (1 - wanted))
    assert (np.abs(counts - old * wanted) < 4 * spread).all()


def test_the_oldest_make_room_and_a_buffer_holds_a_batch() -> None:
    made = replay(batch=6, images=4, share=0.5)
    assert len(made.codes) == 6
    made.batch(6, lambda n: images(n, 1))
    made.note(torch.arange(6.0), torch.zeros(6, dtype=torch.int64))
    made.batch(6, lambda n: images(n, 2))
    assert made.places[1].tolist() == [0, 1, 2]
    assert torch.equal(made.codes[:3], made.synthesizer.coded(images(3, 2)))
    assert torch.equal(made.codes[3:], made.synthesizer.coded(images(6, 1))[3:])


def test_of_an_image_that_was_drawn_twice_the_larger_distance_stays() -> None:
    made = replay()
    filled(made, 4)
    made.places = (torch.tensor([1, 1, 2]), torch.tensor([3]))
    made.note(torch.tensor([0.5, 0.25, 9.0, 7.0]), torch.tensor([1, 1, 2, 0]))
    assert made.distances[1:4].tolist() == [0.5, 9.0, 7.0]
    assert made.classes[1:4].tolist() == [1, 2, 0]


def test_a_state_continues_to_the_same_images() -> None:
    one, other = replay(images=10), replay(images=10)
    filled(one, 8)
    state = {name: value.clone() for name, value in one.state_dict().items()}
    other.load_state_dict(state)
    other.rng.set_state(one.rng.get_state())
    for step in range(6):
        found = [each.batch(4, lambda n, step=step: images(n, step)) for each in (one, other)]
        assert torch.equal(*found)
        for each in (one, other):
            each.note(torch.rand(4, generator=derive(step)), torch.tensor([0, 1, 2, 0]))
    assert one.state_dict().keys() == {"seen", "codes", "distances", "classes"}


def test_gradients_weigh_as_told_and_values_stay() -> None:
    x, weights = images(5, 3).double().requires_grad_(True), torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0])
    other = torch.ones(3, 2)
    found = weighed({"x": x.tanh(), "other": other, "none": None}, weights)
    assert torch.equal(found["x"], x.tanh())
    assert found["other"] is other
    (gradient,) = torch.autograd.grad(found["x"].square().flatten(1).mean(1).mean(), x)
    per_image = x.tanh().square().flatten(1).mean(1)
    (wanted,) = torch.autograd.grad((per_image * weights.double()).mean(), x)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("weights", [{"response": 1.0}, {"response": 1.0, "feature": 0.5}])
@pytest.mark.parametrize("harder", [0.0, 0.01])
def test_a_training_notes_its_images_and_draws_them_again(weights: dict[str, float], harder: float) -> None:
    loop = distiller(replay={"images": 8}, weights=weights, harder=harder, partners=["w3a3"], partner_every=1)
    made = loop.stream.replay
    assert made is not None
    drawn: list[Tensor] = []
    plain = made.batch

    def noting(n: int, draw: Any) -> Tensor:
        drawn.append(plain(n, draw))
        return drawn[-1]

    made.batch = noting  # type: ignore[method-assign]
    for step in range(4):
        loop.run_step()
        assert len(drawn) == step + 1, "partners draw what the source gives"
        assert made.count == min(4 + 2 * step, 8)
        assert bool((made.distances[: made.count] > 0).all())
    with torch.no_grad():
        answers = loop.reference(drawn[-1]).argmax(1)
    where = torch.cat(made.places)
    assert torch.equal(made.classes[where], answers)
    assert synthesizer_of(loop) is made.synthesizer


def test_several_processes_do_not_share_it() -> None:
    from dfqkit.training.ranks import Ranks

    config = DistillConfig.model_validate({"replay": {}})
    with raises_naming(RecipeError, "distill.replay", "one process"):
        Ranks(rank=0, world=2).require_shares("distill", config)
