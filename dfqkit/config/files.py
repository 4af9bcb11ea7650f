"""Where recipes, and the files that they name, are found."""

from __future__ import annotations

import os
import shlex
from importlib.resources import files
from pathlib import Path

from dfqkit_export.errors import RecipeError
from dfqkit_export.words import did_you_mean, nearest

#: Endings of files with a whole network, and what stands in front of such a file where a factory is named.
WHOLE = {".onnx": "onnx", ".pt2": "exported"}
#: Endings of files with the weights of a network.
CHECKPOINTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def library() -> Path:
    """Return the folder of shipped recipes: package data where installed, beside the package in a checkout."""
    installed = Path(str(files("dfqkit"))) / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"


def list_recipes() -> dict[str, Path]:
    """Shipped recipes by name."""
    root = library()
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.glob("*/*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe: a path, or a name in the shipped library, with or without ``.yaml``."""
    path = Path(name)
    for candidate in (path, Path(f"{name}.yaml")):
        if candidate.is_file():
            _require_no_network(candidate)
            return candidate
    shipped = list_recipes()
    key = str(name).removesuffix(".yaml")
    if key in shipped:
        return shipped[key]
    if (path / "manifest.json").is_file():
        message = f"'{name}' is the folder of a run, not a recipe. Continue it with `dfqkit run --resume {name}`."
        raise RecipeError(message)
    near = nearest(key, shipped, 5, 0.4)[1:]
    others = f" Others like it: {', '.join(near)}." if near else ""
    looked = path if path.suffix == ".yaml" else f"{path} and {path}.yaml"
    message = (
        f"No recipe '{name}': neither a file (looked for {looked}) nor a shipped recipe."
        f"{did_you_mean(key, shipped)}{others} `dfqkit list recipes` shows all {len(shipped)}."
    )
    raise RecipeError(message)


def _require_no_network(path: Path) -> None:
    """Refuse a file of a network in a recipe's place, and say the command that takes it."""
    suffix = path.suffix.lower()
    if suffix not in (*WHOLE, *CHECKPOINTS):
        return
    shape = "--shape C,H,W --mean M,... --std S,..."
    what, more = ("an ONNX file", "--mean M,... --std S,...") if suffix == ".onnx" else ("an exported network", shape)
    if suffix in CHECKPOINTS:
        what, more = "a checkpoint", f"--factory my_model.py:build {shape}"
    message = f"'{path}' is {what}, not a recipe. Quantize it with `dfqkit quantize {shlex.quote(str(path))} {more}`"
    if suffix in CHECKPOINTS:
        message += ", where build() in my_model.py makes the network; or --factory timm:NAME or torchvision:NAME"
    message = f"{message}. Of a classifier add --classes N."
    raise RecipeError(message)


def allowed_folders(recipe_dir: Path | None) -> list[Path]:
    """Return where a recipe's files are looked up: beside it, and under ``DFQKIT_ASSETS``."""
    assets = os.environ.get("DFQKIT_ASSETS")
    return [folder for folder in (recipe_dir, Path(assets) if assets else None) if folder is not None]


def find_file(name: str, recipe_dir: Path | None) -> Path:
    """Return a file that a recipe names: absolute, beside the recipe, then under ``DFQKIT_ASSETS``."""
    absolute, assets = Path(name).is_absolute(), os.environ.get("DFQKIT_ASSETS")
    places = [Path(name)] if absolute else [folder / name for folder in allowed_folders(recipe_dir)]
    for place in places:
        if place.exists():
            return place
    message = f"The recipe names '{name}', which does not exist (looked at {', '.join(map(str, places)) or 'nothing'})."
    beside = [path.name for place in places if place.parent.is_dir() for path in place.parent.iterdir()]
    message += did_you_mean(Path(name).name, beside)
    if not absolute and Path(name).exists():
        message += f" There is one in the current folder: name it in full, {Path(name).resolve()}."
    elif not absolute and not assets:
        message += " DFQKIT_ASSETS is not set: set it to the folder that holds the file, or name the file in full."
    else:
        message += " Put it there, or name another one in full (with --set, for one run)."
    raise RecipeError(message)
