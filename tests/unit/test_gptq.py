"""Codes of a layer against an oracle that inverts anew for each column, and against trying all of them."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from dfqkit.students.gptq import Moments, corrected, descended, gptq, least_error, output_error
from dfqkit.students.weight_scales import short_mantissa

LOW, HIGH = -7, 7


def case(groups: int, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, the covariance of correlated inputs, and scales by the largest weight."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn((groups, rows, columns), generator=rng, dtype=torch.float64)
    mixed = torch.randn((groups, columns, columns), generator=rng, dtype=torch.float64)
    second = mixed @ mixed.mT / columns + 0.05 * torch.eye(columns, dtype=torch.float64)
    return weight, second, weight.abs().amax(2) / HIGH


def one_after_the_other(weight: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """Optimal brain quantization of each row by itself (Frantar et al., 2022, equation 2), by falling variance."""
    codes = torch.zeros_like(weight)
    for group, row in product(range(weight.shape[0]), range(weight.shape[1])):
        left = weight[group, row].clone()
        order = sorted(range(len(left)), key=lambda column: -float(second[group, column, column]))
        for place, column in enumerate(order):
            step = scale[group, row]
            codes[group, row, column] = (left[column] / step).round().clamp(LOW, HIGH)
            remaining = order[place:]
            inverse = torch.linalg.inv(second[group][remaining][:, remaining])
            error = (left[column] - codes[group, row, column] * step) / inverse[0, 0]
            left[remaining] -= error * inverse[0]
    return codes


@pytest.mark.parametrize(("groups", "columns"), [(1, 5), (3, 9), (1, 150)])  # several blocks, one and none whole
def test_codes_are_those_of_one_inverse_for_each_column(groups: int, columns: int) -> None:
    weight, second, scale = case(groups, 4, columns)
    codes = gptq(weight, second, scale, LOW, HIGH)
    assert torch.equal(codes, one_after_the_other(weight, second, scale))
    assert not torch.equal(codes, (weight / scale[:, :, None]).round())


def test_the_search_ends_near_the_best_of_all_codes() -> None:
    weight, second, _ = case(1, 6, 5, seed=3)
    scale = weight.abs().amax(2) / 1
    nearest = (weight / scale[:, :, None]).round()
    codes = descended(gptq(weight, second, scale, -1, 1), weight, second, scale, -1, 1)
    errors = output_error(codes, weight, second, scale)
    all_codes = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=5)), dtype=torch.float64)
    best = torch.stack([
        output_error(all_codes[None], weight[:, [row]].expand(-1, len(all_codes), -1), second,
                     scale[:, [row]].expand(-1, len(all_codes))).min()
        for row in range(6)
    ])  # fmt: skip
    assert bool((errors[0] >= best - 1e-12).all())
    assert float(errors.sum()) < 1.1 * float(best.sum())
    assert float(best.sum()) < 0.9 * float(output_error(nearest, weight, second, scale).sum())


def test_no_code_can_be_changed_alone_with_less_error() -> None:
    weight, second, scale = case(2, 3, 12, seed=1)
    codes = descended(gptq(weight, second, scale, LOW, HIGH), weight, second, scale, LOW, HIGH)
    least = output_error(codes, weight, second, scale)
    for column, step in product(range(12), (-1, 1)):
        other = codes.clone()
        other[:, :, column] = (other[:, :, column] + step).clamp(LOW, HIGH)
        assert bool((output_error(other, weight, second, scale) >= least - 1e-12).all())


def test_scales_are_chosen_with_the_codes_and_stay_where_they_must() -> None:
    weight, second, scale = case(2, 8, 20, seed=2)

    def shortened(x: Tensor) -> Tensor:
        return short_mantissa(x, 8)

    fixed, same = least_error(weight, second, scale, LOW, HIGH, None)
    codes, chosen = least_error(weight, second, scale, LOW, HIGH, shortened)
    assert torch.equal(same, scale)
    assert torch.equal(shortened(chosen), chosen)
    assert not torch.equal(chosen, shortened(scale))
    found = output_error(codes, weight, second, chosen)
    assert float(found.sum()) < 0.9 * float(output_error(fixed, weight, second, scale).sum())
    assert float(codes.abs().max()) <= HIGH


def test_weights_take_over_what_inputs_have_lost() -> None:
    """Where quantized inputs are the float ones mixed, corrected weights undo it; the damping holds them near."""
    rng = torch.Generator().manual_seed(5)
    exact = torch.randn((1, 6, 4000), generator=rng) + 3
    mixing = torch.eye(6) + 0.2 * torch.randn((6, 6), generator=rng)
    quantized = mixing @ exact - 1
    moments = Moments.none(1, 6, torch.device("cpu"))
    for start in (0, 1000):  # in parts, as they come
        stop = 1000 if start == 0 else 4000
        moments.add(quantized[:, :, start:stop], exact[:, :, start:stop])
    weight = torch.randn((1, 3, 6), generator=rng, dtype=torch.float64)
    second, cross = moments.covariances()
    ridge = torch.cov(quantized[0].double(), correction=0)
    assert torch.allclose(moments.means()[0], quantized.double().mean(2), atol=1e-5)
    added = second[0] - ridge
    assert torch.allclose(added, added[0, 0] * torch.eye(6, dtype=torch.float64), atol=1e-4)
    plain = corrected(weight, second - added, cross - added)
    assert torch.allclose(plain, weight @ torch.linalg.inv(mixing.double()), atol=1e-3)
    damped = corrected(weight, second, cross)
    assert float((damped - weight).norm()) < float((plain - weight).norm())
