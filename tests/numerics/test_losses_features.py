"""Feature terms against float64 NumPy: hints, FSP matrices, attention maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqkit import losses
from tests._arrays import array, descend, draw


def pooled(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Adaptive average pooling: cell i covers the rows from floor(i H / h) to ceil((i + 1) H / h)."""
    rows, columns = x.shape[2:]
    result = np.empty((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            top, bottom = i * rows // height, math.ceil((i + 1) * rows / height)
            left, right = j * columns // width, math.ceil((j + 1) * columns / width)
            result[:, :, i, j] = x[:, :, top:bottom, left:right].mean((2, 3))
    return result


def gram(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("nahw,nbhw->nab", first, second) / (first.shape[2] * first.shape[3])


def attention_map(x: np.ndarray) -> np.ndarray:
    flat = (x**2).mean(1).reshape(len(x), -1)
    return flat / np.sqrt((flat**2).sum(1, keepdims=True))


def test_relative_error_and_its_gradient() -> None:
    student, teacher = draw(4, 3, 5, seed=1).requires_grad_(True), draw(4, 3, 5, seed=2)
    energy = np.sum(array(teacher) ** 2)
    value = losses.relative_error(student, teacher)
    difference = array(student) - array(teacher)
    assert float(value.detach()) == pytest.approx(np.sum(difference**2) / energy, rel=1e-5)
    (gradient,) = torch.autograd.grad(value, student)
    assert array(gradient) == pytest.approx(2 * difference / energy, rel=1e-4, abs=1e-7)
    scaled = losses.relative_error(7 * student.detach(), 7 * teacher)
    assert float(scaled) == pytest.approx(float(value.detach()), rel=1e-5)


def test_hint_is_a_mean_over_all_elements() -> None:
    student, teacher = draw(4, 3, 5, 5, seed=1), draw(4, 3, 5, 5, seed=2)
    assert float(losses.hint(student, teacher)) == pytest.approx(
        np.mean((array(student) - array(teacher)) ** 2), rel=1e-5
    )


def test_hint_never_broadcasts() -> None:
    with pytest.raises(ValueError, match=r"one shape; found \(4, 1, 5\) and \(4, 3, 5\)"):
        losses.hint(draw(4, 1, 5), draw(4, 3, 5))


def test_fsp_matrix_against_numpy() -> None:
    first, second = draw(2, 3, 4, 5, seed=1), draw(2, 6, 4, 5, seed=2)
    found = losses.fsp_matrix(first, second)
    assert found.shape == (2, 3, 6)
    assert array(found) == pytest.approx(gram(array(first), array(second)), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("first", "second"), [((8, 8), (4, 4)), ((3, 2), (7, 5)), ((8, 3), (4, 6))])
def test_fsp_matrix_pools_the_larger_to_the_smaller(first: tuple[int, int], second: tuple[int, int]) -> None:
    a, b = draw(2, 3, *first, seed=1), draw(2, 4, *second, seed=2)
    size = min(first[0], second[0]), min(first[1], second[1])
    expected = gram(pooled(array(a), *size), pooled(array(b), *size))
    assert array(losses.fsp_matrix(a, b)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_fsp_matrix_of_disjoint_channels_and_under_scaling() -> None:
    ones = torch.ones(1, 3, 4, 4)
    assert torch.equal(losses.fsp_matrix(ones, ones), torch.ones(1, 3, 3))
    apart = torch.eye(4).view(1, 4, 2, 2)  # each channel is one at a position of its own
    assert torch.equal(losses.fsp_matrix(apart, apart), torch.eye(4).unsqueeze(0) / 4)
    first, second = draw(2, 3, 4, 4, seed=1), draw(2, 5, 4, 4, seed=2)
    expected = 3 * losses.fsp_matrix(first, second)
    assert torch.allclose(losses.fsp_matrix(3 * first, second), expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(losses.fsp_matrix(first, 3 * second), expected, rtol=1e-5, atol=1e-6)


def test_fsp_averages_over_entries() -> None:
    student = draw(2, 3, 8, 8, seed=1), draw(2, 6, 4, 4, seed=2)
    teacher = draw(2, 3, 4, 4, seed=3), draw(2, 6, 4, 4, seed=4)
    ours = gram(pooled(array(student[0]), 4, 4), array(student[1]))
    theirs = gram(array(teacher[0]), array(teacher[1]))
    found = float(losses.fsp(student, teacher))
    assert found == pytest.approx(np.mean((ours - theirs) ** 2), rel=1e-5)
    per_image = np.mean([np.sum((a - b) ** 2) for a, b in zip(ours, theirs, strict=True)])
    assert 3 * 6 * found == pytest.approx(per_image, rel=1e-5)  # the definition's sum over entries
    with pytest.raises(ValueError, match=r"one shape; found \(2, 1, 6\) and \(2, 3, 6\)"):
        losses.fsp((student[0][:, :1], student[1]), teacher)


def test_attention_map_against_numpy() -> None:
    x = draw(3, 5, 4, 2)
    found = losses.attention_map(x)
    assert found.shape == (3, 8)
    assert array(found) == pytest.approx(attention_map(array(x)), rel=1e-5)
    assert array(found.norm(dim=1)) == pytest.approx(np.ones(3), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-3, -1.0, 1e3])
def test_attention_does_not_see_scale(scale: float) -> None:
    student, teacher = draw(3, 5, 4, 4, seed=1), draw(3, 7, 4, 4, seed=2)
    assert torch.allclose(losses.attention_map(scale * student), losses.attention_map(student), rtol=1e-5)
    found = losses.attention(scale * student, teacher)
    assert float(found) == pytest.approx(float(losses.attention(student, teacher)), rel=1e-4)
    assert float(losses.attention(scale * student, student)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("ours", "theirs"), [((4, 4), (4, 4)), ((8, 6), (4, 3)), ((3, 3), (5, 7))])
def test_attention_averages_over_batch_and_positions(ours: tuple[int, int], theirs: tuple[int, int]) -> None:
    student, teacher = draw(3, 5, *ours, seed=1), draw(3, 2, *theirs, seed=2)
    size = min(ours[0], theirs[0]), min(ours[1], theirs[1])
    maps = [attention_map(pooled(array(x), *size)) for x in (student, teacher)]
    expected = np.mean((maps[0] - maps[1]) ** 2)
    found = float(losses.attention(student, teacher))
    assert found == pytest.approx(expected, rel=1e-4)
    # Not the norm of the difference, with which it is sometimes written.
    assert found < 0.1 * np.mean(np.sqrt(np.sum((maps[0] - maps[1]) ** 2, 1)))


def test_attention_is_largest_for_disjoint_maps() -> None:
    student, teacher = torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2)
    student[0, 0, 0, 0], teacher[0, :, 1, 1] = 1, 5
    assert float(losses.attention(student, teacher)) == pytest.approx(2 / 4, rel=1e-6)


def test_descending_each_term_moves_what_it_names() -> None:
    x, target = draw(2, 3, 4, 4, seed=1), draw(2, 3, 4, 4, seed=2)
    for term in (losses.hint, losses.relative_error):
        moved = descend(lambda v, term=term: term(v, target), x, 0.5)
        assert ((moved - target).abs() <= (x - target).abs()).all()

    def difference(v: Tensor) -> float:
        return float(np.sum((attention_map(array(v)) - attention_map(array(target))) ** 2))

    moved = descend(lambda v: losses.attention(v, target), x, 1.0)
    assert difference(moved) < difference(x)
    other, other_target = draw(2, 5, 4, 4, seed=3), draw(2, 5, 4, 4, seed=4)

    def distance(v: Tensor) -> float:
        return float(np.abs(gram(array(v), array(other)) - gram(array(target), array(other_target))).sum())

    moved = descend(lambda v: losses.fsp((v, other), (target, other_target)), x, 1.0)
    assert distance(moved) < distance(x)
