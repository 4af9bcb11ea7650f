"""The section of a recipe that each synthesizer has, by the names of `methods`.

What belongs here: how names are resolved. Sections import no torch; the class that does the work is named by a section
and imported where one is built (`dfqkit.synthesis.build`).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any

from pydantic import BeforeValidator

from dfqkit.config.methods import GROUP, METHODS, synthesizer_names
from dfqkit.config.section import OneOf, usable
from dfqkit.config.synthesis import SynthesizerConfig
from dfqkit_export.errors import RecipeError
from dfqkit_export.words import did_you_mean


def synthesizer_config(name: str) -> type[SynthesizerConfig]:
    """Return the section of the method called ``name``, or say which there are, or what is wrong with a plugin."""
    known = METHODS if name in METHODS else synthesizer_names()
    if name not in known:
        message = f"Unknown synthesizer '{name}'.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}."
        raise RecipeError(message)
    module, _, attribute = known[name].partition(":")
    repair = f"Repair or remove the package that offers it under the entry point '{GROUP}'."
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # whatever another's module raises when it is imported
        message = f"Synthesizer '{name}' ({known[name]}) cannot be imported: {error}. {repair}"
        raise RecipeError(message) from error
    if not (isinstance(found, type) and issubclass(found, SynthesizerConfig)):
        message = (
            f"Synthesizer '{name}' ({known[name]}) is not a subclass of dfqkit.config.synthesis.SynthesizerConfig: the "
            f"entry point names the section of the recipe. {repair}"
        )
        raise RecipeError(message)
    return found


def synthesizer_configs() -> dict[str, type[SynthesizerConfig]]:
    """Return the sections of all methods by name, sorted; a plugin that is broken is left out with a warning."""
    return usable(synthesizer_names(), synthesizer_config)


def with_method(value: Any) -> Any:
    """Name the method of a section that lists sources and leaves it out."""
    lists = isinstance(value, Mapping) and "sources" in value and "method" not in value
    return {"method": "mixture", **value} if lists else value


#: Any method's section of a recipe.
AnySynthesis = Annotated[
    SynthesizerConfig,
    OneOf("method", synthesizer_configs, synthesizer_config, "dfq", implied="mixture"),
    BeforeValidator(with_method),
]
