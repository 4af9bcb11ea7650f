"""What a comparison consists of: recipes that differ in their synthesis section, brought to one cost, bits by seeds.

What belongs here: which cells there are, and the recipe of each. A cell's recipe is a whole one: its folder is a run
like any other, which `dfqkit validate` can prove in full.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dfqkit_export.errors import RecipeError

from ..recipe import Recipe, list_recipes, load_recipe, parse_recipe
from ..registry import synthesizer
from ..synthesis.base import Demand

Mode = Literal["calibration", "distilled"]

_GRAMMAR = re.compile(r"-w\d+a\d+(-[a-z]+)*$")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of the grid.

    Attributes:
        contestant: short name of the recipe.
        bits: of the student.
        seed: of the run.
        mode: whether the student was distilled after calibration.
    """

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
        contestants: recipes by short name; the same teacher, images, target and data.
        bits: schemes, e.g. ("w8a8", "w4a4").
        seeds: one synthesis each for every contestant.
        passes: teacher forward+backward image passes that a synthesis may take; None for what each recipe says.
        images: images that calibrate; a quarter as many are held out.
        distill: the ``distill`` section for distilled cells, or None.
        distilled_bits: schemes that are distilled as well.
    """

    contestants: dict[str, Recipe]
    bits: tuple[str, ...]
    seeds: tuple[int, ...]
    passes: int | None
    images: int
    distill: dict[str, Any] | None = None
    distilled_bits: tuple[str, ...] = ()

    def calibrated(self) -> list[Cell]:
        """Cells that need a synthesis and a calibration."""
        return [
            Cell(contestant=name, bits=bits, seed=seed, mode="calibration")
            for seed in self.seeds
            for name in self.contestants
            for bits in self.bits
        ]

    def distilled(self, contestants: Sequence[str]) -> list[Cell]:
        """Cells that go on from those, for these contestants."""
        return [
            Cell(contestant=name, bits=bits, seed=seed, mode="distilled")
            for seed in self.seeds
            for name in contestants
            for bits in self.distilled_bits
        ]

    def synthesis_recipe(self, contestant: str, seed: int) -> Recipe:
        """The recipe of the synthesis that all cells of a contestant and a seed share.

        Methods that need a student before there is one play against the scheme with the fewest bits.
        """
        lowest = min(self.bits, key=lambda bits: [int(part) for part in re.findall(r"\d+", bits)])
        return self._recipe(contestant, lowest, seed, "synthesis", None)

    def recipe(self, cell: Cell) -> Recipe:
        """The recipe of a cell."""
        distill = self.distill if cell.mode == "distilled" else None
        return self._recipe(cell.contestant, cell.bits, cell.seed, f"{cell.bits}-{cell.mode}", distill)

    def _recipe(self, contestant: str, bits: str, seed: int, suffix: str, distill: dict[str, Any] | None) -> Recipe:
        base = self.contestants[contestant]
        data = base.model_dump(mode="json", by_alias=True)
        held_out = max(32, self.images // 4)
        data |= {"name": f"{base.name}/bench-{suffix}", "why": "a cell of a comparison", "seed": seed, "floors": []}
        data |= {"distill": distill, "quant": data["quant"] | {"bits": bits}}
        data["bank"] |= {"calibration": self.images, "training": None, "held_out": held_out, "grading": 0}
        data["validate"]["latency_repeats"] = 0
        recipe = parse_recipe(_as_yaml(data), f"the cell of {base.name}").found_in(base.directory)
        if self.passes is None:
            return recipe
        config: Any = recipe.synthesis
        sized = synthesizer(config.method).at_cost(config, self.passes, Demand(training=self.images, fresh=held_out))
        return recipe.model_copy(update={"synthesis": sized}).found_in(base.directory)


def contestants(patterns: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """Recipes by short name, from names of shipped ones, patterns of them (``digits/*-w8a8-ort``), and files.

    Raises:
        RecipeError: for a pattern that fits nothing, and for recipes that cannot be compared.
    """
    shipped = list(list_recipes())
    names: list[str] = []
    for pattern in patterns:
        found = fnmatch.filter(shipped, pattern) if any(sign in pattern for sign in "*?[") else [pattern]
        if not found:
            message = f"No shipped recipe fits '{pattern}'. Shipped: {', '.join(shipped)}."
            raise RecipeError(message)
        names += [name for name in found if name not in names]
    recipes = [load_recipe(name, overrides) for name in names]
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
    for recipe in recipes[1:]:
        for section in ("teacher", "image", "target", "validation", "student"):
            ours, theirs = getattr(first, section, None), getattr(recipe, section, None)
            if ours != theirs:
                message = (
                    f"Recipes '{first.name}' and '{recipe.name}' differ in their section "
                    f"'{section.replace('validation', 'validate')}', so their numbers could not be compared. Compare "
                    "recipes that differ in synthesis only."
                )
                raise RecipeError(message)


def _as_yaml(data: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(data, sort_keys=False)
