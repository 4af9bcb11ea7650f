"""What files and reports must say of how they were made: recipe, seed, versions, and what speaks against them.

What belongs here: facts of the recipe and of the teacher. What a finished run found out is `provenance`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dfqkit.config.files import find_file
from dfqkit_export.env import environment
from dfqkit_export.errors import RecipeError
from dfqkit_export.images import TORCHVISION
from dfqkit_export.tasks import metadata_of

if TYPE_CHECKING:
    from dfqkit.config.quant import QuantConfig
    from dfqkit.config.recipe import Recipe
    from dfqkit.config.synthesis import SynthesizerConfig
    from dfqkit.run.context import Context


def file_metadata(context: Context, scheme: QuantConfig) -> dict[str, str]:
    """Return what a written student of a scheme, and the teacher beside it, say about themselves."""
    recipe, teacher = context.recipe, context.teacher
    metadata = {
        "dfqkit.recipe": recipe.name,
        "dfqkit.recipe_sha256": recipe.digest(),
        "dfqkit.seed": str(recipe.seed),
        "dfqkit.synthesizer": context.synthesis.method,
        "dfqkit.teacher": teacher.name,
        "dfqkit.teacher_sha256": teacher.sha256,
        "dfqkit.target": recipe.target,
        "dfqkit.quant": json.dumps(scheme.model_dump(mode="json"), sort_keys=True),
        "dfqkit.image": json.dumps(teacher.image.to_dict(), sort_keys=True),
        **metadata_of(teacher.task),
        **{f"dfqkit.version.{name}": str(version) for name, version in environment()["packages"].items()},
    }
    if warnings := warnings_of(recipe):
        metadata["dfqkit.warnings"] = json.dumps(warnings)
    if recipe.student is not None:
        metadata["dfqkit.student"] = recipe.student.factory
    return metadata


def warnings_of(recipe: Recipe) -> tuple[str, ...]:
    """Return what a report on the result must open with: of its sources, and images that both make and measure."""
    config = resolved(recipe)
    found = config.warnings()
    if any(measured_on(recipe, place) for place in _places(recipe)):
        found += (
            f"validate.data is '{recipe.validation.data}', which the synthesis section names too: accuracy was "
            "measured on images that took part in making the result, so it says little about others.",
        )
    return found


def measured_on(recipe: Recipe, source: str | Path) -> bool:
    """Return whether images come from where a recipe measures (``validate.data``), however the two are written.

    A source is a path, or ``torchvision:NAME:ROOT``.
    """
    data = recipe.validation.data
    if data is None:
        return False
    if str(source) == data:
        return True
    (kind, first), (other, second) = _parted(str(source)), _parted(data)
    try:
        if kind:
            return kind == other and Path(first).samefile(second)
        return not other and find_file(first, recipe.directory).samefile(find_file(second, recipe.directory))
    except (RecipeError, OSError):
        return False  # one of them is not there


def _parted(source: str) -> tuple[str, str]:
    """Name and root of a torchvision data set, or nothing and the path."""
    kind, _, root = source.removeprefix(TORCHVISION).partition(":")
    return (kind, root) if source.startswith(TORCHVISION) else ("", source)


def resolved(recipe: Recipe) -> SynthesizerConfig:
    """Return the synthesis section, its files found; a name stays where there is no such file any more."""

    def find(name: str) -> str:
        try:
            return str(find_file(name, recipe.directory))
        except RecipeError:
            return name

    config = recipe.synthesis
    return config.resolved(find)


def _places(recipe: Recipe) -> list[str]:
    """Return every file, folder and torchvision data set that the synthesis section names."""
    return [*recipe.synthesis.files(), *recipe.synthesis.resolved(str).data_sets().values()]
