"""`dfqkit prove`: whether a file computes the same bits in the kernels of other processors."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqkit.cli.options import (
    Commands,
    add_cluster_options,
    add_command,
    add_task,
    names,
    note,
    positive,
    show,
    spelled,
)
from dfqkit.progress import Progress
from dfqkit_export.errors import ArtefactError

if TYPE_CHECKING:
    from dfqkit.run.parts import Tell
    from dfqkit_export.comparison.portability import Portability
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
    add_cluster_options(parser, "family")


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
    from dfqkit_export.comparison.portability import (
        FAMILIES,
        PARTS,
        families,
        portability_table,
        render_portability,
    )
    from dfqkit_export.files import write_bytes

    given = {"file": args.file, "images": args.images}
    common: dict[str, Any] = {name: path and str(path.absolute()) for name, path in given.items()}
    common |= {"limit": args.limit, "task": args.task, "runtime": args.runtime}
    common["on"] = [family.name for family in families(args.on or FAMILIES)]
    found, keep = _proven(common, note) if args.cluster is None else _by_workers(common, args)
    show(args, found.to_dict(), render_portability(found))
    if keep:
        kept = {**found.to_dict(), "table": asdict(portability_table(found))}
        write_bytes(args.file / _KEPT, json.dumps(kept, indent=1).encode())
    if any(row.verdict == PARTS for row in found.rows):
        return 1
    return 3 if found.worse(args.on) else 0


def _proven(common: Mapping[str, Any], tell: Callable[[str], None]) -> tuple[Portability, bool]:
    """Return what is found of a file, and whether it lies in a run's folder, which keeps that."""
    from dfqkit_export.bundle import open_bundle
    from dfqkit_export.comparison.inputs import read_inputs
    from dfqkit_export.comparison.portability import prove
    from dfqkit_export.images.inputs import random_inputs
    from dfqkit_export.onnxfile.model import load_onnx, metadata_in
    from dfqkit_export.sentinel import SENTINEL_FILE
    from dfqkit_export.tasks import task_in, task_of

    model, images, keep = Path(common["file"]), common["images"], False
    with contextlib.ExitStack() as stack:
        if model.suffix != ".onnx":
            bundle = stack.enter_context(open_bundle(model))
            sentinel = bundle.root / SENTINEL_FILE
            keep, model = model.is_dir() and not bundle.whole, bundle.model
            images = images or (sentinel if sentinel.is_file() else None)
        loaded = load_onnx(model, weights=False)
        if images is None:
            inputs = random_inputs(loaded, common["limit"])
            tell("The images are random numbers: flips on them mean nothing. Give real ones with --images.")
        else:
            inputs = read_inputs(Path(images), loaded, common["limit"])
        task = task_of(common["task"]) if common["task"] else task_in(metadata_in(loaded))
        return prove(model, inputs, common["on"], versions=common["runtime"], task=task, begins=tell), keep


def family_part(common: Mapping[str, Any], index: int, _tell: Tell) -> tuple[Portability, bool]:
    """Prove a file in the kernels of one family, beside what this machine computes of it; each version is a row."""
    return _proven({**common, "on": [common["on"][index]]}, lambda _: None)


def _by_workers(common: Mapping[str, Any], args: argparse.Namespace) -> tuple[Portability, bool]:
    """Have each family proven by a worker; the rows stand in the order that was asked for."""
    from dfqkit.run.parts import Job
    from dfqkit.run.ray_parts import executor

    words = ["dfqkit", "prove", common["file"], *spelled(args, "images", "limit")]
    job = Job(
        name="family",
        function=family_part,
        common=common,
        indices=range(len(common["on"])),
        sizes=[1] * len(common["on"]),
        alone=lambda index: shlex.join([*words, "--on", common["on"][index]]),
        threads=1,
    )
    with Progress().stage("families", total=job.size) as bar:
        found = dict(executor(args.cluster, args.workers).run(job, bar))
    proven, keep = found[0]
    return replace(proven, rows=tuple(row for index in job.indices for row in found[index][0].rows)), keep


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
