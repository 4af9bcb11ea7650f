"""Reading BatchNorm statistics from a teacher that must not notice."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from dfqkit import losses
from dfqkit.teacher.taps import BatchNormTap, LayerTap, batch_norms
from dfqkit_export.errors import TeacherError
from tests._hooks import hooks_on
from tests._messages import raises_naming
from tests._toys import conv_bn, images, randomise, toy


def test_statistics_are_those_of_the_input() -> None:
    model = nn.Sequential(conv_bn(3, 4)).eval()
    x = images(5)
    with BatchNormTap(model) as tap:
        model(x)
    inner = model[0][0](x).detach().numpy().astype(np.float64)
    (found,) = tap.statistics
    assert found.name == "0.1"
    np.testing.assert_allclose(found.mean.detach(), inner.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found.variance.detach(), inner.var((0, 2, 3)), rtol=1e-5)
    assert found.running_mean is model[0][1].running_mean


def test_two_dimensional_inputs() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    x = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 5.0]])
    with BatchNormTap(model) as tap:
        model(x)
    assert tap.statistics[0].mean.tolist() == [2.0, 2.0, 4.0]
    assert tap.statistics[0].variance.tolist() == [1.0, 0.0, 1.0]


def test_a_frozen_layer_is_read_as_the_one_that_it_was() -> None:
    class Own(FrozenBatchNorm2d):
        def forward(self, features: Tensor) -> Tensor:
            return super().forward(features)

    plain, x = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), images(5)
    for norm, call in ((FrozenBatchNorm2d(4), lambda n, y: n(y)), (Own(4), lambda n, y: n(features=y))):
        norm.load_state_dict({k: v for k, v in plain[1].state_dict().items() if k != "num_batches_tracked"})
        model = nn.Sequential(plain[0], norm).eval()
        with BatchNormTap(plain) as wanted, BatchNormTap(model) as found:
            plain(x)
            call(norm, model[0](x))
        for name in ("mean", "variance", "running_mean", "running_variance"):
            torch.testing.assert_close(getattr(found.statistics[0], name), getattr(wanted.statistics[0], name))


def test_gradients_reach_the_images() -> None:
    model = toy("residual").requires_grad_(False)
    x = images(4).requires_grad_(True)
    with BatchNormTap(model) as tap:
        model(x)
    (gradient,) = torch.autograd.grad(sum(s.variance.sum() for s in tap.statistics), x)
    assert gradient.abs().sum() > 0


def test_only_the_last_forward_is_kept() -> None:
    model = toy("residual")
    with BatchNormTap(model) as tap:
        model(images(4, 1))
        model(images(4, 2))
    assert len(tap.statistics) == len(batch_norms(model))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(x) + 1)


def test_a_layer_called_twice_gives_two_entries() -> None:
    model = Twice().eval()
    with BatchNormTap(model) as tap:
        model(images(2))
    assert [s.name for s in tap.statistics] == ["norm", "norm"]
    assert not torch.equal(tap.statistics[0].mean, tap.statistics[1].mean)


def test_nothing_is_left_behind() -> None:
    model = toy("residual")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tap = BatchNormTap(model)
    assert hooks_on(model) == 0
    with tap:
        model(images(2))
        assert hooks_on(model) > 0
    with pytest.raises(RuntimeError, match="stop"), tap:
        raise RuntimeError("stop")  # noqa: EM101
    assert hooks_on(model) == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training


def test_no_stand_in_is_left_behind_where_the_model_fails() -> None:
    model = toy("residual")
    model.head.fc = nn.Linear(3, 5)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), BatchNormTap(model):
        model(images(2))
    assert not any("forward" in vars(module) for module in model.modules())
    assert hooks_on(model) == 0


def test_a_copy_made_in_between_is_refused_and_one_made_later_is_free() -> None:
    model = toy("residual")
    tap = BatchNormTap(model)
    for copied in (copy.deepcopy, pickle.dumps):
        with tap, raises_naming(TeacherError, "stem.1", "copied or pickled"):
            copied(model)
    with tap:
        model(images(2, 1))
    kept = list(tap.statistics)
    copy.deepcopy(model)(images(2, 2))
    assert tap.statistics == kept
    assert len(pickle.dumps(model)) > 0


class Named(nn.Module):
    """Calls its layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(input=x)


def test_a_layer_may_be_called_by_keyword() -> None:
    model, x = Named().eval().requires_grad_(False), images(4)
    with BatchNormTap(model) as first, BatchNormTap(model) as second, LayerTap(model, ["norm"], "input") as layers:
        y = model(x)
        assert layers.values["norm"] is x
    assert torch.equal(y, model(x))
    for tap in (first, second):
        torch.testing.assert_close(tap.statistics[0].mean, x.mean((0, 2, 3)))


def test_every_call_of_a_layer_is_kept() -> None:
    model, x = Twice().eval(), images(2)
    with LayerTap(model, ["norm"]) as tap:
        model(images(2, 7))
        y = model(x)
        assert len(tap.calls["norm"]) == 2
        assert torch.equal(tap.values["norm"], model.norm(x))
        assert tap.calls["norm"][1] is y or torch.equal(tap.calls["norm"][1], y)
    assert not tap.values


def test_deviations_are_the_forms_of_every_entry() -> None:
    model = Twice().eval()
    with BatchNormTap(model) as tap:
        model(images(4))
    found = tap.deviations(losses.bn_kl)
    wanted = [losses.bn_kl(s.mean, s.variance, s.running_mean, s.running_variance) for s in tap.statistics]
    assert torch.equal(torch.stack(found), torch.stack(wanted))


def test_training_mode_is_refused_and_leaves_no_hooks() -> None:
    model = toy("residual")
    model.a1[1].train()
    with pytest.raises(TeacherError, match=r"'a1.1' is in training mode"), BatchNormTap(model):
        pass
    assert hooks_on(model) == 0


@pytest.mark.parametrize(
    "norm",
    [nn.Identity(), nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4, track_running_stats=True)],
)
def test_a_model_without_batch_norm_is_refused(norm: nn.Module) -> None:
    with raises_naming(TeacherError, "BatchNorm"):
        BatchNormTap(nn.Sequential(nn.Conv2d(3, 4, 3), norm))
