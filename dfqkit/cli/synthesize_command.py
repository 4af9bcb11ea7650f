"""`dfqkit synthesize`: a portable bank of images, from a recipe's synthesizer."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import Any

from dfqkit.cli.bank_command import described
from dfqkit.cli.options import (
    Commands,
    add_cluster_options,
    add_command,
    add_compute_options,
    add_recipe_options,
    natural,
    note,
    positive,
    spelled,
    starting,
    wrote,
)
from dfqkit.cli.outcome import resumable
from dfqkit.cli.running import chosen_recipe, ending

_DESCRIPTION = (
    "Make a portable set of images: what a recipe's synthesizer makes, with the teacher's answers. The same command "
    "continues one that was interrupted. (The images of a run are its first stage: see `dfqkit run --help`.)"
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "synthesize", _synthesize, "make a portable set of images", _DESCRIPTION)
    parser.add_argument("recipe", metavar="RECIPE", help="name of a shipped recipe, or a YAML file")
    parser.add_argument("--n", dest="count", type=positive, required=True, metavar="N", help="how many images")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder of the set")
    parser.add_argument("--shard", type=positive, metavar="N", help="images in one file of the set (default: 1024)")
    text = (
        "make each file from random numbers of its own, in one thread unless --threads says more, so that any may be "
    )
    text += "made anywhere; implied by --cluster and --part"
    parser.add_argument("--independent", action="store_true", help=text)
    text = "make one of these files, counted from 0; the same command without --part completes the set"
    parser.add_argument("--part", type=natural, metavar="K", help=text)
    add_recipe_options(parser)
    add_compute_options(parser)
    add_cluster_options(parser, "file")


def _synthesize(args: argparse.Namespace) -> int:
    started = time.monotonic()
    if Path(args.recipe).is_dir():
        args.parser.error("takes a recipe, not a folder: give its name or its file")
    starting(args)
    import torch

    from dfqkit.progress import Progress
    from dfqkit.run.bank_folder import facts_of
    from dfqkit.run.bank_making import BankPlan, make_bank, make_one
    from dfqkit.run.ray_parts import executor

    out: Path = args.out
    where = executor(args.cluster, args.workers)
    independent = args.independent or args.part is not None or args.cluster is not None
    # Sums depend on the number of threads, so a set keeps the one that it began with.
    threads = args.threads or facts_of(out).get("threads") or (1 if independent else None)
    if isinstance(threads, int) and threads > 0:
        torch.set_num_threads(threads)
    # What makes the set again, without where it goes and how it is shown.
    words = [*(["--independent"] if independent else []), *spelled(args, "shard", "overrides", "seed", "device")]
    command = ["dfqkit", "synthesize", str(args.recipe), "--n", str(args.count), *words]
    shard = args.shard or BankPlan.shard
    plan = BankPlan(n=args.count, shard=shard, command=shlex.join(command), independent=independent, executor=where)
    given: dict[str, Any] = {"device": args.device or "auto", "progress": Progress(quiet=args.quiet)}
    with resumable(shlex.join([*command, *spelled(args, "part", "cluster", "workers"), "--out", str(out)])):
        if args.part is not None:
            made = make_one(chosen_recipe(args), out, plan, args.part, **given)
            told = f"File {args.part} has {made} images. Complete the set: {shlex.join([*command, '--out', str(out)])}"
            wrote(args, {"path": str(out), "part": args.part, "images": made}, told)
            ending("ok", started, out)
            return 0
        images = make_bank(chosen_recipe(args), out, plan, **given)
    for warning in images.facts["warnings"]:
        note(f"warning: {warning}")
    told = f"The set has {len(images)} images in {len(images.shards)} file(s). Look into it: dfqkit bank info {out}"
    wrote(args, {"path": str(out), **described(images)}, told)
    ending("ok", started, out)
    return 0
