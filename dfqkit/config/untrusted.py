"""What a recipe from a stranger may ask for: nothing that runs other code, and no file but those it came with.

What belongs here: the check behind `--untrusted`. Methods, tasks and targets of installed packages are what the user
installed, and the compute that a recipe asks for is not limited.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfqkit.config.files import allowed_folders, find_file
from dfqkit.config.recipe import Recipe
from dfqkit_export.errors import RecipeError
from dfqkit_export.images import TORCHVISION

#: Before a file that holds numbers and operators, and no code.
_FILE = "onnx:"
#: Factories that make an architecture and do nothing else.
ALLOWED = ("dfqkit.models:", "torchvision:", "timm:", _FILE)


def require_harmless(recipe: Recipe) -> None:
    """Refuse a recipe that calls code outside the allow-list, or reads files from elsewhere.

    Raises:
        RecipeError: A factory is none of `ALLOWED` or is given more than numbers; a file is not one beside the recipe
            or under DFQKIT_ASSETS, links resolved; images come through torchvision, which unpickles some of its sets.
    """
    values = recipe.model_dump(by_alias=True)
    for where, section in _sections(values, ""):
        factory = section.get("factory")
        if isinstance(factory, str) and not factory.startswith(ALLOWED):
            _refuse(f"{where}.factory is '{factory}', which may run any code; allowed are {', '.join(ALLOWED)}")
        for key, value in (section.get("args") or {}).items():
            if not _plain(value):
                _refuse(f"{where}.args.{key} is {value!r:.80}; a factory may be given numbers, true and false")
    data = recipe.validation.data
    for where, value in {"validate.data": str(data), **recipe.synthesis.data_sets()}.items():
        if value.startswith(TORCHVISION):
            _refuse(f"{where} is '{value}', and torchvision unpickles some data sets; allowed are .npz, .zip, folders")
    start = values["student"]["start"] if values.get("student") else None
    from dfqkit_export.images.label_kinds import is_kind  # numpy

    places = str(data).split(":", 2)[1:] if data is not None and is_kind(str(data)) else [data]
    network = recipe.teacher.factory.partition(_FILE)[2] if recipe.teacher.factory.startswith(_FILE) else None
    for name in filter(None, (recipe.teacher.weights, start, network, *places)):
        _require_near(str(name), recipe)
    recipe.synthesis.resolved(lambda name: _require_near(name, recipe))


def _require_near(name: str, recipe: Recipe) -> str:
    """Return a file's name where it lies in one of the recipe's own folders, or nowhere yet."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        _refuse(f"it names the file '{name}', outside of its own folder")
    try:
        found = find_file(name, recipe.directory).resolve()
    except RecipeError:
        return name  # what is not there cannot be read; whoever needs it says so
    if not any(found.is_relative_to(folder.resolve()) for folder in allowed_folders(recipe.directory)):
        _refuse(f"the file '{name}' is a link to '{found}', outside of its own folder")
    return name


def _sections(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield where or "recipe", value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in parts:
        yield from _sections(part, f"{where}.{key}" if where else str(key))


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float)


def _refuse(what: str) -> None:
    message = (
        f"The recipe is not taken under --untrusted: {what}. Read it; then give it without --untrusted if you trust "
        "it, or change it."
    )
    raise RecipeError(message)
