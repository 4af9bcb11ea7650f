"""Recipes from text: YAML to a `Recipe`, overrides, and what is said about mistakes, all of them at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dfqkit.config.files import find_recipe
from dfqkit.config.image_of_model import filled
from dfqkit.config.recipe import Recipe
from dfqkit.config.section import OneOf, Section
from dfqkit.config.yaml_text import DEEPEST, read_yaml
from dfqkit_export.errors import RecipeError
from dfqkit_export.words import did_you_mean


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        name: A path or the name of a shipped recipe.
        overrides: ``section.key=value``, the value typed as in YAML.

    Raises:
        RecipeError: For unreadable YAML, unknown keys (with the nearest), wrong values; all of them at once.
    """
    path = find_recipe(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"Cannot read recipe '{path}': {error}. A recipe is a YAML file in UTF-8."
        raise RecipeError(message) from error
    return parse_recipe(text, str(path), overrides).found_in(path.resolve().parent)


def parse_recipe(text: str, where: str, overrides: Sequence[str] = ()) -> Recipe:
    """Validate the text of a recipe; ``where`` names it in errors."""
    return recipe_from(read_yaml(text, f"Recipe '{where}'"), where, overrides)


def recipe_from(data: object, where: str, overrides: Sequence[str] = ()) -> Recipe:
    """Validate a recipe's sections; ``where`` names it in errors, and all errors are said at once."""
    if not isinstance(data, dict):
        message = f"Recipe '{where}' must be a mapping of sections, found {type(data).__name__}."
        raise RecipeError(message)
    overridden(data, overrides)
    filled(data, where)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        given = f" with {' '.join(f'--set {override}' for override in overrides)}" if overrides else ""
        lines = [f"Recipe '{where}'{given} is not valid:", *map(_explained, _mistakes(error))]
        message = "\n".join([*lines, "`dfqkit recipe schema` prints everything that a recipe may hold."])
        raise RecipeError(message) from error


def overridden(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set values in a recipe's sections, in place; each is ``section.key=value``, the value typed as in YAML."""
    for override in overrides:
        _override(data, override)
    return data


def _override(data: dict[str, Any], override: str) -> None:
    path, separator, value = override.partition("=")
    *parents, leaf = path.split(".")
    if not separator or not path or len(parents) > DEEPEST:
        message = f"--set takes section.key=value, found {_shown(override)}. Example: --set distill.steps=200"
        raise RecipeError(message)
    section = data
    for depth, part in enumerate(parents, 1):
        inner = section.setdefault(part, {})
        if inner is None:
            inner = section[part] = {}
        if not isinstance(inner, dict):
            message = (
                f"--set {override}: '{part}' is a value ({_shown(inner)}), not a section. "
                f"Set it whole: --set {'.'.join(parents[:depth])}=..."
            )
            raise RecipeError(message)
        section = inner
    section[leaf] = read_yaml(value, f"--set {override}: the value")


def _mistakes(error: ValidationError) -> list[ErrorDetails]:
    """Return all mistakes but that of a list which is short only because items of it are wrong."""
    found = error.errors()
    around = {item["loc"][:depth] for item in found for depth in range(len(item["loc"]))}
    return [item for item in found if item["type"] != "too_short" or item["loc"] not in around]


def _explained(item: ErrorDetails) -> str:
    """Return one line for one mistake: path, value, what is allowed, the nearest key."""
    path, allowed = _followed(item["loc"])
    where, kind, found = ".".join(path) or "recipe", item["type"], f"(found {_shown(item['input'])})"
    if kind == "extra_forbidden":
        return f"  {where}: unknown key.{did_you_mean(path[-1], allowed)} Allowed here: {', '.join(allowed)}."
    if kind == "missing":
        return f"  {where}: is missing"
    if kind in ("model_type", "model_attributes_type"):
        return f"  {where}: must be a section, keys with values {found}"
    if kind in ("tuple_type", "list_type"):
        return f"  {where}: must be a list{' of sources' * (path[-1] == 'sources')} {found}"
    if kind == "value_error":
        return f"  {where}: {item['ctx']['error']}"
    return f"  {where}: {re.sub('^(Input|Tuple) should', 'must', item['msg'])} {found}"


def _shown(value: object, length: int = 80) -> str:
    """Return a value as it is written in Python, cut after ``length`` characters."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def _followed(place: Sequence[str | int]) -> tuple[list[str], list[str]]:
    """Return where a mistake is, as a recipe writes it, and the keys that the section around it may have.

    Args:
        place: pydantic's: keys and indices, and a member's name behind the key of what is one of several sections.
    """
    path: list[str] = []
    around: type[Section] | None = None
    fitting: dict[str | None, type[Section]] = {None: Recipe}
    for part in place:
        if isinstance(part, str) and part in fitting:
            fitting = {None: fitting[part]}
            continue
        path.append(str(part))
        if isinstance(part, str):
            around = fitting.get(None)
            named = {field.alias or name: field for name, field in (around.model_fields if around else {}).items()}
            fitting = _sections(named[part].annotation, *named[part].metadata) if part in named else {}
    return path, [field.alias or name for name, field in (around.model_fields if around else {}).items()]


def _sections(annotation: Any, *marks: Any) -> dict[str | None, type[Section]]:
    """Return the section that an annotation holds, or each of several by its name."""
    union = next((mark for mark in marks if isinstance(mark, OneOf)), None)
    if union is not None:
        found: dict[str | None, type[Section]] = {}
        found.update(union.members())
        return found
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {None: annotation}
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _sections(*inner)
    return next((found for part in inner if (found := _sections(part))), {})
