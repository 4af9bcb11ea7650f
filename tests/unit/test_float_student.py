"""Smaller float students on toys: how they are made, trained, kept and resumed, and what is refused before any step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.config.registry import synthesizer_config
from dfqkit.config.student import FloatStudentConfig
from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.students.student import save_student
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.teacher.load import Teacher
from dfqkit.training.float_student import (
    FloatStudentTrainer,
    load_float_student,
    new_float_student,
    student_objective,
)
from dfqkit.training.loop import HeldOut
from dfqkit.training.stream import LiveStream
from dfqkit_export.errors import ArtefactError, RecipeError
from tests._hooks import hooks_on
from tests._messages import raises_naming
from tests._offset import Offset
from tests._toys import Head, conv_bn, images, toy_teacher

HERE = "tests.unit.test_float_student"

#: The methods that play a game with a student while it learns.
ONLINE: dict[str, dict[str, Any]] = {
    "dfq": {"batch": 8, "latent": 8, "width": 4, "warmup": 2, "memory": 16},
    "dafl": {"batch": 8, "latent": 8, "width": 4, "warmup": 2, "memory": 16},
    "zskt": {"batch": 8, "latent": 8, "width": 4, "warmup": 2, "memory": 16},
    "cmi": {"batch": 8, "steps": 2, "latent": 8, "width": 4, "projection": 8, "bank": 16, "negatives": 8, "memory": 64},
    "fastdfkd": {"batch": 8, "steps": 2, "latent": 8, "width": 4, "warmup_batches": 1, "memory": 64},
    "deepinversion-adaptive": {"batch": 8, "steps": 2, "memory": 64},
}


class Small(nn.Module):
    """Two convolutions, and dropout, which draws random numbers in training."""

    def __init__(self, classes: int = 5, drop: float = 0.2) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 4, stride=2), conv_bn(4, 6, stride=2)
        self.drop = nn.Dropout(drop)
        self.head = Head(6)
        self.head.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(torch.relu(self.body(torch.relu(self.stem(x))))))
        return out


def nothing_to_train() -> nn.Module:
    return Small().requires_grad_(False)


def not_finite() -> nn.Module:
    model = Small()
    nn.init.constant_(model.head.fc.bias, float("nan"))
    return model


def config(**changes: Any) -> FloatStudentConfig:
    small: dict[str, Any] = {"factory": f"{HERE}:Small", "steps": 8, "batch": 8, "round_every": 3, "judge_every": 3}
    return FloatStudentConfig.model_validate(small | changes)


def teacher() -> Teacher:
    return toy_teacher("residual")


def held_out() -> HeldOut:
    model = teacher()
    batches = [(batch, model.answers(batch)) for batch in (images(16, 20), images(9, 21))]
    return HeldOut(batches=batches, task=model.torch_task)


def trainer(section: FloatStudentConfig | None = None, seed: int = 0) -> FloatStudentTrainer:
    section = section or config()
    model = teacher()
    stream = LiveStream(Offset(model, derive(seed, "offset")), section, derive(seed, "augmentation"))
    student = new_float_student(section, model, seed)
    return FloatStudentTrainer(student, model, stream, held_out(), section, derive(seed, "train"))


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


ALL_TERMS: dict[str, Any] = {
    "weights": {"response": 1, "feature": 1, "relation": 1, "attention": 1, "logit_l1": 1, "logit_mse": 1},
    "layers": [{"teacher": "stem", "student": "stem"}, {"teacher": "b2", "student": "body"}],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adam, average": {"optimizer": "adam", "average": 0.9, "shift": 1, "flip": True},
    "every term": ALL_TERMS,
}


@pytest.mark.parametrize(
    ("setting", "stop"), [("sgd", 0), ("sgd", 4), ("adam, average", 3), ("adam, average", 7), ("every term", 5)]
)
def test_a_state_continues_to_the_same_bits(setting: str, stop: int) -> None:
    section = config(**SETTINGS[setting])
    whole, first, second = (trainer(section) for _ in range(3))
    terms = [whole.run_step() for _ in range(8)]
    for _ in range(stop):
        first.run_step()
    tensors, values = first.state()
    kept = {name: value.clone() for name, value in tensors.items()}
    torch.manual_seed(99)  # a process that resumes has another global state, from which dropout would draw
    first.run_step()
    assert same(kept, tensors)
    second.load_state(tensors, json.loads(json.dumps(values, allow_nan=False)))
    assert [second.run_step() for _ in range(8 - stop)] == terms[stop:]
    assert same(whole.student.state_dict(), second.student.state_dict())
    assert same(whole.best, second.best)
    assert same(whole.average, second.average)
    assert same(whole.objectives[0].state_dict(), second.objectives[0].state_dict())
    assert (whole.judged, whole.curve, whole.best_score) == (second.judged, second.curve, second.best_score)


def test_it_comes_nearer_to_the_teacher_which_stays_as_it_is() -> None:
    loop = trainer(config(args={"drop": 0.0}, steps=120, batch=16, judge_every=20, temperature=1.0))
    weights = {name: value.clone() for name, value in loop.teacher.model.state_dict().items()}
    state = torch.random.get_rng_state()
    for _ in range(120):
        loop.run_step()
        assert not loop.student.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(weights, loop.teacher.model.state_dict())
    assert not hooks_on(loop.teacher.model, loop.student)
    assert all(p.grad is None for p in loop.teacher.model.parameters())
    entries = [entry["kl"] for entry in loop.judged]
    assert loop.best_score == min(entries) < 0.5 * entries[0]
    loop.student.load_state_dict(loop.best)
    assert held_out().judge(loop.student)["kl"] == loop.best_score


def test_its_batch_norms_learn_from_batches_but_not_from_the_game_or_the_judging() -> None:
    loop = trainer(config(round_every=1, judge_every=1, steps=3))
    for step in range(3):
        assert int(loop.student.state_dict()["stem.1.num_batches_tracked"]) == step
        loop.run_step()
    synthesizer_ = loop.stream.synthesizer  # type: ignore[attr-defined]
    assert synthesizer_.played == 3
    assert synthesizer_.trainable_seen == [False] * 3
    assert all(parameter.requires_grad for parameter in loop.student.parameters())


def test_a_step_is_sgd_with_nesterov_momentum_on_the_tempered_divergence() -> None:
    section = config(args={"drop": 0.0}, temperature=3.0, lr=0.05, weight_decay=0.01, round_every=100)
    loop, model = trainer(section), trainer(section).student.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
    batches = [images(8, seed) for seed in range(4)]
    remaining = iter(batches)
    loop.stream.batch = lambda n, **_: next(remaining)  # type: ignore[method-assign]
    for step, batch in enumerate(batches):
        loop.run_step()
        loss = losses.kd_kl(model(batch), loop.teacher.logits(batch), 3.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 8))
        optimizer.step()
    for ours, theirs in zip(loop.student.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ONLINE)
def test_every_online_method_plays_with_it_and_resumes(name: str) -> None:
    section = config(steps=4, round_every=2, judge_every=2)
    settings = synthesizer_config(name).model_validate({"method": name} | ONLINE[name])

    def made() -> FloatStudentTrainer:
        model = teacher()
        maker = build_synthesizer(settings, model, derive(0, "s"), Demand(training=8, fresh=8, game_rounds=2))
        opponents = [toy_teacher("residual", seed=1).model] if "student" in settings.needed else []
        for _ in range(maker.warmup_rounds):
            maker.synthesize(opponents)
        stream = LiveStream(maker, section, derive(0, "a"))
        return FloatStudentTrainer(
            new_float_student(section, model, 0), model, stream, held_out(), section, derive(0, "train")
        )

    whole, first, second = made(), made(), made()
    terms = [whole.run_step() for _ in range(4)]
    assert len(terms[0]) > 1, "the first step of two must have the terms of a round"
    for _ in range(2):
        first.run_step()
    second.load_state(*first.state())
    assert [second.run_step() for _ in range(2)] == terms[2:]
    assert same(whole.student.state_dict(), second.student.state_dict())


def test_weights_are_the_seeds_and_the_global_state_is_not_touched() -> None:
    state = torch.random.get_rng_state()
    one, two, other = (new_float_student(config(), teacher(), seed).state_dict() for seed in (0, 0, 1))
    assert same(one, two)
    assert not torch.equal(one["head.fc.weight"], other["head.fc.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_it_can_start_from_a_file(tmp_path: Path) -> None:
    wanted = new_float_student(config(), teacher(), 5)
    save_student(wanted, tmp_path / "start.safetensors")
    found = new_float_student(config(start="start.safetensors"), teacher(), 0, lambda name: tmp_path / name)
    assert same(wanted.state_dict(), found.state_dict())
    save_student(nn.Linear(2, 2), tmp_path / "start.safetensors")
    with raises_naming(RecipeError, "student.start", "start.safetensors", "student.factory"):
        new_float_student(config(start="start.safetensors"), teacher(), 0, lambda name: tmp_path / name)


def test_what_is_stored_comes_back_and_a_damaged_file_says_so(tmp_path: Path) -> None:
    one, two = new_float_student(config(), teacher(), 0), new_float_student(config(), teacher(), 1)
    save_student(one, tmp_path / "x.safetensors")
    load_float_student(two, tmp_path / "x.safetensors")
    assert same(one.state_dict(), two.state_dict())
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtefactError, match=r"Cannot read the float student.*dfqkit run --resume"):
        load_float_student(two, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factory": f"{HERE}:Smal"}, r"student section: Factory '.*Smal' does not exist.*Did you mean 'Small'"),
        ({"args": {"depth": 3}}, r"student section: Factory .* failed when called with .*depth=3.*Check its args"),
        ({"args": {"classes": 7}}, r"gives \(2, 7\) where logits \(2, 5\) are needed"),
        ({"factory": "dfqkit.models:digits_cnn"}, r"fails on images \(2, 3, 16, 16\)"),
        ({"factory": f"{HERE}:nothing_to_train"}, r"no parameter that could be trained"),
    ],
)  # fmt: skip
def test_a_network_that_is_no_student_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        new_float_student(config(**changes), teacher(), 0)


def test_a_start_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ArtefactError, match=r"untrained student's answers are not finite"):
        trainer(config(factory=f"{HERE}:not_finite"))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            [{"teacher": "b3", "student": "body"}],
            r"student.layers names 'b3', but the teacher.*Did you mean 'b2' or 'b1'",
        ),
        ([{"teacher": "b2", "student": "bodi"}], r"names 'bodi', but the student has no layer.*Did you mean 'body'"),
        ([{"teacher": "head", "student": "body"}], r"'head' of the teacher gives \(N, 5\) and 'body'"),
    ],
)
def test_layers_are_checked_before_any_step(layers: list[dict[str, str]], message: str) -> None:
    section = config(weights={"feature": 1.0}, layers=layers)
    with pytest.raises(RecipeError, match=message):
        student_objective(new_float_student(section, teacher(), 0), teacher(), section, derive(0, "x"))


@pytest.mark.parametrize("name", ALL_TERMS["weights"])
def test_every_term_trains_the_student(name: str) -> None:
    weights = {"response": 0.0, name: 1.0}
    loop = trainer(config(args={"drop": 0.0}, weights=weights, layers=ALL_TERMS["layers"], lr=0.01, round_every=100))
    loop.run_step()  # with the round
    batch = Offset.sample(loop.stream.synthesizer, 8)  # type: ignore[attr-defined]
    loop.stream.batch = lambda n, **_: batch  # type: ignore[method-assign]
    found = [loop.run_step() for _ in range(6)]
    assert set(found[0]) == {name}
    assert found[-1][name] < found[0][name]


def test_projections_are_the_students_alone_and_train_with_it() -> None:
    loop = trainer(config(weights={"response": 0.0, "feature": 1.0}, layers=ALL_TERMS["layers"]))
    projections = list(loop.objectives[0].parameters())
    assert [tuple(parameter.shape) for parameter in projections] == [(8, 4), (8,), (12, 6), (12,)]
    before = [parameter.detach().clone() for parameter in projections]
    loop.run_step()
    assert not any(torch.equal(a, b) for a, b in zip(before, projections, strict=True))
    assert not any("projection" in name for name in loop.best)  # what is kept is the network


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"feature": 1}}, r"weights.feature needs layers"),
        ({"weights": {"response": 0, "relation": 1}, "layers": ["a"]}, r"names 1, but weights.relation compares"),
        ({"optimizer": "lamb"}, r"'sgd' or 'adam'"),
        ({"momentum": 1.0}, r"less than 1"),
        ({"lr": 0}, r"greater than 0"),
        ({"size": 3}, r"Extra inputs"),
    ],
)  # fmt: skip
def test_the_section_is_closed_and_bounded(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_the_learning_rate_follows_the_optimizer() -> None:
    assert config().rate == 0.1
    assert config(optimizer="adam").rate == 1e-3
    assert config(optimizer="adam", lr=0.5).rate == 0.5
    assert isinstance(trainer(config(optimizer="adam")).optimizers[0], torch.optim.Adam)
