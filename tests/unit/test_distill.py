"""The training loop on a toy, with a synthesizer that is nothing but its random numbers and an adversarial offset."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, fx, nn

from dfqkit import losses
from dfqkit.config.distill import DistillConfig
from dfqkit.config.quant import QuantConfig
from dfqkit.seeds import derive
from dfqkit.students.freezing import freeze, integer_biases
from dfqkit.students.nodes import tensor_at
from dfqkit.students.onnx_nodes import integer_bias
from dfqkit.students.student import equalized_graph, snapshot
from dfqkit.tasks import torch_task
from dfqkit.teacher.taps import FeatureTap
from dfqkit.training.loop import HeldOut
from dfqkit.training.quantized_student import QuantizedStudentTrainer
from dfqkit.training.stream import LiveStream, frozen
from dfqkit_export.errors import RecipeError
from dfqkit_export.tasks.classification import LOGITS
from tests._messages import names, raises_naming
from tests._offset import Offset
from tests._toys import built_student, images, toy_graph, toy_teacher

TOY = "option_a"
FAST: dict[str, Any] = {"steps": 8, "batch": 4, "round_every": 3, "judge_every": 3, "lr": 1e-3}


def held_out() -> HeldOut:
    with torch.no_grad():
        batches = [(batch, {LOGITS: toy_graph(TOY)(batch)}) for batch in (images(16, 20), images(9, 21))]
    return HeldOut(batches=batches, task=torch_task())


def distiller(quant: dict[str, Any] | None = None, **changes: Any) -> QuantizedStudentTrainer:
    config = DistillConfig.model_validate(FAST | changes)
    scheme = QuantConfig.model_validate({"bits": "w4a4"} | (quant or {}))
    schemes = [scheme, *(scheme.model_copy(update={"bits": bits}) for bits in config.partners)]
    stream = LiveStream(Offset(toy_teacher(TOY), derive(0, "offset")), config, derive(0, "augmentation"))
    reference = equalized_graph(toy_graph(TOY), scheme)
    return QuantizedStudentTrainer(
        [built_student(TOY, item) for item in schemes], schemes, reference, stream, held_out(), config
    )


def synthesizer_of(loop: QuantizedStudentTrainer) -> Offset:
    assert isinstance(loop.stream, LiveStream)
    assert isinstance(loop.stream.synthesizer, Offset)
    return loop.stream.synthesizer


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def divergence(student: fx.GraphModule) -> float:
    return held_out().judge(student)["kl"]


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average and partner": {"average": 0.9, "partners": ["w3a3"], "partner_every": 2, "shift": 2, "flip": True},
    "harder": {"harder": 0.01},
    "replay": {"replay": {"images": 6}, "shift": 1, "partners": ["w3a3"]},
    "features, learnable ranges": {"weights": {"feature": 1.0}, "quant": {"scales": "float"}, "average": 0.5},
}


@pytest.mark.parametrize(
    ("setting", "stop"),
    [("plain", 4), ("replay", 3), ("average and partner", 3), ("features, learnable ranges", 5),
     *(pytest.param(setting, stop, marks=pytest.mark.slow) for setting, stop in (
         ("plain", 0), ("replay", 6), ("average and partner", 1), ("average and partner", 6), ("harder", 4),
         ("features, learnable ranges", 8)))],
)  # fmt: skip
def test_a_state_continues_to_the_same_bits(setting: str, stop: int) -> None:
    whole, first = distiller(**SETTINGS[setting]), distiller(**SETTINGS[setting])
    terms = [whole.run_step() for _ in range(8)]
    for _ in range(stop):
        first.run_step()
    tensors, values = first.state()
    values = json.loads(json.dumps(values, allow_nan=False))
    kept = {name: value.clone() for name, value in tensors.items()}
    while first.step < 8:  # what was taken must not change with what it was taken from
        first.run_step()
    assert same(kept, tensors)
    for _ in range(2):  # nor with what it was put into
        second = distiller(**SETTINGS[setting])
        second.load_state(tensors, values)
        assert [second.run_step() for _ in range(8 - stop)] == terms[stop:]
        for ours, theirs in zip(whole.students, second.students, strict=True):
            assert same(snapshot(ours), snapshot(theirs))
        assert same(whole.best, second.best)
        assert same(whole.average, second.average)
        assert (whole.curve, whole.judged, whole.best_score) == (second.curve, second.judged, second.best_score)
        assert same(kept, tensors)


def test_training_on_the_game_comes_nearer_to_the_teacher() -> None:
    loop = distiller({"bits": "w2a2", "first_last": None, "elementwise": None}, steps=60, batch=16, judge_every=10)
    start = snapshot(loop.students[0])
    for _ in range(60):
        loop.run_step()
    entries = [entry["kl"] for entry in loop.judged]
    assert loop.best_score == min(entries) < 0.75 * entries[0]  # 0.37 to 0.61 where scales differ by a thousandth
    assert [entry["step"] for entry in loop.judged] == [0, 10, 20, 30, 40, 50, 60]
    loop.students[0].load_state_dict(loop.best)
    assert divergence(loop.students[0]) == loop.best_score
    assert not same(start, loop.best)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_calibration_is_kept_where_training_makes_it_worse(average: float) -> None:
    loop = distiller(steps=6, judge_every=2, lr=30.0, average=average)
    start = snapshot(loop.students[0])
    for _ in range(6):
        loop.run_step()
    assert all(entry["kl"] > loop.judged[0]["kl"] for entry in loop.judged[1:])
    assert len(loop.judged) == 4
    assert loop.best_score == loop.judged[0]["kl"]
    assert same(loop.best, start)


def test_a_training_that_runs_away_ends_with_the_best_state(caplog: pytest.LogCaptureFixture) -> None:
    loop = distiller({"scales": "float"}, steps=50, judge_every=5, lr=1e37)
    start, steps = snapshot(loop.students[0]), 0
    while loop.step < 50:
        terms = loop.run_step()
        assert all(math.isfinite(value) for value in terms.values())
        steps += 1
    assert steps < 50
    assert "Distillation diverged in step" in caplog.text
    assert "Lower distill.lr" in caplog.text
    names(caplog.text, "adversarial")
    assert same(loop.best, start)
    json.dumps(loop.state()[1], allow_nan=False)


def test_what_is_judged_with_an_average_is_the_average() -> None:
    loop = distiller(steps=4, judge_every=4, average=0.9)
    expected: dict[str, Tensor] = {}
    for step in range(1, 5):
        if not expected:
            expected = snapshot(loop.students[0])
        loop.run_step()
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in snapshot(loop.students[0]).items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in expected.items():
        torch.testing.assert_close(loop.average[name], value, rtol=1e-4, atol=1e-6)
    live = snapshot(loop.students[0])
    assert not same(live, loop.average)
    loop.students[0].load_state_dict(loop.average)
    assert divergence(loop.students[0]) == loop.judged[-1]["kl"]


def test_rates_rise_over_the_warm_up_and_then_fall() -> None:
    trainer, taken = distiller(warm_up=4), []
    while trainer.step < trainer.config.steps:
        trainer.run_step()
        taken.append(trainer.optimizers[0].param_groups[0]["lr"] / 1e-3)
    fall = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert taken == pytest.approx([min(1.0, (step + 1) / 4) * share for step, share in enumerate(fall)])


def test_partners_step_now_and_then_and_the_game_is_played_when_it_is_due() -> None:
    loop = distiller(partners=["w3a3", "w4a4"], partner_every=3, round_every=2, steps=7)
    moved = []
    for step in range(7):
        before = [snapshot(student) for student in loop.students]
        terms = loop.run_step()
        moved.append([not same(old, snapshot(student)) for old, student in zip(before, loop.students, strict=True)])
        assert ("adversarial" in terms) == (step % 2 == 0)
        assert ("response_w3a3" in terms) == ("response_w4a4" in terms) == (step % 3 == 0)
    # The cosine has not reached zero in the last step, so the deployed student moves in every one.
    assert moved == [[True, step % 3 == 0, step % 3 == 0] for step in range(7)]
    assert synthesizer_of(loop).played == 4
    assert [entry["step"] for entry in loop.curve] == [1, 3, 5, 7]


def test_students_are_frozen_in_the_game_only() -> None:
    loop = distiller(partners=["w3a3"])
    flags = [[p.requires_grad for p in student.parameters()] for student in loop.students]
    loop.stream.advance(loop.students)
    assert synthesizer_of(loop).trainable_seen == [False]
    assert synthesizer_of(loop).offset.abs().sum() > 0  # gradients passed through
    assert all(p.grad is None for student in loop.students for p in student.parameters())
    assert flags == [[p.requires_grad for p in student.parameters()] for student in loop.students]
    synthesizer_of(loop).break_in_round = 1
    with pytest.raises(RuntimeError, match=r"broken"):
        loop.stream.advance(loop.students)
    assert flags == [[p.requires_grad for p in student.parameters()] for student in loop.students]
    assert any(flag for row in flags for flag in row)
    assert not all(flag for row in flags for flag in row)  # the input's scale was fixed before and stays fixed


def test_frozen_restores_only_what_it_froze() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with frozen([model, model]):
        assert not model.weight.requires_grad
    assert model.weight.requires_grad
    assert not model.bias.requires_grad


def test_a_term_without_weight_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Tensor:
        message = "computed"
        raise AssertionError(message)

    response_only, feature_only = distiller(), distiller(weights={"response": 0, "feature": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(losses, "relative_error", never)
        assert set(response_only.run_step()) == {"adversarial", "response"}
    assert response_only.points == []
    synthesizer_of(feature_only).synthesize = lambda students=(): {}  # type: ignore[method-assign]
    with monkeypatch.context() as patch:
        patch.setattr(losses, "kd_kl", never)
        assert set(feature_only.run_step()) == {"feature"}


def test_the_terms_are_the_losses_of_the_batch_that_was_drawn() -> None:
    loop = distiller(weights={"response": 0.1, "feature": 10.0}, temperature=2.0, round_every=100)
    loop.run_step()  # with the round
    probe = distiller(weights={"response": 0.1, "feature": 10.0}, temperature=2.0, round_every=100)
    probe.load_state(*loop.state())
    batch = probe.stream.batch(4)
    with (
        torch.no_grad(),
        FeatureTap(probe.reference, probe.points) as wanted,
        FeatureTap(probe.students[0], probe.points) as found,
    ):
        target, answer = probe.reference(batch).double(), probe.students[0](batch).double()
        p, q = (target / 2).softmax(1), (answer / 2).softmax(1)
        response = float(4 * (p * (p.log() - q.log())).sum(1).mean())
        ratios = [
            float((found.features[n] - wanted.features[n]).square().sum() / wanted.features[n].square().sum())
            for n in probe.points
        ]
    terms = loop.run_step()
    assert terms["response"] == pytest.approx(response, rel=1e-3, abs=1e-7)
    assert terms["feature"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-4)


def test_the_feature_loss_falls() -> None:
    loop = distiller(weights={"response": 0, "feature": 1.0}, steps=60, batch=16, round_every=100, lr=1e-2)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():  # far from the teacher, so that more than the noise of batches can be won back
        for parameter in loop.students[0].parameters():
            if parameter.dim() == 4 and parameter.shape[1] > 1:
                parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=rng))
    found = [loop.run_step()["feature"] for _ in range(60)]
    assert sum(found[-5:]) < 0.6 * sum(found[:5])


def test_features_of_an_equalized_student_are_compared_on_their_own_scale() -> None:
    scheme = QuantConfig(bits="w8a8", equalize=10)
    config = DistillConfig.model_validate(FAST | {"weights": {"response": 0, "feature": 1.0}})
    found = []
    for reference in (equalized_graph(toy_graph(TOY), scheme), toy_graph(TOY)):
        stream = LiveStream(Offset(toy_teacher(TOY), derive(0, "offset")), config, derive(0, "augmentation"))
        loop = QuantizedStudentTrainer([built_student(TOY, scheme)], [scheme], reference, stream, held_out(), config)
        found.append(loop.run_step()["feature"])
    assert found[0] < 0.01
    assert found[1] > 2 * found[0]


def test_augmentation_is_the_seeds_and_only_moves_pixels() -> None:
    def drawn(seed: int, **changes: Any) -> list[Tensor]:
        config = DistillConfig.model_validate(FAST | changes)
        stream = LiveStream(Offset(toy_teacher(TOY), derive(0, "offset")), config, derive(seed, "augmentation"))
        return [stream.batch(3) for _ in range(12)]

    plain, moved, again, other = drawn(0), drawn(0, shift=2, flip=True), drawn(0, shift=2, flip=True), drawn(1, shift=2)
    assert all(torch.equal(one, two) for one, two in zip(moved, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(moved, other, strict=True))
    candidates = 0
    for one, two in zip(plain, moved, strict=True):
        options = [
            torch.roll(one, (down, right), (2, 3)).flip(mirrored)
            for down in range(-2, 3)
            for right in range(-2, 3)
            for mirrored in ((), (3,))
        ]
        candidates += sum(torch.equal(two, option) for option in options)
    assert candidates == 12  # each batch is exactly one of the 50 motions
    state = torch.random.get_rng_state()
    drawn(0, shift=2, flip=True)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_judging_by_hand() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    teacher = [torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 3.0]])]
    # Numbers that are no probabilities: those would be read as such.
    student = [torch.tensor([[1.0, 0.0], [1.0, 0.5]]), torch.tensor([[0.0, 3.0]])]
    batches = [(images, {LOGITS: answer}) for images, answer in zip(student, teacher, strict=True)]
    told = HeldOut(batches=batches, task=torch_task()).judge(Fixed())
    assert list(told) == ["agreement", "kl"]
    p, q = torch.cat(teacher).double().softmax(1), torch.cat(student).double().softmax(1)
    assert told["agreement"] == pytest.approx(200 / 3)
    assert told["kl"] == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)


def test_disagreement_by_hand() -> None:
    class Pixel(nn.Module):
        def __init__(self, row: int) -> None:
            super().__init__()
            self.row = row

        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0, self.row, :5]

    loop = distiller()
    assert loop.disagreement() is None
    loop.students = [Pixel(row) for row in (3, 4, 5)]  # type: ignore[misc]
    rows = torch.cat([batch for batch, _ in held_out().batches])[:, 0, 3:6, :5].argmax(2).tolist()
    assert loop.disagreement() == pytest.approx(100 * sum(len(set(row)) > 1 for row in rows) / 25)


@pytest.mark.parametrize(
    "values",
    [
        {"step": 1},
        {"steps": 0},
        {"average": 1.0},
        {"lr": math.inf},
        {"partners": ["w1a1"]},
        {"weights": {"response": 0}},
    ],
)
def test_the_section_is_closed_and_bounded(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        DistillConfig.model_validate(values)


def test_layers_can_be_named_and_all_terms_be_used_together() -> None:
    points = distiller(weights={"feature": 1.0}).points
    weights = {"response": 0.1, "feature": 1.0, "relation": 1.0, "attention": 1.0, "logit_l1": 1.0, "logit_mse": 1.0}
    first, second, third = points[:3]
    loop = distiller(weights=weights, layers=[first, {"teacher": second, "student": third}], partners=["w3a3"])
    assert loop.points == [first, third]
    assert loop.objectives[0].teacher_names == [first, second]
    before = snapshot(loop.students[0])
    terms = loop.run_step()
    assert set(weights) < set(terms)
    assert all(math.isfinite(value) and value > 0 for name, value in terms.items() if name in weights)
    assert not same(before, snapshot(loop.students[0]))


def test_a_projection_of_a_quantized_student_is_trained_and_resumed() -> None:
    loop = distiller(weights={"feature": 1.0})
    with torch.no_grad(), FeatureTap(loop.students[0], loop.points) as tap:
        loop.students[0](images(1))
        shapes = {name: value.shape for name, value in tap.features.items() if value.dim() == 4}
    one = next(iter(shapes))
    other = next(name for name in shapes if shapes[name][1] != shapes[one][1])
    settings: dict[str, Any] = {
        "weights": {"feature": 1.0, "relation": 1.0},
        "layers": [{"teacher": one, "student": other}, {"teacher": other, "student": one}],
    }
    whole, first, second = (distiller(**settings) for _ in range(3))
    assert len(list(whole.objectives[0].parameters())) == 4
    start = [parameter.detach().clone() for parameter in whole.objectives[0].parameters()]
    terms = [whole.run_step() for _ in range(6)]
    assert not any(torch.equal(a, b) for a, b in zip(start, whole.objectives[0].parameters(), strict=True))
    for _ in range(3):
        first.run_step()
    second.load_state(*first.state())
    assert [second.run_step() for _ in range(3)] == terms[3:]
    assert same(whole.objectives[0].state_dict(), second.objectives[0].state_dict())


def test_a_layer_that_is_not_quantized_is_refused_with_those_that_are() -> None:
    with raises_naming(RecipeError, "distill.layers", "relu_99", "There are:"):
        distiller(weights={"attention": 1.0}, layers=["relu_99"])


@pytest.mark.parametrize("weights", [{"response": 1.0}, {"response": 0.1, "feature": 10.0}])
def test_a_batch_is_made_harder_along_the_sign_of_its_gradient(weights: dict[str, float]) -> None:
    # With 4 bits a step moves so many codes that the loss may fall.
    fine = {"bits": "w8a8"}
    loop, probe = (distiller(fine, weights=weights, temperature=1.0, harder=0.1, round_every=100) for _ in range(2))
    probe.stream.advance(probe.students)
    batch = probe.stream.batch(4).requires_grad_(True)

    def found(images_: Tensor) -> tuple[Tensor, Tensor]:
        with FeatureTap(probe.reference, probe.points) as wanted, FeatureTap(probe.students[0], probe.points) as ours:
            with torch.no_grad():
                target = probe.reference(images_)
            response = losses.kd_kl(probe.students[0](images_), target)
            errors = [losses.relative_error(ours.features[n], wanted.features[n]) for n in probe.points]
        return response, torch.stack(errors).mean() if errors else torch.zeros(())

    response, feature = found(batch)
    loss = weights["response"] * response + weights.get("feature", 0.0) * feature
    (gradient,) = torch.autograd.grad(loss, batch)
    with torch.no_grad():
        harder = found(batch.detach() + 0.1 * gradient.sign())
    assert weights["response"] * harder[0] + weights.get("feature", 0.0) * harder[1] > loss.detach()
    terms = loop.run_step()
    assert terms["response"] == pytest.approx(float(response.detach() + harder[0]) / 2, rel=1e-3)
    if "feature" in weights:
        assert terms["feature"] == pytest.approx(float(feature.detach() + harder[1]) / 2, rel=1e-3)


def test_what_is_judged_is_what_ships() -> None:
    """Biases are judged, and trained, as the file stores them; what is learnt of them is finer than that."""
    coarse = {"bits": "w2a2", "scales": "float", "first_last": None, "elementwise": None}
    loop = distiller(coarse, steps=30, judge_every=10, batch=16, integer_biases=True)
    while loop.step < 30:
        loop.run_step()
    student = loop.students[0]
    loop._restore(0, loop.best)
    assert loop.kept_step > 0
    stored = integer_bias(student)
    assert any(not torch.equal(tensor_at(student, f"{name}.bias"), bias) for name, bias in stored.items())
    freeze(student)
    assert loop.held_out.judge(student)["kl"] == loop.best_score
    with integer_biases(built := built_student(TOY, QuantConfig(bits="w4a4"))):
        inside = {name: tensor_at(built, f"{name}.bias").detach().clone() for name in stored}
    assert same(inside, integer_bias(built))
    assert not same(inside, {name: tensor_at(built, f"{name}.bias") for name in stored})
