"""The ``task`` section: what the network's outputs mean.

What belongs here: the base of every task's section, and which there are. Other packages add tasks under an entry point.
"""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from dfqkit.config.section import OneOf, Section
from dfqkit_export.errors import RecipeError
from dfqkit_export.words import did_you_mean

__all__ = ["GROUP", "AnyTaskSection", "ClassificationSection", "TaskSection", "task_sections"]

#: Entry point group under which other packages offer tasks: ``name = "package.module:SectionClass"``.
GROUP = "dfqkit.tasks"


class TaskSection(Section):
    """Base of every task's section; a recipe may write its name alone where it has no other keys.

    Attributes:
        needs_classes: whether ``image.classes`` must say how many classes there are.
    """

    needs_classes: ClassVar[bool] = False

    name: str


class ClassificationSection(TaskSection):
    """One class an image."""

    needs_classes: ClassVar[bool] = True

    name: Literal["classification"] = "classification"


_OURS = ClassificationSection().name


def task_section(name: str) -> type[TaskSection]:
    """The section of the task called ``name``.

    Raises:
        RecipeError: for an unknown name, with the nearest.
    """
    known = task_sections()
    if name not in known:
        message = f"Unknown task '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}."
        raise RecipeError(message)
    return known[name]


@functools.cache
def task_sections() -> dict[str, type[TaskSection]]:
    """Every task's section by name; own names win over plugins'."""
    plugins = {point.name: point.load() for point in entry_points(group=GROUP)}
    return plugins | {_OURS: ClassificationSection}


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


_Whole = Annotated[TaskSection, OneOf("name", task_sections, task_section, _OURS)]

#: Any task's section of a recipe.
AnyTaskSection = Annotated[_Whole, BeforeValidator(_named, json_schema_input_type=str | _Whole)]
