"""`dfqkit bench`: synthesizers side by side at equal cost."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqkit.cli.options import (
    Commands,
    add_cluster_options,
    add_command,
    add_compute_options,
    add_overrides,
    add_untrusted,
    natural,
    note,
    positive,
    show,
    spelled,
    starting,
)
from dfqkit.cli.outcome import resumable

if TYPE_CHECKING:
    from dfqkit.bench.grid import Grid, Trial
    from dfqkit.config.recipe import Recipe
    from dfqkit.run.parts import Executor

_DESCRIPTION = (
    "Compare data sources: every recipe's synthesizer makes images for the same teacher at the same cost, a student of "
    "each scheme is calibrated on them (and distilled, where asked for), exported, and measured in the runtime on the "
    "labelled images of the recipe. Writes bench.json, bench.md and bench.html. Run the same command again to continue "
    "after an interruption; two processes may work in one folder."
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "bench", _bench, "compare synthesizers at equal cost", _DESCRIPTION)
    text = "names of shipped recipes, patterns of them in quotes ('digits/*-w8a8-ort'), or files"
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help=text)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for everything")
    parser.add_argument("--bits", nargs="+", default=["w8a8"], metavar="BITS", help="schemes (default: w8a8)")
    parser.add_argument("--seeds", nargs="+", type=natural, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    text = "teacher forward+backward image passes that a synthesis may take (default: what each recipe says)"
    parser.add_argument("--passes", type=positive, metavar="N", help=text)
    parser.add_argument(
        "--images", type=positive, default=256, metavar="N", help="images that calibrate a student (default: 256)"
    )
    parser.add_argument("--distill", metavar="RECIPE", help="distil as well, as this recipe's distill section says")
    parser.add_argument(
        "--distill-bits", nargs="+", default=[], metavar="BITS", help="schemes that are distilled (default: the last)"
    )
    parser.add_argument(
        "--best", type=positive, metavar="N", help="distil only the N sources that calibrate best (mean over schemes)"
    )
    parser.add_argument("--contestants", nargs="+", metavar="NAME", help="distil only these sources")
    add_overrides(parser, "change all recipes")
    add_untrusted(parser)
    add_compute_options(parser)
    add_cluster_options(parser, "synthesis and trial")
    parser.add_argument("--dry-run", action="store_true", help="time a round of every source and say what all takes")


def _bench(args: argparse.Namespace) -> int:
    started = time.monotonic()
    starting(args)
    from dfqkit.bench.grid import Grid, contestants
    from dfqkit.cli.running import read_recipe
    from dfqkit.run.ray_parts import executor

    recipes = contestants(args.recipes, args.overrides, partial(read_recipe, args))
    distill: dict[str, Any] | None = None
    if args.distill:
        section = read_recipe(args, args.distill, args.overrides).distill
        if section is None:
            args.parser.error(f"--distill: recipe '{args.distill}' has no distill section")
        else:
            distill = section.model_dump(mode="json")
    bits = tuple(dict.fromkeys(args.bits))
    unknown = [name for name in args.contestants or () if name not in recipes]
    if unknown:
        args.parser.error(f"--contestants: no '{unknown[0]}' here; there are {', '.join(recipes)}")
    if distill is None and (args.distill_bits or args.best or args.contestants):
        args.parser.error("--distill-bits, --best and --contestants say what is distilled: give --distill RECIPE, too")
    grid = Grid(
        contestants=recipes,
        bits=bits,
        seeds=tuple(dict.fromkeys(args.seeds)),
        passes=args.passes,
        images=args.images,
        distill=distill,
        distilled_bits=tuple(dict.fromkeys(args.distill_bits or bits[-1:])) if distill else (),
    )
    if args.dry_run:
        seconds, told = _planned(grid, args.device or "auto")
        show(args, {"seconds": seconds}, told)
        return 0
    where = executor(args.cluster, args.workers)
    with resumable(shlex.join([_command(args), *spelled(args, "cluster", "workers")])):
        _work(grid, args, where)
    note(f"ok | {time.monotonic() - started:.0f} s | {args.out}")
    return 0


def _planned(grid: Grid, device: str) -> tuple[dict[str, float], list[str]]:
    """Return a comparison's seconds by source, and what tells it; distillation is counted for all of them."""
    from dfqkit.progress import duration
    from dfqkit.run import synthesize
    from dfqkit.run.context import teacher_of
    from dfqkit.run.forecast import forecast
    from dfqkit_export.words import table

    teacher, seconds = teacher_of(next(iter(grid.contestants.values()))), {}
    for name in grid.contestants:
        made = forecast(grid.synthesis_recipe(name, grid.seeds[0]), teacher, device).seconds[synthesize.STAGE.name]
        for trial in grid.calibrated() + grid.distilled([name]):
            if (trial.contestant, trial.seed) == (name, grid.seeds[0]):
                cell = forecast(grid.recipe(trial), teacher, device)
                made += cell.total - cell.seconds[synthesize.STAGE.name]
        seconds[name] = len(grid.seeds) * made
    cells = len(grid.calibrated()) + len(grid.distilled(list(grid.contestants)))
    total = f"{cells} trials, about {duration(sum(seconds.values()))} on this machine as busy as it is now"
    rows = [("source", "minutes"), *((name, f"{spent / 60:.1f}") for name, spent in seconds.items())]
    return seconds, [*table(rows, numbers=True, ruler=True), total]


def _work(grid: Grid, args: argparse.Namespace, executor: Executor) -> None:
    import torch

    from dfqkit.bench.page import page
    from dfqkit.bench.shared import share
    from dfqkit.bench.table import document, markdown, rows
    from dfqkit.bench.trials import Bench
    from dfqkit.images.sheet import SheetForm, contact_sheet
    from dfqkit.progress import Progress
    from dfqkit.run.context import resolve_device
    from dfqkit_export.env import environment
    from dfqkit_export.files import write_bytes
    from dfqkit_export.images.stored import StoredBank

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    _settle(out / "begun.json", args, str(resolve_device(args.device or "auto")))
    torch.set_num_threads(args.threads)
    device = args.device
    bench = Bench.prepare(grid, out, device=device, progress=Progress(quiet=args.quiet))
    tell = (lambda text: None) if args.quiet else note
    first = next(iter(grid.contestants.values()))

    def done(trials: list[Trial]) -> list[dict[str, Any]]:
        if args.cluster:
            share(bench, trials, executor, _command(args))
        return bench.do(trials, tell)

    trials = done(grid.calibrated())
    if grid.distill is not None:
        chosen = args.contestants or _best(rows(trials), args.best or len(grid.contestants))
        trials += done(grid.distilled(chosen))
    data = document(
        trials,
        real=bench.real_statistics(),
        warnings={name: _warnings(recipe, first) for name, recipe in grid.contestants.items()},
        provenance={
            "title": f"{first.name.rpartition('/')[0] or first.name}: {len(grid.contestants)} sources",
            "command": _command(args, everything=False),
            "teacher": bench.teacher.name,
            "teacher_sha256": bench.teacher.sha256,
            "data": f"{bench.test.name} ({len(bench.test):,} images)",
            "target": first.target,
            "passes": grid.passes,
            "images": grid.images,
            "device": device,
            "threads": torch.get_num_threads(),
            "environment": environment(),
        },
    )
    form = SheetForm(columns=12, rows=5, most=48, clear=True)
    sets = {name: out / "synthesis" / name / f"s{grid.seeds[0]}" / "images" for name in grid.contestants}
    sheets = {
        f"{name}, seed {grid.seeds[0]}": contact_sheet(StoredBank.open(folder / "calibration.safetensors"), form)
        for name, folder in sets.items()
    }
    text = markdown(data)
    write_bytes(out / "bench.json", (json.dumps(data, indent=1) + "\n").encode())
    write_bytes(out / "bench.md", text.encode())
    write_bytes(out / "bench.html", page(data, sheets).encode())
    show(args, data, text)


def _warnings(recipe: Recipe, first: Recipe) -> list[str]:
    """Return what must be known of a contestant's rows."""
    from dfqkit.run.disclosure import warnings_of

    found = list(warnings_of(recipe))
    if recipe.bank.batch != first.bank.batch:
        found.append(f"calibrated in batches of {recipe.bank.batch}, the first source in {first.bank.batch}")
    return found


def _settle(path: Path, args: argparse.Namespace, device: str) -> None:
    """Fill in device and threads as the comparison began, or refuse others; results depend on both."""
    import torch

    from dfqkit_export.errors import ArtefactError
    from dfqkit_export.files import write_bytes

    asked = {"device": None if args.device in (None, "auto") else args.device, "threads": args.threads}
    if not path.exists():
        begun = {"device": device, "threads": args.threads or (1 if args.cluster else torch.get_num_threads())}
        write_bytes(path, json.dumps(begun).encode())
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        args.device, args.threads = str(begun["device"]), int(begun["threads"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"Cannot read '{path}' ({error}). Delete it, and give --device and --threads as the comparison began."
        raise ArtefactError(message) from error
    for name, value in asked.items():
        if value is not None and value != begun[name]:
            message = (
                f"This comparison began with --{name} {begun[name]}, and its results depend on it: leave --{name} out, "
                "or begin another one with --out."
            )
            raise ArtefactError(message)


def _best(table: list[dict[str, Any]], count: int) -> list[str]:
    """Return the contestants with the smallest mean drop over all schemes of calibration: no seed decides alone."""
    from dfqkit_export.measure.kinds import TOP1_DROP

    drops: dict[str, list[float]] = {}
    for row in table:
        drops.setdefault(row["contestant"], []).append(row[TOP1_DROP.name]["mean"])
    return sorted(drops, key=lambda name: sum(drops[name]))[:count]


def _command(args: argparse.Namespace, *, everything: bool = True) -> str:
    """Return the command that makes the same again; with its folder and how it is shown, that continues it."""
    options = ("bits", "seeds", "passes", "images", "distill", "distill_bits", "best", "contestants", "overrides")
    words = ["dfqkit", "bench", *args.recipes, *spelled(args, *options, "device", "threads")]
    return shlex.join([*words, "--out", args.out if everything else "runs/bench"])
