"""`dfqkit run`: all stages of a recipe, from the teacher to the report."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from dfqkit.cli.options import Parser, add_compute_options, add_recipe_options, result
from dfqkit.cli.running import begin, carry_out, chosen_recipe, reopen, show_report

if TYPE_CHECKING:
    from dfqkit.cli.options import Commands

_DESCRIPTION = (
    "Do all stages of a recipe: synthesize images, quantize, distil, export to ONNX, validate in the runtime. Prints "
    "the report; the exit code is 0 if all of the recipe's floors hold and 1 if not. A run that was killed at any "
    "moment continues with --resume and gives the same result."
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser: Parser = commands.add_parser("run", help="do all stages of a recipe", description=_DESCRIPTION)
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="name of a shipped recipe (`dfqkit list recipes`) or a YAML file"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="new or empty folder for everything the run makes (default: runs/RECIPE/TIME-HASH)",
    )
    add_recipe_options(parser)
    add_compute_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and the resolved recipe; write nothing")
    parser.add_argument("--resume", metavar="DIR", help="continue the run in that folder; needs no RECIPE")
    parser.set_defaults(handler=_run, parser=parser)


def _run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    _check(args)
    if args.resume:
        folder, recipe = reopen(args.resume)
    else:
        recipe = chosen_recipe(args)
    if args.dry_run:
        from dfqkit.run.stage import plan

        result(plan(recipe))
        return 0
    if not args.resume:
        folder = begin(args, recipe, validates=True)
    from dfqkit.run.stage import STAGES

    carry_out(folder, recipe, STAGES, args, resume=["dfqkit", "run", "--resume", str(folder.path)])
    return show_report(folder.path, started)


def _check(args: argparse.Namespace) -> None:
    if args.resume:
        given = {"RECIPE": args.recipe, "--out": args.out, "--set": args.overrides, "--seed": args.seed is not None}
        extra = [name for name, value in given.items() if value]
        if extra:
            args.parser.error(f"--resume takes the recipe and the folder from DIR: leave out {', '.join(extra)}")
    elif not args.recipe:
        args.parser.error("give a RECIPE (see `dfqkit list recipes`) or --resume DIR")
