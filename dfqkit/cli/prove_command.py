"""`dfqkit prove`: whether a file computes the same bits in the kernels of other processors."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfqkit.cli.options import Commands, add_command, add_task, names, note, positive, show
from dfqkit.progress import Progress
from dfqkit_export.errors import ArtefactError

if TYPE_CHECKING:
    from dfqkit_export.report import Report

_DESCRIPTION = (
    "Run a file in ONNX Runtime's kernels of other processors, emulated by qemu in user mode, and say for each family "
    "whether it computes the same bits as here: proven equal by bounds, equal on these images, where it parts first "
    "and how many answers that flips, or not looked at, and why. Emulation shows numbers, never speed. --prepare gets "
    "what the emulation needs, once, into the user's cache, without root."
)
_EPILOG = """\
exit codes: 0 nothing parts, 1 a family parts, 2 a file cannot be used, 3 a family named by --on was not looked at.
"""
_KEPT = "portability.json"


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "prove", _prove, "prove a file on other processors", _DESCRIPTION, _EPILOG)
    text = "an .onnx file, a bundle (folder or .zip), or a run's folder, which keeps what is found for its report"
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help=text)
    text = "families, with commas between them: avx512-vnni, avx-vnni, avx2, sse, neon, neon-dot (default: all)"
    parser.add_argument("--on", default=(), type=names, metavar="NAMES", help=text)
    text = "a stored set, a sentinel file, a .npz or .npy (default: the bundle's sentinel images, or random numbers)"
    parser.add_argument("--images", type=Path, metavar="SET", help=text)
    parser.add_argument("--limit", type=positive, default=64, metavar="N", help="images at most (default: 64)")
    text = "versions of ONNX Runtime, such as 1.20,1.23 (default: the installed one; on Arm the newest that emulates)"
    parser.add_argument("--runtime", default=(), type=names, metavar="VERSIONS", help=text)
    parser.add_argument("--prepare", action="store_true", help="get what is missing for the families first")
    add_task(parser)


def _prove(args: argparse.Namespace) -> int:
    if args.file is None and not args.prepare:
        args.parser.error("give a file, or --prepare")
    with Progress().alive("dfqkit prove: getting ready"):
        if args.prepare:
            _prepare(args)
        return 0 if args.file is None else _found(args)


def _prepare(args: argparse.Namespace) -> None:
    from dfqkit_export.comparison.portability import FAMILIES, runs
    from dfqkit_export.comparison.portability.environment import cache, prepare
    from dfqkit_export.errors import RuntimeUnavailableError

    for family, version in runs(args.on or FAMILIES, args.runtime):
        try:
            prepare(family, version)
            note(f"{family.title}: ready {version}".rstrip())
        except RuntimeUnavailableError as error:
            if family.name in args.on:
                raise
            note(f"{family.title}: {error}.")
    note(f"Kept in {cache()}")


def _found(args: argparse.Namespace) -> int:
    from dfqkit_export.bundle import open_bundle
    from dfqkit_export.comparison.inputs import read_inputs
    from dfqkit_export.comparison.portability import FAMILIES, PARTS, portability_table, prove, render_portability
    from dfqkit_export.files import write_bytes
    from dfqkit_export.images.inputs import random_inputs
    from dfqkit_export.onnxfile.model import load_onnx, metadata_in
    from dfqkit_export.sentinel import SENTINEL_FILE
    from dfqkit_export.tasks import task_in, task_of

    def found_of(model: Path, images: Path | None, *, keep: bool = False) -> int:
        loaded = load_onnx(model, weights=False)
        if images is None:
            inputs = random_inputs(loaded, args.limit)
            note("The images are random numbers: flips on them mean nothing. Give real ones with --images.")
        else:
            inputs = read_inputs(images, loaded, args.limit)
        task = task_of(args.task) if args.task else task_in(metadata_in(loaded))
        found = prove(model, inputs, args.on or FAMILIES, versions=args.runtime, task=task, begins=note)
        show(args, found.to_dict(), render_portability(found))
        if keep:
            kept = {**found.to_dict(), "table": asdict(portability_table(found))}
            write_bytes(args.file / _KEPT, json.dumps(kept, indent=1).encode())
        if any(row.verdict == PARTS for row in found.rows):
            return 1
        return 3 if found.worse(args.on) else 0

    if args.file.suffix == ".onnx":
        return found_of(args.file, args.images)
    with open_bundle(args.file) as bundle:
        sentinel = bundle.root / SENTINEL_FILE
        images = args.images or (sentinel if sentinel.is_file() else None)
        return found_of(bundle.model, images, keep=args.file.is_dir() and not bundle.whole)


def with_proof(report: Report, file: Path) -> Report:
    """Return a run's report with the table that `dfqkit prove` left beside it, where that is of the same ONNX file."""
    from dfqkit_export.files import sha256_of_file
    from dfqkit_export.measure.breakdown import Breakdown

    kept = file.with_name(_KEPT)
    model = file.with_name(file.name.replace("report", "model", 1)).with_suffix(".onnx")
    if not kept.is_file() or not model.is_file():
        return report
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        same, table = found["sha256"] == sha256_of_file(model), Breakdown(**found["table"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        message = f"'{kept}' is not what `dfqkit prove` writes ({error}). Prove the run's folder again, or remove it."
        raise ArtefactError(message) from None
    others = [each for each in report.breakdowns if each.title != table.title]
    return replace(report, breakdowns=[*others, table]) if same else report
