"""Soft targets: the Gaussian over a layer's outputs, the tail behind it, and both loss terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.methods.soft_targets import SoftTargetsConfig
from dfqkit.synthesis.methods.soft_targets.method import SoftTargets
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import RecipeError, TeacherError
from tests._hooks import hooks_on
from tests._messages import raises_naming
from tests._toys import IMAGE, conv_bn, randomise, toy_teacher


class LeNet(nn.Module):
    """Three linear layers behind two convolutions, with activations that work in place."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(3, 4), nn.ReLU(inplace=True), nn.MaxPool2d(4), conv_bn(4, 6), nn.ReLU(inplace=True)
        )
        self.first, self.second, self.last = nn.Linear(96, 12), nn.Linear(12, 8), nn.Linear(8, IMAGE.classes)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(self.features(x).view(x.size(0), -1)))
        return self.last(self.norm(self.relu(self.second(x))))


@pytest.fixture(scope="module")
def lenet() -> Teacher:
    with torch.random.fork_rng(devices=[]):
        return Teacher.from_module(randomise(LeNet()), IMAGE)


def make(teacher: Teacher, seed: int = 0, **changes: object) -> SoftTargets:
    config = SoftTargetsConfig.model_validate({"batch": 8, "steps": 4} | changes)
    return SoftTargets(config, teacher, derive(seed, "soft-targets"), Demand(training=16))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(("layer", "name"), [(None, "last"), ("last", "last"), ("second", "second")])
def test_outputs_have_the_covariance_of_the_rows_cosines(lenet: Teacher, layer: str | None, name: str) -> None:
    drawn = make(lenet, layer=layer, sigma=1.5, batch=100_000)._outputs().double().numpy()
    weight = lenet.model.get_submodule(name).weight.double().numpy()
    unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    np.testing.assert_allclose(np.cov(drawn.T), 1.5**2 * unit @ unit.T, atol=0.05)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.03)


def test_targets_of_the_head_are_its_softmax(lenet: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    method = make(lenet)
    monkeypatch.setattr(method, "_outputs", lambda: outputs)
    method._draw()
    np.testing.assert_allclose(method.target.numpy(), softmax(outputs.double().numpy()), atol=1e-6)


def test_targets_of_an_earlier_layer_come_through_the_tail(lenet: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    kept, model = outputs.clone(), lenet.model
    method = make(lenet, layer="second")
    monkeypatch.setattr(method, "_outputs", lambda: outputs)
    method._draw()
    s = np.maximum(outputs.double().numpy(), 0)
    norm, last = model.get_submodule("norm"), model.get_submodule("last")
    mean, var, gain, bias = (
        getattr(norm, n).double().numpy() for n in ("running_mean", "running_var", "weight", "bias")
    )
    s = (s - mean) / np.sqrt(var + norm.eps) * gain + bias
    logits = s @ last.weight.double().numpy().T + last.bias.double().numpy()
    np.testing.assert_allclose(method.target.numpy(), softmax(logits), atol=1e-5)
    assert torch.equal(outputs, kept), "an activation in place reached the drawn outputs"
    assert not hooks_on(model)


def test_the_loss_is_kl_at_the_temperature_minus_the_mean_activation(lenet: Teacher) -> None:
    method = make(lenet, temperature=4.0)
    method._begin()
    x = method.x.detach()
    model = lenet.model
    with torch.no_grad():
        features = model.get_submodule("features")(x).double().numpy()
    y, p = method.target.double().numpy(), softmax(lenet.logits(x).double().numpy() / 4)
    found = method._step([], 0, 4)
    assert found["kl"] == pytest.approx((y * np.log(y / p)).sum(1).mean(), rel=1e-4)
    assert found["activation"] == pytest.approx(-np.abs(features).mean(), rel=1e-5)
    assert method.weights == {"kl": 1.0, "activation": 0.1}


def test_pooled_features_are_read_where_the_head_follows_the_convolutions() -> None:
    method = make(toy_teacher("residual"))
    assert list(method.tap.layers) == ["head.fc"]


def test_a_term_of_weight_zero_is_left_out(lenet: Teacher) -> None:
    assert set(make(lenet, weights={"activation": 0.0}).synthesize()) == {"kl"}


def test_images_come_to_the_targets_and_the_teacher_stays(lenet: Teacher) -> None:
    before = {name: value.clone() for name, value in lenet.model.state_dict().items()}
    method = make(lenet, layer="second", steps=60, lr=0.1, temperature=1.0)
    terms = [method.synthesize()["kl"] for _ in range(60)]
    assert terms[-1] < 0.7 * terms[0]
    assert all(torch.equal(before[name], value) for name, value in lenet.model.state_dict().items())


def test_continuing_within_a_batch_keeps_its_targets(lenet: Teacher) -> None:
    straight = make(lenet, layer="second")
    terms = [straight.synthesize() for _ in range(8)]
    first, second = make(lenet, layer="second"), make(lenet, seed=9, layer="second")
    found = [first.synthesize() for _ in range(6)]
    second.load_state_dict(first.state_dict())
    assert found + [second.synthesize() for _ in range(2)] == terms


@pytest.mark.parametrize("name", ["third", "features.0.0", "norm"])
def test_a_layer_that_cannot_be_modelled_is_named_with_those_that_can(lenet: Teacher, name: str) -> None:
    with raises_naming(RecipeError, name, "first, second, last"):
        make(lenet, layer=name)


def test_a_teacher_without_a_linear_head_is_refused() -> None:
    model = nn.Sequential(conv_bn(3, IMAGE.classes), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(TeacherError, match="no linear head"):
        make(Teacher.from_module(model, IMAGE))
