"""`dfqkit recipe`: what a recipe resolves to, and what one may hold."""

from __future__ import annotations

import argparse
import json

from dfqkit.cli.options import Commands, Parser, add_command, add_recipe_options, result
from dfqkit.cli.running import chosen_recipe


def add(commands: Commands) -> None:
    """Add the command and its two verbs."""
    parser: Parser = commands.add_parser(
        "recipe", help="show a recipe, or what recipes may hold", description="Show a recipe, or what recipes may hold."
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    show = add_command(
        verbs,
        "show",
        _show,
        "print a recipe with every default filled in",
        "Print a recipe as YAML with every default filled in: what `dfqkit run` would do.",
    )
    show.add_argument("recipe", metavar="RECIPE", help="name of a shipped recipe or a YAML file")
    add_recipe_options(show)
    schema = add_command(
        verbs,
        "schema",
        _schema,
        "print what recipes may hold, as JSON Schema",
        (
            "Print what a recipe may hold as JSON Schema, for editors and people. With its output in "
            "recipe.schema.json and `# yaml-language-server: $schema=recipe.schema.json` as a recipe's first line, "
            "editors complete keys and underline what is wrong."
        ),
    )
    schema.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="only with the synthesizer of this recipe (default: with all)"
    )
    schema.set_defaults(overrides=[], seed=None)


def _show(args: argparse.Namespace) -> int:
    recipe = chosen_recipe(args)
    if args.json:
        result(json.dumps(recipe.model_dump(mode="json", by_alias=True), indent=2))
    else:
        result(recipe.to_yaml(), verbatim=True)
    return 0


def _schema(args: argparse.Namespace) -> int:
    from dfqkit.config.schema import recipe_schema

    method = chosen_recipe(args).synthesis.method if args.recipe else None
    result(json.dumps(recipe_schema(method), indent=2))
    return 0
