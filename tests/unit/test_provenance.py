"""What a report warns of, before any number."""

from __future__ import annotations

import pytest

from dfqkit.recipe import load_recipe
from dfqkit.run.provenance import warnings_of


def found(synthesis: str, data: str = "null") -> tuple[str, ...]:
    return warnings_of(load_recipe("digits/dfq-w8a8-ort", [f"synthesis={synthesis}", f"validate.data={data}"]))


def test_most_recipes_warn_of_nothing() -> None:
    assert found("{method: dfq}", "test.npz") == ()
    assert found("{method: images, path: others.npz}", "test.npz") == ()


def test_noise_warns_whole_and_in_part() -> None:
    (whole,) = found("{method: noise, accept_noise: true}")
    assert whole.startswith("Random noise took the place of images")
    (part,) = found("{sources: [{method: dfq, share: 3}, {method: noise, accept_noise: true}]}")
    assert part == f"25 % of the images: {whole}"


@pytest.mark.parametrize(
    "synthesis", ["{method: images, path: test.npz}", "{sources: [{method: dfq}, {method: images, path: test.npz}]}"]
)
def test_images_that_both_make_and_measure_are_named(synthesis: str) -> None:
    (warning,) = found(synthesis, "test.npz")
    assert "validate.data is 'test.npz', which the synthesis section names too" in warning
    assert found(synthesis) == ()
