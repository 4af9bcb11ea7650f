"""`dfqkit bundle`: all that whoever deploys a run's model needs, in one folder or zip."""

from __future__ import annotations

import argparse
from pathlib import Path

from dfqkit.cli.options import Commands, add_command, note, result
from dfqkit_export.words import table

_DESCRIPTION = (
    "Make a folder or a zip of a run's model with what goes with it: the images that `dfqkit check` uses, report, "
    "recipe, model card, and small programs in Python and C++ that run it. Equal runs give equal bytes."
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "bundle",
        _bundle,
        "put a run's model, the images it is checked with, and samples into one folder or zip",
        _DESCRIPTION,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run whose model is exported")
    parser.add_argument(
        "--out", type=Path, metavar="DIR|FILE.zip", help="(default: a folder beside the run, RUN-bundle)"
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--sentinel", type=Path, metavar="FILE", help="a set of `dfqkit sentinel` for the run's own")
    text = "refuse to ship pictures of real data, or what is nearly one, or images of unknown origin"
    parser.add_argument("--synthetic-only", action="store_true", help=text)
    text = "real data to compare the images with, beside what the recipe names; may be given several times"
    parser.add_argument("--real", action="append", default=[], metavar="SET", help=text)


def _bundle(args: argparse.Namespace) -> int:
    from dfqkit_export.bundle import Order, write_bundle

    run = args.run.resolve()
    out = args.out or run.with_name(f"{run.name}-bundle")
    order = Order(
        run=args.run,
        out=out,
        labels=args.labels,
        sentinel=args.sentinel,
        real=tuple(args.real),
        synthetic_only=args.synthetic_only,
    )
    files = write_bundle(order)
    result(table([(name, f"{size:,}") for name, size in files.items()]))
    note(f"Wrote {out}")
    return 0
