"""The ``task`` section: what the network's outputs mean.

What belongs here: sections made of the tasks that there are: a task's name, and its parameters where it has some. Which
tasks there are, and what they are, is `dfqkit_export.tasks`.
"""

from __future__ import annotations

import functools
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import BeforeValidator, PydanticUserError, create_model

from dfqkit.config.section import OneOf, Section, usable
from dfqkit_export.errors import ArtefactError, RecipeError
from dfqkit_export.tasks import DEFAULT_NAME, task_names
from dfqkit_export.tasks.parameters import PARAMETERS
from dfqkit_export.words import did_you_mean

if TYPE_CHECKING:
    from dfqkit_export.tasks import Task


class TaskSection(Section):
    """Base of every task's section; a recipe may write its name alone where it has no other keys."""

    name: str

    def task(self) -> Task:
        """Return the task itself."""
        from dfqkit_export.tasks import task_of

        try:
            return task_of(self.model_dump())
        except ArtefactError as error:
            message = f"task: {error}"
            raise RecipeError(message) from error


@functools.cache
def task_section(name: str) -> type[TaskSection]:
    """Return the section of the task called ``name``."""
    known = task_names()
    if name not in known:
        message = f"Unknown task '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}."
        raise RecipeError(message)
    literal: Any = Literal[name]
    parameters = _parameters(name)
    title = "".join(part.capitalize() for part in name.split("_"))
    try:
        return create_model(f"{title}Section", __base__=TaskSection, name=(literal, name), **parameters)
    except PydanticUserError as error:
        message = f"Task '{name}' has parameters that no recipe can hold: {error.message} Repair or remove its package."
        raise RecipeError(message) from error


def _parameters(name: str) -> dict[str, Any]:
    """Return the fields of a task that is a dataclass, as pydantic takes them; own tasks' are read without numpy."""
    try:
        kind = PARAMETERS.get(name) or _class_of(name)
        types = get_type_hints(kind)
    except (ArtefactError, NameError) as error:
        message = f"Task '{name}': {error}"
        raise RecipeError(message) from error
    if not is_dataclass(kind):
        return {}
    return {item.name: (types[item.name], ... if item.default is MISSING else item.default) for item in fields(kind)}


def _class_of(name: str) -> type:
    from dfqkit_export.tasks.lookup import task_class  # numpy, for tasks of other packages alone

    return task_class(name)


def default_task_section() -> TaskSection:
    """Return what a recipe is about that does not say."""
    return task_section(DEFAULT_NAME)(name=DEFAULT_NAME)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


_Whole = Annotated[TaskSection, OneOf("name", lambda: usable(task_names(), task_section), task_section, DEFAULT_NAME)]

#: Any task's section of a recipe.
AnyTaskSection = Annotated[_Whole, BeforeValidator(_named, json_schema_input_type=str | _Whole)]
