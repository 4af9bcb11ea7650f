"""Names of synthesizers, resolved when used: ours from `dfqkit.synthesis`, others' from an entry point."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from dfqkit_export.errors import RecipeError
from dfqkit_export.words import did_you_mean

if TYPE_CHECKING:
    from dfqkit.synthesis.base import Synthesizer

#: Entry point group under which other packages offer synthesizers: ``name = "package.module:Class"``.
GROUP = "dfqkit.synthesizers"


def synthesizer_names() -> dict[str, str]:
    """Every known name with its ``module:Class``; own names win over plugins'."""
    from dfqkit.synthesis import METHODS

    return {point.name: point.value for point in entry_points(group=GROUP)} | METHODS


def synthesizer(name: str) -> type[Synthesizer]:
    """The class called ``name``.

    Raises:
        RecipeError: for an unknown name, with the nearest; for a plugin that is not a synthesizer.
    """
    from dfqkit.synthesis.base import Synthesizer

    known = synthesizer_names()
    if name not in known:
        message = f"Unknown synthesizer '{name}'.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}."
        raise RecipeError(message)
    module, _, attribute = known[name].partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        message = (
            f"Synthesizer '{name}' ({known[name]}) cannot be imported: {error}. Repair or remove the package that "
            f"offers it under the entry point '{GROUP}'."
        )
        raise RecipeError(message) from error
    if not (isinstance(found, type) and issubclass(found, Synthesizer)):
        message = f"Synthesizer '{name}' ({known[name]}) is not a subclass of dfqkit.synthesis.base.Synthesizer."
        raise RecipeError(message)
    return found


def synthesizers() -> dict[str, type[Synthesizer]]:
    """All of them, loaded."""
    return {name: synthesizer(name) for name in sorted(synthesizer_names())}
