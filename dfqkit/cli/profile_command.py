"""`dfqkit profile`: what a quantized file gains in time and size, and what costs it where it gains nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from dfqkit.cli.options import Commands, add_command, note, positive, show

_DESCRIPTION = (
    "Time a quantized file and a float one in turns, in one or several runtimes, with the spread of the timings, the "
    "files' sizes, and the operators that take the time. Warns where int8 is not faster. Latency is information and "
    "depends on the machine and on what else runs there."
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "profile", _profile, "time a file against float", _DESCRIPTION)
    parser.set_defaults(foreign=lambda _: True)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a quantized .onnx file")
    text = "the float .onnx file (default: teacher.onnx beside MODEL, else MODEL without Q/DQ)"
    parser.add_argument("--against", type=Path, metavar="FLOAT", help=text)
    text = "onnxruntime (default), openvino, tensorrt, ...; may be given several times"
    parser.add_argument("--runtime", dest="runtimes", metavar="NAME", action="append", help=text)
    parser.add_argument("--batch", type=positive, metavar="N", help="images in a call (default: the file's, or 1)")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="threads on the CPU (default: 1)")
    parser.add_argument(
        "--repeats", type=positive, default=50, metavar="N", help="timed calls of each file (default: 50)"
    )


def _profile(args: argparse.Namespace) -> int:
    from dfqkit_export.backends import DEFAULT
    from dfqkit_export.profiling import profile_file, render_profile

    found = profile_file(
        args.model,
        args.against,
        runtimes=args.runtimes or (DEFAULT.name,),
        batch=args.batch,
        threads=args.threads,
        repeats=args.repeats,
    )
    show(args, found.to_dict(), render_profile(found))
    if args.json:
        for warning in found.warnings:
            note(f"warning: {warning}")
    return 0
