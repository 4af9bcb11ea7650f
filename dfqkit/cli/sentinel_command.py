"""`dfqkit sentinel`: the images by which a file is checked again, for a file that may be anyone's."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfqkit.cli.options import Commands, add_command, natural, note, positive, show
from dfqkit_export.words import table

_DESCRIPTION = (
    "Choose, from stored images that neither trained nor selected a quantized file, those that notice when it becomes "
    "worse, and store them with the float teacher's answers for `dfqkit check`. A run makes its own; this is for files "
    "of other tools, and for other images. Needs no torch."
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "sentinel",
        _sentinel,
        "choose the images that notice when a quantized file becomes worse",
        _DESCRIPTION,
    )
    parser.set_defaults(foreign=lambda _: True)
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="the quantized ONNX file (QDQ)")
    parser.add_argument("--teacher", type=Path, required=True, metavar="FILE", help="the float ONNX file")
    parser.add_argument(
        "--images", type=Path, required=True, nargs="+", metavar="SET",
        help="sets of `dfqkit synthesize`, or images/grading.safetensors of a run",
    )  # fmt: skip
    parser.add_argument(
        "--exclude", type=Path, nargs="+", default=[], metavar="SET", help="sets whose images are left out"
    )
    text = "where the set goes (default: sentinel.safetensors)"
    parser.add_argument("--out", type=Path, default=Path("sentinel.safetensors"), metavar="FILE", help=text)
    parser.add_argument("--limit", type=positive, metavar="BYTES", help="(default: 2000000, or 12 images)")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of the images drawn at random")


def _sentinel(args: argparse.Namespace) -> int:
    from dfqkit_export.files import sha256_of_file
    from dfqkit_export.images.stored import StoredBank
    from dfqkit_export.onnxfile.model import load_onnx, metadata_in
    from dfqkit_export.sentinel import TeacherFile, candidates_of, choose, usual_choice, write_sentinel

    candidates = candidates_of(
        [StoredBank.open(path) for path in args.images], [StoredBank.open(path) for path in args.exclude]
    )
    metadata = metadata_in(load_onnx(args.teacher))
    sha256 = metadata.get("dfqkit.teacher_sha256") or sha256_of_file(args.teacher)  # a run's file names its weights
    teacher = TeacherFile(path=args.teacher, name=args.teacher.stem, sha256=sha256)
    choice = usual_choice(candidates.spec, args.seed, candidates.task)
    if args.limit is not None:
        choice = replace(choice, limit=args.limit)
    sentinel = choose(args.model, teacher, candidates, choice)
    write_sentinel(args.out, sentinel)
    rows = [
        ("candidates", str(len(candidates.images))),
        ("chosen", f"{int(sentinel.sensitive.sum())} sensitive, {int(sentinel.plain.sum())} at random"),
        ("sources", ", ".join(sentinel.sources)),
        *_power(sentinel.power),
    ]
    facts: dict[str, Any] = {"candidates": len(candidates.images), "sensitive": int(sentinel.sensitive.sum())}
    facts |= {"at_random": int(sentinel.plain.sum()), "sources": list(sentinel.sources), "power": sentinel.power}
    show(args, {"path": str(args.out), **facts}, table(rows))
    note(f"Wrote {args.out} ({args.out.stat().st_size:,} bytes)")
    return 0


def _power(power: Any) -> list[tuple[str, str]]:
    if not power:
        return [("power", "not known: the file has no 8-bit weight codes that could be made worse")]
    from dfqkit_export.measure.kinds import FLIPS

    flips = [
        f"{flips:g} flips at {points:g} points"
        for points, flips in zip(power["points"], power[FLIPS.name], strict=True)
    ]
    least, at_random = power["minimum_detectable"], power["minimum_detectable_at_random"]
    seen = "more than the probes lose" if least is None else f"{least:g} points"
    return [
        ("flipped now", f"{power['own_flips']} of {power['images']}; {power['equal_flips']:g} by a file as good"),
        ("agreement lost", ", ".join(flips) or "the probes lose less than half a point"),
        ("least that shows", f"{seen} ({at_random:g} with as many images at random)"),
    ]
