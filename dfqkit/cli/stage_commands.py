"""`dfqkit synthesize`, `train`, `quantize`, `distill`, `export`, `validate`: the stages of a run, one by one."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dfqkit.cli.options import Parser, add_compute_options, add_recipe_options, note, positive
from dfqkit.cli.outcome import resumable
from dfqkit.cli.running import begin, carry_out, chosen_recipe, ending, reopen, show_report

if TYPE_CHECKING:
    from dfqkit.cli.options import Commands
    from dfqkit.config.recipe import Recipe
    from dfqkit.run.folder import RunFolder

_STAGES = {
    "train": "train the smaller float student of a run, where its recipe asks for one",
    "quantize": "build the fake-quantized student of a run and calibrate it",
    "distill": "train the student of a run with its teacher's answers",
    "export": "write the student of a run as a QDQ ONNX file",
    "validate": "run the ONNX file of a run, measure it, and write the report",
}
_NEXT = {"synthesize": "train", "train": "quantize", "quantize": "distill", "distill": "export", "export": "validate"}


def add(commands: Commands) -> None:
    """Add the six commands."""
    text = "make the synthetic images of a recipe"
    either = (
        "With --n it makes a portable set of N images instead; the same command continues one that was interrupted."
    )
    parser: Parser = commands.add_parser(
        "synthesize",
        help=f"{text} (the first stage)",
        description=f"Begin a run and do its first stage only: {text}. With the folder of a run, continue there. "
        f"{either}",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="name of a shipped recipe, a YAML file, or a run's folder")
    parser.add_argument(
        "--out", metavar="DIR", help="new or empty folder of the run (default: runs/RECIPE/TIME-HASH) or set"
    )
    parser.add_argument("--n", dest="count", type=positive, metavar="N", help="images of a portable set; needs --out")
    parser.add_argument("--shard", type=positive, metavar="N", help="images in one file of the set (default: 1024)")
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
    if args.count is not None:
        return _synthesize_set(args, started)
    if args.shard is not None:
        args.parser.error("--shard belongs to a portable set: give --n, too")
    if Path(args.recipe).is_dir():
        if args.out or args.overrides or args.seed is not None:
            args.parser.error("a run's folder has its recipe: leave out --out, --set and --seed")
        folder, recipe = reopen(args.recipe)
    else:
        recipe = chosen_recipe(args)
        folder = begin(args, recipe, validates=False)
    carry_out(folder, recipe, ["synthesize"], args, resume=["dfqkit", "synthesize", str(folder.path)])
    return _end("synthesize", started, folder, recipe)


def _synthesize_set(args: argparse.Namespace, started: float) -> int:
    if args.out is None:
        args.parser.error("--n makes a set in a folder of its own: give --out DIR")
    if Path(args.recipe).is_dir():
        args.parser.error("--n takes a recipe, not a run's folder: give its name or its file")
    import torch

    from dfqkit.progress import Progress
    from dfqkit.run.bank_folder import facts_of
    from dfqkit.run.bank_making import SetPlan, make_set

    out = Path(args.out)
    threads = args.threads or facts_of(out).get("threads")  # sums depend on it, so a set keeps the number it began with
    if isinstance(threads, int) and threads > 0:
        torch.set_num_threads(threads)
    command = _set_command(args)
    plan = SetPlan(n=args.count, shard=args.shard or SetPlan.shard, command=shlex.join(command))
    progress = Progress(quiet=args.quiet)
    with resumable(shlex.join([*command, "--out", args.out])):
        images = make_set(chosen_recipe(args), out, plan, device=args.device or "auto", progress=progress)
    for warning in images.facts["warnings"]:
        note(f"warning: {warning}")
    note(f"The set has {len(images)} images in {len(images.shards)} file(s). Look into it: dfqkit bank info {out}")
    ending("ok", started, out)
    return 0


def _set_command(args: argparse.Namespace) -> list[str]:
    """Return what makes the set again, without where it goes and how it is shown."""
    words = ["dfqkit", "synthesize", str(args.recipe), "--n", str(args.count)]
    for option, values in (
        ("--shard", [args.shard]),
        ("--set", args.overrides),
        ("--seed", [args.seed]),
        ("--device", [args.device]),
    ):
        words += [word for value in values if value is not None for word in (option, str(value))]
    return words


def _stage(args: argparse.Namespace) -> int:
    started = time.monotonic()
    folder, recipe = reopen(args.folder)
    carry_out(folder, recipe, [args.stage], args, resume=["dfqkit", args.stage, str(folder.path)])
    if args.stage == "validate":
        return show_report(folder.path, started)
    return _end(args.stage, started, folder, recipe)


def _end(stage: str, started: float, folder: RunFolder, recipe: Recipe) -> int:
    following = _NEXT[stage]
    if following == "train" and recipe.student is None:
        following = _NEXT["train"]
    note(f"{stage} is complete. Next: dfqkit {following} {folder.path}")
    ending("ok", started, folder.path)
    return 0
