"""What students minimise: every term against the loss it names, projections, and what cannot be compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dfqkit import losses
from dfqkit.config.distill import DistillWeights, LayerPair, ObjectiveConfig
from dfqkit.tasks import torch_task
from dfqkit.training.objective import Objective, require_names
from dfqkit_export.errors import RecipeError
from dfqkit_export.tasks.classification import LOGITS
from tests._messages import raises_naming

ALL = {"response": 1.0, "feature": 2.0, "relation": 3.0, "attention": 5.0, "logit_l1": 7.0, "logit_mse": 11.0}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return drawn(*shape, seed=seed).requires_grad_(True)


OURS = {"a": drawn(4, 3, 8, 8, seed=1), "b": drawn(4, 5, 4, 4, seed=2)}
THEIRS = {"a": drawn(4, 3, 8, 8, seed=3), "b": drawn(4, 5, 4, 4, seed=4)}
WIDER = {"a": drawn(4, 6, 4, 4, seed=5), "b": drawn(4, 5, 8, 8, seed=6)}


def named(logits: Tensor) -> dict[str, Tensor]:
    return {LOGITS: logits}


def objective(
    weights: dict[str, float],
    ours: dict[str, Tensor] = OURS,
    theirs: dict[str, Tensor] = THEIRS,
    *,
    seed: int = 0,
    **fields: Any,
) -> Objective:
    names = fields.pop("layers", ["a", "b"])
    given = {"weights": {"response": 0.0} | weights, "layers": names} | fields
    config = ObjectiveConfig.model_validate(given)
    pairs = config.layers or [LayerPair(teacher=name, student=name) for name in ours]
    return Objective(config, pairs, ours, theirs, torch.Generator().manual_seed(seed), torch_task())


def test_every_term_is_the_loss_it_names() -> None:
    answer, logits = drawn(4, 10, seed=7), drawn(4, 10, seed=8)
    found = objective(ALL, temperature=3.0).terms(named(answer), named(logits), OURS, THEIRS)
    expected = {
        "response": losses.kd_kl(answer, logits, 3.0),
        "feature": (losses.relative_error(OURS["a"], THEIRS["a"]) + losses.relative_error(OURS["b"], THEIRS["b"])) / 2,
        "relation": losses.fsp((OURS["a"], OURS["b"]), (THEIRS["a"], THEIRS["b"])),
        "attention": (losses.attention(OURS["a"], THEIRS["a"]) + losses.attention(OURS["b"], THEIRS["b"])) / 2,
        "logit_l1": losses.logit_l1(answer, logits),
        "logit_mse": losses.logit_mse(answer, logits),
    }
    assert list(found) == list(ALL)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    total = objective(ALL).total(found)
    torch.testing.assert_close(total, sum((ALL[name] * value for name, value in expected.items()), torch.zeros(())))


@pytest.mark.parametrize("name", ALL)
def test_each_term_alone_reaches_the_student_and_not_the_teacher(name: str) -> None:
    made = objective({name: 2.0})
    answer, logits = leaf(4, 10, seed=7), leaf(4, 10, seed=8)
    ours = {key: value.clone().requires_grad_(True) for key, value in OURS.items()}
    terms = made.terms(named(answer), named(logits.detach()), ours, THEIRS)
    assert list(terms) == [name]
    made.total(terms).backward()
    reached = [answer] if name in ("response", "logit_l1", "logit_mse") else list(ours.values())
    assert all(tensor.grad is not None and float(tensor.grad.abs().sum()) > 0 for tensor in reached)
    assert logits.grad is None
    assert not any(value.requires_grad for value in THEIRS.values())
    assert list(made.parameters()) == []  # nothing to learn where the shapes agree


def test_the_hint_of_fitnets_is_a_mean_square() -> None:
    answer = named(drawn(4, 3))
    found = objective({"feature": 1.0}, hint="mse").terms(answer, answer, OURS, THEIRS)["feature"]
    squares = [(OURS[name] - THEIRS[name]).double().square().mean() for name in "ab"]
    assert float(found.detach()) == pytest.approx(float(sum(squares)) / 2, rel=1e-5)


def test_other_channels_are_projected_and_other_sizes_pooled() -> None:
    made = objective({"feature": 1.0}, OURS, WIDER)
    assert [(name, tuple(p.shape)) for name, p in made.named_parameters()] == [
        ("projections.0.weight", (6, 3)), ("projections.0.bias", (6,)),
    ]  # fmt: skip
    weight, bias = (p.detach().double() for p in made.parameters())
    pooled = OURS["a"].double().reshape(4, 3, 4, 2, 4, 2).mean((3, 5))
    mine = torch.einsum("dc,nchw->ndhw", weight, pooled) + bias[:, None, None]
    other = WIDER["b"].double().reshape(4, 5, 4, 2, 4, 2).mean((3, 5))
    expected = [
        float((mine - WIDER["a"]).square().sum() / WIDER["a"].double().square().sum()),
        float((OURS["b"] - other).square().sum() / other.square().sum()),
    ]
    found = made.terms(named(drawn(4, 3)), named(drawn(4, 3)), OURS, WIDER)["feature"]
    assert float(found.detach()) == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_vectors_are_projected_too() -> None:
    ours, theirs = {"v": drawn(4, 3)}, {"v": drawn(4, 7, seed=1)}
    made = objective({"feature": 1.0}, ours, theirs, layers=["v"])
    weight, bias = made.parameters()
    found = made.terms(named(drawn(4, 3)), named(drawn(4, 3)), ours, theirs)["feature"]
    torch.testing.assert_close(found, losses.relative_error(ours["v"] @ weight.T + bias, theirs["v"]))


def test_relations_are_compared_in_the_teachers_channels() -> None:
    ours, theirs = {"a": drawn(4, 3, 8, 8), "b": drawn(4, 2, 8, 8, seed=1)}, {
        "a": drawn(4, 6, 4, 4, seed=2), "b": drawn(4, 2, 4, 4, seed=3),
    }  # fmt: skip
    made = objective({"relation": 1.0}, ours, theirs)
    weight, bias = (p.detach().double() for p in made.parameters())
    mine = torch.einsum("dc,nchw->ndhw", weight, ours["a"].double()) + bias[:, None, None]
    first = torch.einsum("nihw,njhw->nij", mine, ours["b"].double()) / 64
    second = torch.einsum("nihw,njhw->nij", theirs["a"].double(), theirs["b"].double()) / 16
    found = made.terms(named(drawn(4, 3)), named(drawn(4, 3)), ours, theirs)["relation"]
    assert float(found.detach()) == pytest.approx(float((first - second).square().mean()), rel=1e-5)


def test_attention_needs_no_projection() -> None:
    assert not list(objective({"attention": 1.0}, OURS, WIDER).parameters())


def test_a_projection_learns_what_the_teacher_adds() -> None:
    """Features that are a linear map of the student's: only the projection can make them equal."""
    mix = drawn(6, 3, seed=9)
    theirs = {"a": torch.einsum("dc,nchw->ndhw", mix, OURS["a"])}
    made = objective({"feature": 1.0}, OURS, theirs, layers=["a"])
    optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(200):
        loss = made.total(made.terms(named(drawn(4, 3)), named(drawn(4, 3)), OURS, theirs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1e-3
    torch.testing.assert_close(next(made.parameters()).detach(), mix, rtol=0.05, atol=0.05)


def test_projections_are_the_seeds_alone() -> None:
    state = torch.random.get_rng_state()
    one, two, other = (objective({"feature": 1.0}, OURS, WIDER, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(next(one.parameters()), next(two.parameters()))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_by_default_vectors_take_part_in_features_only() -> None:
    ours = OURS | {"v": drawn(4, 9)}
    theirs = THEIRS | {"v": drawn(4, 9, seed=1)}
    made = objective({"feature": 1.0, "relation": 1.0, "attention": 1.0}, ours, theirs, layers=None)
    found = made.terms(named(drawn(4, 3)), named(drawn(4, 3)), ours, theirs)
    errors = [losses.relative_error(ours[name], theirs[name]) for name in "abv"]
    torch.testing.assert_close(found["feature"], torch.stack(errors).mean())
    torch.testing.assert_close(found["relation"], losses.fsp((ours["a"], ours["b"]), (theirs["a"], theirs["b"])))


@pytest.mark.parametrize(
    ("ours", "theirs", "weights", "message"),
    [
        ((4, 3, 8, 8), (4, 9), {"feature": 1.0}, r"'a' of the teacher gives \(N, 9\).*\(N, 3, 8, 8\).*cannot be comp"),
        ((4, 7, 9), (4, 8, 9), {"feature": 1.0}, r"cannot be compared: both must be \(N, C, H, W\)"),
        ((4, 9), (4, 9), {"attention": 1.0}, r"gives \(N, 9\), but attention compare.* feature maps"),
        ((4, 9), (4, 9), {"relation": 1.0}, r"but relation compare.* feature maps"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_both_shapes(
    ours: tuple[int, ...], theirs: tuple[int, ...], weights: dict[str, float], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        objective(weights, {"a": drawn(*ours)}, {"a": drawn(*theirs)}, layers=["a", "a"])


def test_layers_without_features_are_refused() -> None:
    with raises_naming(RecipeError, "'b' of the student", "never"):
        objective({"feature": 1.0}, {"a": OURS["a"]}, THEIRS)
    with raises_naming(RecipeError, "'b' of the teacher", "tuple"):
        objective({"feature": 1.0}, OURS, THEIRS | {"b": (1, 2)})  # type: ignore[dict-item]
    with raises_naming(RecipeError, "feature maps", "1 here"):
        objective({"relation": 1.0}, {"a": OURS["a"]}, THEIRS, layers=None)


def test_names_that_do_not_exist() -> None:
    known = ["layer1", "layer1.0", "layer2", "fc"]
    require_names(["fc", "layer2"], known, "distill", "the student")
    with pytest.raises(
        RecipeError, match=r"student.layers names 'layer3', but the teacher.*Did you mean 'layer2'.*There are: "
    ):
        require_names(["layer1", "layer3"], known, "student", "the teacher")
    with pytest.raises(RecipeError, match=r"There are: n0, .*n11 and 8 more"):
        require_names(["other"], [f"n{index}" for index in range(20)], "distill", "the student")


def test_the_section_reads_plain_names_and_pairs() -> None:
    config = ObjectiveConfig.model_validate({"layers": ["a", {"teacher": "b", "student": "c"}]})
    assert [(pair.teacher, pair.student) for pair in config.layers or ()] == [("a", "a"), ("b", "c")]
    assert ObjectiveConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": {"response": 0}}, "all are 0, which trains nothing"),
        ({"weights": {"response": -1}}, "greater than or equal to 0"),
        ({"weights": {"hint": 1}}, "Extra inputs"),
        ({"layers": []}, "names 0, but there is nothing to compare; name 1 or more"),
        ({"layers": ["a"], "weights": {"relation": 1}}, "names 1, but weights.relation compares consecutive ones"),
        ({"layers": [{"teacher": "a"}]}, "student"),
        ({"hint": "l1"}, "'relative' or 'mse'"),
    ],
)  # fmt: skip
def test_the_section_is_closed(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ObjectiveConfig.model_validate(given)


def test_the_terms_of_layers() -> None:
    assert DistillWeights().of_layers == []
    assert DistillWeights(response=0, attention=1, feature=1).of_layers == ["feature", "attention"]
