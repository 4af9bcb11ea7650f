"""`dfqkit run`: all stages of a recipe, from the teacher to the report, or one of them."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path

from dfqkit.cli.options import (
    Commands,
    add_cluster_options,
    add_command,
    add_compute_options,
    add_recipe_options,
    add_steering,
    add_yes,
    note,
    starting,
)
from dfqkit.cli.running import begin, carry_out, chosen_recipe, ending, only_planned, reopen, show_reports
from dfqkit.progress import first_process, processes
from dfqkit.run.stage import only
from dfqkit.run.stages import STAGES, first, following
from dfqkit.run.validate import REPORT
from dfqkit_export.words import table

_DESCRIPTION = (
    "Do all stages of a recipe: synthesize images, quantize, distil, export to ONNX, validate in the runtime. Prints "
    "the report; the exit code is 0 if all of the recipe's floors hold and 1 if not. A run that was killed at any "
    "moment continues with --resume and gives the same result."
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "run", run, "do all stages of a recipe", _DESCRIPTION, _stage_list())
    text = "name of a shipped recipe (`dfqkit list recipes`) or a YAML file; with --only, a run's folder"
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help=text)
    parser.add_argument(
        "--out", metavar="DIR", help="new or empty folder for everything the run makes (default: runs/RECIPE/TIME-HASH)"
    )
    add_recipe_options(parser)
    add_steering(parser)
    add_compute_options(parser)
    add_cluster_options(parser, "target, candidate of a ladder and share of the images that grade")
    add_yes(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and the resolved recipe; write nothing")
    parser.add_argument("--resume", metavar="DIR", help="continue the run in that folder; needs no RECIPE")
    text = f"do one stage of the run in folder RECIPE; of a recipe, its first one ({first()})"
    parser.add_argument("--only", choices=tuple(STAGES), metavar="STAGE", help=text)


def _stage_list() -> str:
    return "\n".join(["stages, in order:", *table([(f"  {name}", stage.help) for name, stage in STAGES.items()])])


def run(args: argparse.Namespace) -> int:
    """Do what the command says; of several processes that torchrun started, the first shows what came of it."""
    started = time.monotonic()
    _check(args)
    folder = args.resume or (args.recipe if args.only and _continues(args) else None)
    if args.dry_run:
        return only_planned(args, reopen(folder).recipe if folder else chosen_recipe(args))
    if processes() > 1 and not folder and not args.out:
        args.parser.error(
            "torchrun starts several processes, and again after one is lost: give them one folder with --out"
        )
    starting(args)
    work = reopen(folder) if folder else begin(args, chosen_recipe(args), validates=not args.only)
    path = work.folder.path
    if args.only:
        carry_out(work, [args.only], args, resume=only(args.only, shlex.quote(str(path))))
        if not first_process():
            return 0
        if not (path / REPORT).exists() or following(args.only, work.recipe):
            later = following(args.only, work.recipe)
            note(f"{args.only} is complete." + (f" Next: {only(later, path)}" if later else ""))
            ending("done", started, path)  # of a stage, which is no verdict
            return 0
    else:
        carry_out(work, STAGES, args, resume=shlex.join(["dfqkit", "run", "--resume", str(path)]))
    return show_reports(work, started, args) if first_process() else 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what contradicts itself."""
    given = {"--out": args.out, "--set": args.overrides, "--seed": args.seed is not None}
    given["--untrusted"] = args.untrusted
    if processes() > 1 and args.cluster:
        args.parser.error("torchrun and --cluster are two ways to share work: leave one of them out")
    if args.resume:
        extra = [name for name, value in {"RECIPE": args.recipe, **given, "--only": args.only}.items() if value]
        if extra:
            args.parser.error(f"--resume takes the recipe and the folder from DIR: leave out {', '.join(extra)}")
    elif not args.recipe:
        args.parser.error("give a RECIPE (see `dfqkit list recipes`) or --resume DIR")
    elif args.only and _continues(args):
        extra = [name for name, value in given.items() if value]
        if extra:
            args.parser.error(f"a run's folder has its recipe: leave out {', '.join(extra)}")


def _continues(args: argparse.Namespace) -> bool:
    """Return whether `--only` goes on in a run's folder; only the first stage can begin with a recipe."""
    return args.only != first() or Path(args.recipe).is_dir()
