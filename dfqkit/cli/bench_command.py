"""`dfqkit bench`: synthesizers side by side at equal cost."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import Parser, add_compute_options, natural, note, positive, result
from .outcome import resumable

if TYPE_CHECKING:
    from ..bench.grid import Grid
    from .options import Commands

_DESCRIPTION = (
    "Compare data sources: every recipe's synthesizer makes images for the same teacher at the same cost, a student of "
    "each scheme is calibrated on them (and distilled, where asked for), exported, and measured in the runtime on the "
    "labelled images of the recipe. Writes bench.json, bench.md and bench.html. Run the same command again to continue "
    "after an interruption; two processes may work in one folder."
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser: Parser = commands.add_parser("bench", help="compare synthesizers at equal cost", description=_DESCRIPTION)
    parser.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        help="names of shipped recipes, patterns of them in quotes ('digits/*-w8a8-ort'), or files",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for everything")
    parser.add_argument("--bits", nargs="+", default=["w8a8"], metavar="BITS", help="schemes (default: w8a8)")
    parser.add_argument("--seeds", nargs="+", type=natural, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument(
        "--passes",
        type=positive,
        metavar="N",
        help="teacher forward+backward image passes that a synthesis may take (default: what each recipe says)",
    )
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
    parser.add_argument("--contestants", nargs="+", metavar="NAME", help="distil only these")
    parser.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="change all recipes"
    )
    add_compute_options(parser)
    parser.set_defaults(handler=_bench, parser=parser)


def _bench(args: argparse.Namespace) -> int:
    started = time.monotonic()
    from ..bench.grid import Grid, contestants
    from ..recipe import load_recipe

    recipes = contestants(args.recipes, args.overrides)
    distill: dict[str, Any] | None = None
    if args.distill:
        section = load_recipe(args.distill, args.overrides).distill
        if section is None:
            args.parser.error(f"--distill: recipe '{args.distill}' has no distill section")
        distill = section.model_dump(mode="json")  # type: ignore[union-attr]
    bits = tuple(args.bits)
    if distill is None and (args.distill_bits or args.best or args.contestants):
        args.parser.error("--distill-bits, --best and --contestants say what is distilled: give --distill RECIPE, too")
    grid = Grid(
        contestants=recipes,
        bits=bits,
        seeds=tuple(args.seeds),
        passes=args.passes,
        images=args.images,
        distill=distill,
        distilled_bits=tuple(args.distill_bits or bits[-1:]) if distill else (),
    )
    with resumable(_command(args)):
        _work(grid, args)
    note(f"ok | {time.monotonic() - started:.0f} s | {args.out}")
    return 0


def _work(grid: Grid, args: argparse.Namespace) -> None:
    import torch

    from dfqkit_export.env import environment
    from dfqkit_export.files import write_bytes

    from ..bench.cells import Bench
    from ..bench.page import page
    from ..bench.table import document, markdown, rows
    from ..progress import Progress
    from ..run.context import resolve_device

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    device = str(resolve_device(args.device or "auto"))
    bench = Bench.prepare(grid, out, device=device, progress=Progress(quiet=args.quiet))
    tell = (lambda text: None) if args.quiet else note
    cells = bench.do(grid.calibrated(), tell)
    if grid.distill is not None:
        chosen = args.contestants or _best(rows(cells), args.best or len(grid.contestants))
        cells += bench.do(grid.distilled(chosen), tell)
    first = next(iter(grid.contestants.values()))
    data = document(
        cells,
        real=bench.real_statistics(),
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
    text = markdown(data)
    write_bytes(out / "bench.json", (json.dumps(data, indent=1) + "\n").encode())
    write_bytes(out / "bench.md", text.encode())
    write_bytes(out / "bench.html", page(data).encode())
    result(text)


def _best(table: list[dict[str, Any]], count: int) -> list[str]:
    """The contestants with the smallest mean drop over all schemes of calibration, so that no seed decides alone."""
    drops: dict[str, list[float]] = {}
    for row in table:
        drops.setdefault(row["contestant"], []).append(row["top1_drop"]["mean"])
    return sorted(drops, key=lambda name: sum(drops[name]))[:count]


def _command(args: argparse.Namespace, *, everything: bool = True) -> str:
    """The command that makes the same again; with its folder and how it is shown, that continues it."""
    words = ["dfqkit", "bench", *args.recipes, "--bits", *args.bits, "--seeds", *map(str, args.seeds)]
    if args.passes:
        words += ["--passes", str(args.passes)]
    words += ["--images", str(args.images)]
    if args.distill:
        words += ["--distill", args.distill]
    if args.distill_bits:
        words += ["--distill-bits", *args.distill_bits]
    if args.best:
        words += ["--best", str(args.best)]
    if args.contestants:
        words += ["--contestants", *args.contestants]
    for override in args.overrides:
        words += ["--set", override]
    if args.threads:
        words += ["--threads", str(args.threads)]
    words += ["--out", args.out] if everything else ["--out", "runs/bench"]
    return shlex.join(words)
