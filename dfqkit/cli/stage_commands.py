"""`dfqkit synthesize`, `quantize`, `distill`, `export`, `validate`: the stages of a run, one by one."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .options import Parser, add_compute_options, add_recipe_options, note
from .running import begin, carry_out, chosen_recipe, ending, reopen, show_report

if TYPE_CHECKING:
    from .options import Commands

_STAGES = {
    "quantize": "build the fake-quantized student of a run and calibrate it",
    "distill": "train the student of a run with its teacher's answers",
    "export": "write the student of a run as a QDQ ONNX file",
    "validate": "run the ONNX file of a run, measure it, and write the report",
}
_NEXT = {"synthesize": "quantize", "quantize": "distill", "distill": "export", "export": "validate"}


def add(commands: Commands) -> None:
    """Add the five commands."""
    text = "make the synthetic images of a recipe"
    parser: Parser = commands.add_parser(
        "synthesize",
        help=f"{text} (the first stage)",
        description=f"Begin a run and do its first stage only: {text}. With the folder of a run, continue there.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="name of a shipped recipe, a YAML file, or a run's folder")
    parser.add_argument("--out", metavar="DIR", help="new or empty folder of the run (default: runs/RECIPE/TIME-HASH)")
    add_recipe_options(parser)
    add_compute_options(parser)
    parser.set_defaults(handler=_synthesize, parser=parser)
    for stage, text in _STAGES.items():
        parser = commands.add_parser(
            stage, help=text, description=f"{text.capitalize().replace('onnx', 'ONNX').replace('qdq', 'QDQ')}."
        )
        parser.add_argument("folder", metavar="DIR", help="the run's folder, with the stages before this one complete")
        add_compute_options(parser)
        parser.set_defaults(handler=_stage, stage=stage)


def _synthesize(args: argparse.Namespace) -> int:
    started = time.monotonic()
    if Path(args.recipe).is_dir():
        if args.out or args.overrides or args.seed is not None:
            args.parser.error("a run's folder has its recipe: leave out --out, --set and --seed")
        folder, recipe = reopen(args.recipe)
    else:
        recipe = chosen_recipe(args)
        folder = begin(args, recipe, validates=False)
    carry_out(folder, recipe, ["synthesize"], args, resume=["dfqkit", "synthesize", str(folder.path)])
    return _end("synthesize", started, folder.path)


def _stage(args: argparse.Namespace) -> int:
    started = time.monotonic()
    folder, recipe = reopen(args.folder)
    carry_out(folder, recipe, [args.stage], args, resume=["dfqkit", args.stage, str(folder.path)])
    if args.stage == "validate":
        return show_report(folder.path, started)
    return _end(args.stage, started, folder.path)


def _end(stage: str, started: float, folder: Path) -> int:
    note(f"{stage} is complete. Next: dfqkit {_NEXT[stage]} {folder}")
    ending("ok", started, folder)
    return 0
