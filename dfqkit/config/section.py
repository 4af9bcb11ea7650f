"""What every section of a recipe is: closed, frozen, of finite numbers; and how sections of several kinds stand in one.

What belongs here: the base class, and the marks that a field may carry. Nothing here knows a particular section.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_serializer
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from dfqkit_export.errors import RecipeError

_LOG = logging.getLogger(__name__)


class Section(BaseModel):
    """Base of every section: an unknown key is an error, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @model_serializer(mode="wrap")
    def _older(self, handler: Callable[[Section], dict[str, Any]]) -> dict[str, Any]:
        """Leave out what older versions did not know and would do no differently, so that digests stay."""
        written = handler(self)
        for name, field in type(self).model_fields.items():
            added = any(isinstance(mark, Added) for mark in field.metadata)
            if added and getattr(self, name) == field.get_default(call_default_factory=True):
                written.pop(name, None)
                written.pop(field.alias or name, None)
        return written


#: Keyword arguments; their order means nothing, and must not change the digest.
Arguments = Annotated[dict[str, Any], AfterValidator(lambda given: dict(sorted(given.items())))]


@dataclass(frozen=True)
class Added:
    """Marks a field that ``version`` added: it is not written while it has its default."""

    version: str


_Kind = TypeVar("_Kind", bound=Section)


def usable(names: Iterable[str], get: Callable[[str], type[_Kind]]) -> dict[str, type[_Kind]]:
    """Return the sections of names; one that cannot be used, of another package, is named in a warning."""
    found = {}
    for name in names:
        try:
            found[name] = get(name)
        except RecipeError as error:
            _LOG.warning("%s", error)
    return found


@dataclass(frozen=True)
class OneOf:
    """Annotates a base class: one of its sections, told apart by the key ``tag``.

    Which there are is asked when a section with such a field is defined, so that other packages may add some.

    Attributes:
        tag: The key that holds a member's name.
        members: Returns all that are whole by name.
        get: Returns the one of a name, or says in a `RecipeError` why there is none.
        example: A member's name, for messages.
        implied: The member that needs not be named, since something before the union names it.
    """

    tag: str
    members: Callable[[], Mapping[str, type[Section]]]
    get: Callable[[str], type[Section]]
    example: str
    implied: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Return pydantic's union of the members, discriminated by the tag."""
        choices = {name: handler.generate_schema(member) for name, member in self.members().items()}
        union = core_schema.tagged_union_schema(choices, discriminator=self.tag)
        return core_schema.no_info_before_validator_function(self._known, union)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return pydantic's schema of the union, in which every member must be named."""
        document = handler(schema)
        # Beside the union stands what a validator in front of it takes, too.
        unions = [part for part in (document, *document.get("anyOf", ())) if "discriminator" in part]
        for name, reference in (item for part in unions for item in part["discriminator"]["mapping"].items()):
            member = handler.resolve_ref_schema({"$ref": reference})
            if name != self.implied and self.tag not in member.setdefault("required", []):
                member["required"] = [self.tag, *member["required"]]
        return document

    def _known(self, value: Any) -> Any:
        """Refuse a mapping without a name, or with one that nobody has, in words of ours."""
        if isinstance(value, Mapping):
            if self.tag not in value:
                message = f"needs a {self.tag}, e.g. {self.tag}: {self.example}"
                raise ValueError(message)
            try:
                self.get(str(value[self.tag]))
            except RecipeError as error:
                raise ValueError(str(error)) from error
        return value
