"""The space that a run asks for is that of the images it makes."""

from __future__ import annotations

from dfqkit.config.reading import load_recipe
from dfqkit.run.synthesize import STAGE


def test_a_source_that_makes_a_set_asks_for_no_room_beyond_it() -> None:
    recipe = load_recipe(
        "digits/zeroq-w8a8-ort",
        ["bank={calibration: 64, held_out: 16, grading: 32}", "image.shape=[1, 416, 416]", "distill=null"],
    )
    batch = recipe.synthesis.model_dump()["batch"]
    assert STAGE.plan(recipe).size == 416 * 416 * (64 + 16 + 32 + 2 * (64 + batch))
    mixed = load_recipe("nanodet-m/objects-w8a8-ort")
    assert STAGE.plan(mixed).size < 1e9
