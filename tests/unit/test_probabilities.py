"""A classifier that ends in a softmax is treated by its logits, and its file still gives what the model gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from dfqkit.config.synthesis import Demand
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.synthesis.methods.zeroq import ZeroQConfig
from dfqkit.tasks import torch_task
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.structure import linear_head
from dfqkit_export.tasks import DEFAULT_TASK
from dfqkit_export.tasks.classification import as_logits, kl
from tests._toys import IMAGE, Head, Residual, images, randomise, student


def ending(tail: nn.Module) -> nn.Module:
    return randomise(nn.Sequential(Residual(), tail))


@pytest.fixture(scope="module")
def logits() -> Tensor:
    return 4 * torch.randn((16, 5), generator=torch.Generator().manual_seed(0))


def test_probabilities_are_as_far_apart_as_their_logits(logits: Tensor) -> None:
    other = logits + 0.1 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    both, where = (logits.numpy(), other.numpy()), {"subject": "file", "data": "images"}
    soft = tuple(np.asarray(torch.from_numpy(each).softmax(1)) for each in both)
    assert kl(*soft, **where).value == pytest.approx(kl(*both, **where).value, rel=1e-4)
    task, given = torch_task(DEFAULT_TASK), [{"logits": torch.from_numpy(each)} for each in (*both, *soft)]
    for temperature in (1.0, 4.0):
        assert float(task.distance(given[2], given[3], temperature)) == pytest.approx(
            float(task.distance(given[0], given[1], temperature)), rel=1e-3
        )
    answers = [{"logits": each} for each in (both[0], soft[0])]
    sure = [DEFAULT_TASK.groups(each, IMAGE).confidence for each in answers]
    np.testing.assert_allclose(sure[0], sure[1], rtol=1e-5)


def test_what_is_no_probability_is_left_alone(logits: Tensor) -> None:
    for values in (logits, logits.log_softmax(1), logits.softmax(1)[:, :4], logits.abs(), logits.softmax(1) * 2):
        np.testing.assert_array_equal(as_logits(values.numpy()), values.numpy())
        assert torch_task(DEFAULT_TASK).for_losses(values) is values
    certain = as_logits(np.eye(3, dtype=np.float32))
    assert np.isfinite(certain).all()


@pytest.mark.parametrize("tail", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_a_method_sees_logits_under_the_teachers_own_names(tail: nn.Module) -> None:
    teacher = Teacher.from_module(ending(tail), IMAGE)
    head = linear_head(teacher)
    assert head is not None
    assert head[0] == "0.head.fc"
    made = build_synthesizer(ZeroQConfig(batch=4, steps=1), teacher, torch.Generator(), Demand(training=0, fresh=4))
    x = images(4)
    with torch.no_grad():
        seen, wanted = made.teacher.model(x).softmax(1), teacher.model[0](x).softmax(1)
    torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-6)
    assert [name for name, _ in made.teacher.model.named_modules()] == [n for n, _ in teacher.model.named_modules()]
    assert not teacher.model._forward_hooks


class Tempered(nn.Module):
    """A sigmoid of logits over a temperature, laid out anew."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x.reshape(-1, 5, 1) / 2.5).flatten(1)


@pytest.mark.parametrize("tail", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sequential(Tempered(), nn.Softmax(1))])
def test_no_quantizer_stands_behind_the_logits(tail: nn.Module) -> None:
    graph, plain = (student(ending(each)) for each in (tail, nn.Identity()))
    assert [name for name, _ in graph.quant.named_children()] == [name for name, _ in plain.quant.named_children()]
    expected = tail(plain(images(4)))
    torch.testing.assert_close(graph(images(4)), expected, rtol=1e-2, atol=1e-3)  # a temperature moves a grid a little


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_network_whose_weights_were_computed_last_is_copied() -> None:
    model = randomise(nn.Sequential(weight_norm(nn.Conv2d(3, 8, 3)), Head(8)))
    expected = model(images(2)).detach()
    assert not model[0].weight.is_leaf
    torch.testing.assert_close(Teacher.from_module(model, IMAGE).logits(images(2)), expected)
