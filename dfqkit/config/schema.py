"""What a recipe may hold as JSON Schema: for editors, which complete keys by it, and for people."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from dfqkit.config.recipe import SCHEMA, Recipe
from dfqkit_export.backends import all_targets
from dfqkit_export.tasks import task_names


def recipe_schema(method: str | None = None) -> dict[str, Any]:
    """Return the schema of recipes, with one synthesizer alone or with all of them."""
    document = Recipe.model_json_schema()
    properties, definitions = document["properties"], document["$defs"]
    if method is not None:
        reference = properties["synthesis"]["discriminator"]["mapping"][method]
        properties["synthesis"] = {"$ref": reference}
        document["$defs"]["LadderConfig"]["properties"]["judge"] = {"type": ["object", "null"]}
        used = _used(properties, definitions)
        document["$defs"] = {name: definition for name, definition in definitions.items() if name in used}
    one, several = properties["target"]["anyOf"]
    one["enum"] = several["items"]["enum"] = list(all_targets())
    properties["task"]["anyOf"][0]["enum"] = list(task_names())
    properties["$schema"] = {"type": "string", "description": "Where this schema is; for editors alone."}
    return {"$schema": GenerateJsonSchema.schema_dialect, "$id": f"urn:dfqkit:recipe:{SCHEMA}", **document}


def _used(value: Any, definitions: dict[str, Any]) -> set[str]:
    """Return names of the definitions that a part of the schema refers to, directly or through others."""
    found: set[str] = set()
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            name = str(part.get("$ref", "")).rpartition("/")[2]
            if name in definitions and name not in found:
                found.add(name)
                waiting.append(definitions[name])
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return found
