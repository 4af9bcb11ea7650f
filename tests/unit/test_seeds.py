"""Streams of random numbers that depend on nothing but their names."""

from __future__ import annotations

import itertools

import torch

from dfqkit.seeds import derive


def draw(*names: str | int) -> tuple[float, ...]:
    return tuple(torch.rand(4, generator=derive(*names)).tolist())  # type: ignore[arg-type]


def test_same_names_same_numbers_on_every_machine() -> None:
    assert draw(0, "dfq") == draw(0, "dfq")
    assert derive(7, "synthesize", 1).initial_seed() == 22058887409807339  # first 7 bytes of sha256("7/synthesize/1")


def test_other_names_other_numbers() -> None:
    names: list[tuple[str | int, ...]] = [
        (0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "a/b"), (0, "a", 1), (0, "a", 2), (0, "a%2Fb"),
    ]  # fmt: skip
    drawn = [draw(*n) for n in names]
    assert all(a != b for a, b in itertools.combinations(drawn, 2))


def test_the_global_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    draw(3, "x")
    assert torch.equal(before, torch.get_rng_state())
