"""Terms that ask for objects: closed forms, bounds, gradients, and what descending them does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dfqkit import losses
from tests._arrays import descend

SIZES = torch.tensor([[1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0]])


def one_each(classes: int = 3, positions: int = 6) -> Tensor:
    """One image whose positions show one class after another, surely."""
    return torch.nn.functional.one_hot(torch.arange(positions) % classes, classes)[None].double()


def test_confidence_reads_the_most_certain_positions_of_each_image() -> None:
    probabilities = torch.full((2, 200, 3), 1e-4, dtype=torch.float64)
    probabilities[0, 5, 1], probabilities[0, 77, 2] = 0.9, 0.8
    probabilities[1, 0, 0], probabilities[1, 199, 0] = 0.5, 0.4
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.5) + math.log(0.4)) / 4
    assert float(losses.object_confidence(probabilities)) == pytest.approx(expected, abs=1e-5)
    assert float(losses.object_confidence(probabilities, 0.001)) == pytest.approx(-math.log(0.45) / 2, abs=1e-5)
    assert float(losses.object_confidence(torch.zeros(2, 9, 3))) == pytest.approx(-math.log(1e-6), rel=1e-5)


def test_balance_is_the_divergence_of_the_classes_from_even() -> None:
    assert float(losses.object_balance(one_each())) == pytest.approx(0, abs=1e-6)
    assert float(losses.object_balance(one_each()[:, :1])) == pytest.approx(math.log(3), abs=1e-4)
    uneven = one_each()[:, [0, 0, 0, 1]]
    expected = math.log(3) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert float(losses.object_balance(uneven)) == pytest.approx(expected, abs=1e-4)
    assert float(losses.object_balance(one_each()[..., :1])) == 0  # one class is balanced
    # A class counts with its squared probability: of 0.1 at a hundred positions as one of 1.
    faint = torch.cat([torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 0.1]]]).expand(1, 100, 2)], 1)
    assert float(losses.object_balance(faint)) == pytest.approx(0, abs=1e-5)


def test_spread_is_the_divergence_of_the_octaves_from_even() -> None:
    assert float(losses.size_spread(one_each(), SIZES.double())) == pytest.approx(0, abs=1e-6)
    same = torch.full_like(SIZES, 1 / 8).double()
    assert float(losses.size_spread(one_each(), same)) == pytest.approx(math.log(6), abs=1e-4)
    between = torch.full_like(SIZES, 2**-2.5).double()  # shared by two octaves
    assert float(losses.size_spread(one_each(), between)) == pytest.approx(math.log(3), abs=1e-4)
    outside = torch.tensor([[1e-3, 1 / 32, 1.0, 5.0]]).double()
    assert float(losses.size_spread(one_each(2, 4), outside)) == pytest.approx(math.log(3), abs=1e-4)
    # What is not seen has no size.
    seen = one_each() * torch.tensor([1, 1, 0, 0, 0, 0])[None, :, None]
    assert float(losses.size_spread(seen, SIZES.double())) == pytest.approx(math.log(3), abs=1e-4)


def test_all_of_it_is_their_sum() -> None:
    probabilities = torch.rand((3, 6, 4), generator=torch.Generator().manual_seed(0))
    parts = losses.object_confidence(probabilities) + losses.object_balance(probabilities)
    assert torch.equal(losses.objects(probabilities), parts)
    spread = losses.size_spread(probabilities, SIZES.expand(3, 6))
    assert torch.equal(losses.objects(probabilities, SIZES.expand(3, 6)), parts + spread)


def test_gradients() -> None:
    rng = torch.Generator().manual_seed(0)
    probabilities = (0.05 + 0.9 * torch.rand((2, 6, 3), generator=rng, dtype=torch.float64)).requires_grad_()
    sizes = (0.04 + 0.9 * torch.rand((2, 6), generator=rng, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, s: losses.objects(p, s), (probabilities, sizes))
    nothing = torch.zeros((2, 6, 3), requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.objects(nothing, SIZES.expand(2, 6)), [nothing])
    assert bool(gradient.isfinite().all())
    assert bool(losses.objects(torch.zeros((2, 6, 3), dtype=torch.float16)).isfinite())


def test_descending_it_shows_objects_of_all_classes() -> None:
    start = torch.randn((4, 50, 5), generator=torch.Generator().manual_seed(0)) - 4
    start[..., 0] += 2
    found = start
    for _ in range(300):
        found = descend(lambda logits: losses.objects(logits.sigmoid()), found, 1.0)
    found = found.sigmoid()
    assert float(found.amax((1, 2)).min()) > 0.9
    assert float(start.sigmoid().amax((1, 2)).max()) < 0.9
    before, after = (x.square().sum((0, 1)) for x in (start.sigmoid(), found))
    assert float(after.min() / after.max()) > max(0.3, 5 * float(before.min() / before.max()))
    assert float((found.amax(2) > 0.5).float().mean()) < 0.3  # most positions stay background
