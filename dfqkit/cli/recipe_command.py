"""`dfqkit recipe`: what a recipe resolves to, and what one may hold."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dfqkit.cli.options import Parser, add_recipe_options, result
from dfqkit.cli.running import chosen_recipe

if TYPE_CHECKING:
    from dfqkit.cli.options import Commands


def add(commands: Commands) -> None:
    """Add the command and its two verbs."""
    parser: Parser = commands.add_parser(
        "recipe", help="show a recipe, or what recipes may hold", description="Show a recipe, or what recipes may hold."
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    show: Parser = verbs.add_parser(
        "show",
        help="print a recipe with every default filled in",
        description="Print a recipe as YAML with every default filled in: what `dfqkit run` would do.",
    )
    show.add_argument("recipe", metavar="RECIPE", help="name of a shipped recipe or a YAML file")
    add_recipe_options(show)
    show.set_defaults(handler=_show)
    schema: Parser = verbs.add_parser(
        "schema",
        help="print what recipes may hold, as JSON Schema",
        description="Print what a recipe may hold as JSON Schema, for editors and people.",
    )
    schema.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="only with the synthesizer of this recipe (default: with all)"
    )
    schema.set_defaults(handler=_schema, overrides=[], seed=None)


def _show(args: argparse.Namespace) -> int:
    result(chosen_recipe(args).to_yaml())
    return 0


def _schema(args: argparse.Namespace) -> int:
    from dfqkit.config.distill import DistillConfig
    from dfqkit.config.quant import QuantConfig
    from dfqkit.config.recipe import Recipe
    from dfqkit.config.registry import synthesizer_configs
    from dfqkit.config.student import FloatStudentConfig

    known = dict(synthesizer_configs())
    if args.recipe:
        method = chosen_recipe(args).model_dump()["synthesis"]["method"]
        known = {method: known[method]}
    document = Recipe.model_json_schema(by_alias=True)
    properties, definitions = document["properties"], document.setdefault("$defs", {})
    references = [_define(definitions, config.model_json_schema(by_alias=True)) for config in known.values()]
    properties["synthesis"] = references[0] if len(references) == 1 else {"anyOf": references}
    properties["quant"] = _define(definitions, QuantConfig.model_json_schema(by_alias=True))
    sections = {
        name: kind.model_json_schema() for name, kind in (("student", FloatStudentConfig), ("distill", DistillConfig))
    }
    for name, schema in sections.items():
        section = _define(definitions, schema)
        properties[name] = {"anyOf": [section, {"type": "null"}], "default": None}
    result(json.dumps(document, indent=2))
    return 0


def _define(definitions: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, str]:
    """Put a section's schema among the definitions and return the reference to it."""
    own = {key: value for key, value in schema.items() if key != "$defs"}
    definitions.update(schema.get("$defs", {}))
    definitions[own["title"]] = own
    return {"$ref": f"#/$defs/{own['title']}"}
