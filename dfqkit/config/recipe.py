"""Recipes: typed, closed, versioned YAML, from a file or from the shipped library.

What belongs here: the schema of a recipe, where one is looked up, and overrides. What its sections mean is
documented on the configuration classes they are made of.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from dfqkit.config.recipe_errors import explain, shown
from dfqkit_export.backends import DEFAULT, DEFAULT_TARGET, get_target
from dfqkit_export.errors import RecipeError
from dfqkit_export.words import did_you_mean

if TYPE_CHECKING:
    from dfqkit_export.images.spec import ImageSpec

SCHEMA = 1


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class TeacherSection(_Section):
    """Which network, and its weights."""

    factory: str = Field(description="torchvision:NAME, timm:NAME or package.module:factory.")
    weights: str | None = Field(None, description="State dict (.safetensors, .pt, .pth); null keeps random weights.")
    args: dict[str, Any] = Field(default_factory=dict, description="Further keyword arguments of the factory.")

    @field_validator("args")
    @classmethod
    def _sorted(cls, value: dict[str, Any]) -> dict[str, Any]:
        return dict(sorted(value.items()))  # their order means nothing, and must not change the digest


class ImageSection(_Section):
    """What images the network takes."""

    shape: tuple[int, int, int] = Field(description="(C, H, W).")
    mean: tuple[float, ...] = Field(description="Per channel, on [0, 1].")
    std: tuple[float, ...] = Field(description="Per channel, on [0, 1].")
    classes: int = Field(ge=2)

    def spec(self) -> ImageSpec:
        """The same as an `ImageSpec`."""
        from dfqkit_export.images.spec import ImageSpec  # numpy; not needed to list recipes

        return ImageSpec(shape=self.shape, mean=self.mean, std=self.std, classes=self.classes)


class BankSection(_Section):
    """How many synthetic images are kept, and for what."""

    calibration: int = Field(1024, ge=1, description="Images that find ranges and correct biases.")
    training: int | None = Field(
        None, ge=1, description="Images that methods which make a set make to train on; null: as many as calibration."
    )
    held_out: int = Field(512, ge=1, description="Images that choose the state that is kept; never trained on.")
    grading: int = Field(
        1024,
        ge=0,
        description="Images of a separate synthesizer that grade the result; 0: only validate.data grades.",
    )
    batch: int = Field(128, ge=1, description="Images a forward pass in calibration and validation.")


class ValidateSection(_Section):
    """What the result is measured on."""

    data: str | None = Field(
        None, description="Labelled images: .npz, class folders, .zip with labels.csv, torchvision:NAME:ROOT; or null."
    )
    resize: int | None = Field(None, ge=1, description="Shorter side, bicubic, before the crop.")
    crop: int | None = Field(None, ge=1, description="Centre crop.")
    limit: int | None = Field(None, ge=1, description="Only so many images, evenly spread.")
    latency_repeats: int = Field(30, ge=0, description="Timed runs of each file, interleaved; 0 measures none.")


class FloorSection(_Section):
    """The worst value a metric may have; on the wrong side the verdict is ``failed``."""

    metric: str
    subject: str = DEFAULT.name
    value: float
    data: Literal["", "real", "synthetic"] = Field("", description="Images that it is about; empty for all.")
    needs_labels: bool = Field(False, description="Left out where validate.data is null.")


class Recipe(_Section):
    """One result the project stands behind: everything that decides it."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: str
    why: str = Field(description="One sentence for the catalogue.")
    seed: int = Field(0, ge=0)
    teacher: TeacherSection
    image: ImageSection
    target: str = DEFAULT_TARGET.name
    synthesis: SerializeAsAny[BaseModel]
    bank: BankSection = BankSection()
    student: SerializeAsAny[BaseModel] | None = None
    quant: SerializeAsAny[BaseModel] = Field(default_factory=lambda: _quant_config()())
    distill: SerializeAsAny[BaseModel] | None = None
    validation: Annotated[ValidateSection, Field(alias="validate")] = ValidateSection()
    floors: tuple[FloorSection, ...] = ()
    _directory: Path | None = PrivateAttr(None)

    @property
    def directory(self) -> Path | None:
        """The folder that the recipe came from, where files it names are looked up first."""
        return self._directory

    def found_in(self, directory: Path | None) -> Recipe:
        """The same recipe, its files looked up beside ``directory`` first."""
        recipe = self.model_copy()
        recipe._directory = directory
        return recipe

    @field_validator("synthesis", mode="before")
    @classmethod
    def _synthesis(cls, value: Any) -> Any:
        from dfqkit.config.registry import synthesizer_config

        if isinstance(value, Mapping):
            if "sources" in value and "method" not in value:
                value = {"method": "mixture", **value}
            if "method" not in value:
                message = "needs a method, e.g. method: dfq"
                raise ValueError(message)
            return synthesizer_config(str(value["method"])).model_validate(value)
        return value

    @field_validator("student", mode="before")
    @classmethod
    def _student(cls, value: Any) -> Any:
        from dfqkit.config.student import FloatStudentConfig

        return FloatStudentConfig.model_validate(value) if isinstance(value, Mapping) else value

    @field_validator("quant", mode="before")
    @classmethod
    def _quant(cls, value: Any) -> Any:
        return _quant_config().model_validate(value) if isinstance(value, Mapping) else value

    @field_validator("distill", mode="before")
    @classmethod
    def _distill(cls, value: Any) -> Any:
        from dfqkit.config.distill import DistillConfig

        return DistillConfig.model_validate(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _fits_target(self) -> Recipe:
        quant: Any = self.quant
        distill: Any = self.distill
        target = get_target(self.target)
        if not self.bank.grading and self.validation.data is None:
            message = "bank.grading is 0 and validate.data is null: nothing would grade the result; set one of them"
            raise ValueError(message)
        for bits in (quant.bits, *(distill.partners if distill else ())):
            quant.model_copy(update={"bits": bits}).check(target)
        self.image.spec()
        return self

    def to_yaml(self) -> str:
        """The resolved recipe; loading it gives an equal one."""
        data = self.model_dump(mode="json", by_alias=True)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)

    def digest(self) -> str:
        """sha256 of the resolved recipe, the seed included."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()

    def with_seed(self, seed: int) -> Recipe:
        """The same recipe with another seed."""
        return self.model_copy(update={"seed": seed}).found_in(self._directory)


def _quant_config() -> Any:
    from dfqkit.config.quant import QuantConfig

    return QuantConfig


def library() -> Path:
    """The folder of shipped recipes: package data where installed, beside the package in a checkout."""
    installed = Path(str(files("dfqkit"))) / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"


def list_recipes() -> dict[str, Path]:
    """Shipped recipes by name."""
    root = library()
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.glob("*/*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or a name in the shipped library, with or without ``.yaml``.

    Raises:
        RecipeError: says where it looked, and the nearest name.
    """
    path = Path(name)
    for candidate in (path, Path(f"{name}.yaml")):
        if candidate.is_file():
            return candidate
    shipped = list_recipes()
    key = str(name).removesuffix(".yaml")
    if key in shipped:
        return shipped[key]
    message = (
        f"No recipe '{name}': neither a file (looked for {path} and {path}.yaml) nor a shipped recipe."
        f"{did_you_mean(key, shipped)} Shipped: {', '.join(shipped)}."
    )
    raise RecipeError(message)


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        name: a path or the name of a shipped recipe.
        overrides: ``section.key=value``, the value typed as in YAML.

    Raises:
        RecipeError: for unreadable YAML, unknown keys (with the nearest), wrong values; all of them at once.
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
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        message = f"Recipe '{where}' is not valid YAML: {error}"
        raise RecipeError(message) from error
    if not isinstance(data, dict):
        message = f"Recipe '{where}' must be a mapping of sections, found {type(data).__name__}."
        raise RecipeError(message)
    for override in overrides:
        _override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        given = f" with {' '.join(f'--set {override}' for override in overrides)}" if overrides else ""
        lines = [f"Recipe '{where}'{given} is not valid:", *(explain(item, data) for item in error.errors())]
        message = "\n".join([*lines, "`dfqkit recipe schema` prints everything that a recipe may hold."])
        raise RecipeError(message) from error


def _override(data: dict[str, Any], override: str) -> None:
    path, separator, value = override.partition("=")
    if not separator or not path:
        message = f"--set takes section.key=value, found '{override}'. Example: --set distill.steps=200"
        raise RecipeError(message)
    *parents, leaf = path.split(".")
    section = data
    for part in parents:
        inner = section.setdefault(part, {})
        if inner is None:
            inner = section[part] = {}
        if not isinstance(inner, dict):
            message = (
                f"--set {override}: '{part}' is a value ({shown(inner)}), not a section. "
                f"Set it whole: --set {path[: path.index(part) + len(part)]}=..."
            )
            raise RecipeError(message)
        section = inner
    try:
        section[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        message = f"--set {override}: the value is not valid YAML: {error}"
        raise RecipeError(message) from error


def find_file(name: str, recipe_dir: Path | None) -> Path:
    """A file that a recipe names: absolute, beside the recipe, then under ``DFQKIT_ASSETS``.

    Raises:
        RecipeError: says everywhere it looked.
    """
    absolute, assets = Path(name).is_absolute(), os.environ.get("DFQKIT_ASSETS")
    folders = [recipe_dir, Path(assets) if assets else None]
    places = [Path(name)] if absolute else [folder / name for folder in folders if folder is not None]
    for place in places:
        if place.exists():
            return place
    message = f"The recipe names '{name}', which does not exist (looked at {', '.join(map(str, places)) or 'nothing'})."
    if not absolute and Path(name).exists():
        message += f" There is one in the current folder: name it in full, {Path(name).resolve()}."
    elif not absolute and not assets:
        message += " DFQKIT_ASSETS is not set: set it to the folder that holds the file, or name the file in full."
    else:
        message += " Put it there, or name another one in full (with --set, for one run)."
    raise RecipeError(message)
