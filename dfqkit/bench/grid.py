"""What a comparison consists of: recipes that differ in their synthesis section, brought to one cost, bits by seeds.

What belongs here: which trials there are, and the recipe of each. A trial's recipe is a whole one, and its folder a run
that `dfqkit run --only validate` can prove in full; but its images are those of the comparison: methods that need a
student before there is one made them against the scheme with the fewest bits, whatever the trial's own.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dfqkit.config.files import find_file, list_recipes
from dfqkit.config.reading import load_recipe, recipe_from
from dfqkit.config.recipe import Recipe
from dfqkit.config.synthesis import Demand
from dfqkit_export.errors import RecipeError
from dfqkit_export.files import sha256_of_file
from dfqkit_export.images import TORCHVISION

Mode = Literal["calibration", "distilled"]

_GRAMMAR = re.compile(r"-w\d+a\d+(-[a-z]+)*$")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One entry of the grid: a contestant, its student's bits, the run's seed, and whether it was distilled."""

    contestant: str
    bits: str
    seed: int
    mode: Mode

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.contestant}/{self.bits}-{self.mode}-s{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A comparison.

    Attributes:
        contestants: Recipes by short name; the same teacher, images, target and data.
        bits: Schemes, e.g. ("w8a8", "w4a4").
        passes: Teacher forward+backward image passes that a synthesis may take; None for what each recipe says.
        images: Images that calibrate; a quarter as many are held out.
        distilled_bits: Schemes that are distilled as well, by the ``distill`` section.
    """

    contestants: dict[str, Recipe]
    bits: tuple[str, ...]
    seeds: tuple[int, ...]
    passes: int | None
    images: int
    distill: dict[str, Any] | None = None
    distilled_bits: tuple[str, ...] = ()

    def calibrated(self) -> list[Trial]:
        """Return the trials that need a synthesis and a calibration."""
        return self._trials(self.contestants, self.bits, "calibration")

    def distilled(self, contestants: Sequence[str]) -> list[Trial]:
        """Return the trials that go on from those, for these contestants."""
        return self._trials(contestants, self.distilled_bits, "distilled")

    def _trials(self, contestants: Iterable[str], schemes: Sequence[str], mode: Mode) -> list[Trial]:
        every = itertools.product(self.seeds, contestants, schemes)
        return [Trial(contestant=name, bits=bits, seed=seed, mode=mode) for seed, name, bits in every]

    def synthesis_recipe(self, contestant: str, seed: int) -> Recipe:
        """Return the recipe of the synthesis that all trials of a contestant and a seed share."""
        base = self.contestants[contestant]
        bits = base.quant.bits
        if "student" in base.synthesis.needed:
            bits = min(self.bits, key=lambda scheme: [int(part) for part in re.findall(r"\d+", scheme)])
        return self._recipe(contestant, bits, seed, "synthesis", None)

    def recipe(self, trial: Trial) -> Recipe:
        """Return the recipe of a trial."""
        distill = self.distill if trial.mode == "distilled" else None
        return self._recipe(trial.contestant, trial.bits, trial.seed, f"{trial.bits}-{trial.mode}", distill)

    def _recipe(self, contestant: str, bits: str, seed: int, suffix: str, distill: dict[str, Any] | None) -> Recipe:
        base = self.contestants[contestant]
        data = base.model_dump(mode="json", by_alias=True)
        held_out = max(32, self.images // 4)
        data |= {"name": f"{base.name}/bench-{suffix}", "why": "a cell of a comparison", "seed": seed, "floors": []}
        data |= {"distill": distill, "quant": data["quant"] | {"bits": bits}}
        data["bank"] |= {"calibration": self.images, "training": None, "held_out": held_out, "grading": 0}
        data["validate"]["latency_repeats"] = 0
        recipe = recipe_from(data, f"the cell of {base.name}").found_in(base.directory)
        if self.passes is None:
            return recipe
        sized = recipe.synthesis.at_cost(self.passes, Demand(training=self.images, fresh=held_out))
        return recipe.model_copy(update={"synthesis": sized}).found_in(base.directory)


def contestants(
    patterns: Sequence[str], overrides: Sequence[str] = (), read: Callable[[str, Sequence[str]], Recipe] = load_recipe
) -> dict[str, Recipe]:
    """Return recipes by short name: of shipped ones, patterns of them (``digits/*-w8a8-ort``), and files."""
    shipped = list(list_recipes())
    names: list[str] = []
    for pattern in patterns:
        found = fnmatch.filter(shipped, pattern) if any(sign in pattern for sign in "*?[") else [pattern]
        if not found:
            message = f"No shipped recipe fits '{pattern}'. Shipped: {', '.join(shipped)}."
            raise RecipeError(message)
        names += [name for name in found if name not in names]
    recipes = [read(name, overrides) for name in names]
    twice = [name for name, times in Counter(recipe.name for recipe in recipes).items() if times > 1]
    if twice:
        message = f"Two of the recipes are called '{twice[0]}' (`name`), so their rows could not be told apart."
        raise RecipeError(message)
    _require_comparable(recipes)
    short = [_GRAMMAR.sub("", recipe.name.rpartition("/")[2]) for recipe in recipes]
    count = Counter(short)
    return {
        (name if count[name] == 1 else recipe.name.replace("/", "-")): recipe
        for name, recipe in zip(short, recipes, strict=True)
    }


def _require_comparable(recipes: Sequence[Recipe]) -> None:
    first = recipes[0]
    if first.validation.data is None:
        message = (
            f"Recipe '{first.name}' names no labelled images (validate.data), and a comparison measures accuracy. Set "
            "it, e.g. with --set validate.data=test.npz."
        )
        raise RecipeError(message)
    ours = _shared(first)
    for recipe in recipes[1:]:
        for section, theirs in _shared(recipe).items():
            if ours[section] != theirs:
                message = (
                    f"Recipes '{first.name}' and '{recipe.name}' differ in '{section}', so their numbers could not be "
                    "compared. Compare recipes that differ in synthesis only."
                )
                raise RecipeError(message)


def _shared(recipe: Recipe) -> dict[str, Any]:
    """Return what must be the same in all contestants, files by what is in them, wherever they are found."""
    return {
        "teacher": (recipe.teacher.factory, recipe.teacher.args, _place(recipe.teacher.weights, recipe)),
        "image": recipe.image,
        "target": recipe.targets,
        "validate": (recipe.validation.model_copy(update={"data": None}), _place(recipe.validation.data, recipe)),
        "student": recipe.student,
        "quant": recipe.quant.model_copy(update={"bits": "w8a8"}),
    }


def _place(name: str | None, recipe: Recipe) -> str | None:
    if name is None or name.startswith(TORCHVISION):
        return name
    try:
        found = find_file(name, recipe.directory).resolve()
        return sha256_of_file(found) if found.is_file() else str(found)
    except RecipeError:
        return name  # it is said where the file is opened
