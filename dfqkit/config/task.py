"""The ``task`` section: what the network's outputs mean.

What belongs here: reading a task's name and parameters. Which tasks there are, and what they are, is
`dfqkit_export.tasks`; nothing of a task is imported before something is asked of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from dfqkit.config.section import Section
from dfqkit_export.errors import DfqkitError
from dfqkit_export.tasks import DEFAULT_NAME, task_names
from dfqkit_export.words import did_you_mean

if TYPE_CHECKING:
    from dfqkit_export.tasks import Task

__all__ = ["AnyTaskSection", "TaskSection"]


class TaskSection(Section):
    """A task; a recipe may write its name alone where it has no parameters."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(DEFAULT_NAME, description="Which task; further keys are the task's own parameters.")

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        known = task_names()
        if value not in known:
            message = f"Unknown task '{value}'.{did_you_mean(value, known)} Known: {', '.join(known)}."
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _made(self) -> TaskSection:
        if self.model_extra:
            try:
                self.task()
            except DfqkitError as error:
                raise ValueError(str(error)) from error
        return self

    def task(self) -> Task:
        """The task itself.

        Raises:
            ArtefactError: it cannot be imported, or does not take these parameters.
        """
        from dfqkit_export.tasks import task_of

        return task_of(self.model_dump())


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


#: Any task's section of a recipe.
AnyTaskSection = Annotated[TaskSection, BeforeValidator(_named, json_schema_input_type=str | TaskSection)]
