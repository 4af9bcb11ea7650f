"""Loss weights of every method: all 0 would be noise that nobody asked for."""

from __future__ import annotations

import pytest

from dfqkit.config.reading import load_recipe
from dfqkit.config.registry import synthesizer_configs
from dfqkit.config.synthesis import LossWeights
from dfqkit_export.errors import RecipeError

WEIGHTED = [name for name, kind in synthesizer_configs().items() if "weights" in kind.model_fields]


def test_there_are_such_methods() -> None:
    assert {"cmi", "dafl", "deepinversion", "deepinversion-adaptive", "dfq", "genie", "zeroq"} <= set(WEIGHTED)


@pytest.mark.parametrize("name", WEIGHTED)
def test_all_0_is_refused_and_one_is_enough(name: str) -> None:
    kind = synthesizer_configs()[name].model_fields["weights"].annotation
    assert isinstance(kind, type)
    assert issubclass(kind, LossWeights)
    required = [key for key, field in synthesizer_configs()[name].model_fields.items() if field.is_required()]
    head = ", ".join([f"method: {name}", *(f"{key}: given" for key in required if key != "method")])
    terms = ", ".join(f"{term}: 0" for term in kind.model_fields)
    with pytest.raises(RecipeError, match=r"synthesis\.weights: all are 0, .*or use method noise"):
        load_recipe("digits/dfq-w8a8-ort", [f"synthesis={{{head}, weights: {{{terms}}}}}"])
    first = next(iter(kind.model_fields))
    load_recipe(
        "digits/dfq-w8a8-ort",
        [f"synthesis={{{head}, weights: {{{terms.replace(f'{first}: 0', f'{first}: 0.5', 1)}}}}}"],
    )
