"""`dfqkit bundle`: all that whoever deploys a run's model needs, in one folder or zip."""

from __future__ import annotations

import argparse
from pathlib import Path

from dfqkit.cli.options import Commands, add_command, add_mean_and_std, note, show
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
    text = (
        "folder of a run whose model is exported, or a quantized file that any tool made, with --teacher and --images"
    )
    parser.add_argument("run", type=Path, metavar="RUN|FILE.onnx", help=text)
    parser.set_defaults(foreign=lambda args: args.run.suffix == ".onnx")
    group = parser.add_argument_group("a file of another tool")
    group.add_argument("--teacher", type=Path, metavar="FILE", help="the float ONNX file that it came from")
    text = "images that took no part in making it: a set of `dfqkit synthesize`, .npz, a folder, .zip"
    group.add_argument("--images", type=Path, metavar="SET", help=text)
    add_mean_and_std(group, "of such images: mean per channel of pixels from 0 to 1, where no file says it")
    text = "where it runs, of `dfqkit list targets` (default: what it says itself, or ONNX Runtime)"
    group.add_argument("--target", default="", metavar="NAME", help=text)
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
    from dfqkit_export.bundle import ForeignFile, Order, bundle_foreign, write_bundle

    run, file = args.run.resolve(), args.run.suffix == ".onnx"
    beside = {"--teacher": args.teacher, "--images": args.images}
    if wrong := [name for name, given in beside.items() if (given is None) == file]:
        what = "a file needs" if file else "a run has its own; leave out"
        args.parser.error(f"{what} {' and '.join(wrong)}")
    out = args.out or run.with_name(f"{run.stem if file else run.name}-bundle")
    order = Order(
        run=args.run,
        out=out,
        labels=args.labels,
        sentinel=args.sentinel,
        real=tuple(args.real),
        synthetic_only=args.synthetic_only,
    )
    if file:
        given = {name: getattr(args, name) for name in ("teacher", "images", "target")}
        mean, std = tuple(args.mean or ()), tuple(args.std or ())
        files = bundle_foreign(ForeignFile(model=args.run, mean=mean, std=std, **given), order)
    else:
        files = write_bundle(order)
    show(args, {"path": str(out), "bytes": files}, table([(name, f"{size:,}") for name, size in files.items()]))
    note(f"Wrote {out}")
    return 0
