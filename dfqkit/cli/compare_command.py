"""`dfqkit compare`: where two files, or one file in two runtimes, part; or two reports, metric by metric."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from dfqkit.cli.options import Commands, add_command, add_task, document, note, positive, result

_DESCRIPTION = (
    "Run two ONNX files, or one file in two runtimes, on the same images, and name the first layer whose outputs part, "
    "with the signal-to-noise ratio of each layer, the largest error in codes, and the images whose class flips. The "
    "files need not be dfqkit's. With --teacher, a file is judged against the float network it was made from. "
    "Two reports (report.json, or the folders of two runs) are compared metric by metric."
)
_RUNTIMES = "onnxruntime (default), onnxruntime-unoptimized (the file as written, in float), openvino, tensorrt, ..."


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "compare", _compare, "say where two files part", _DESCRIPTION)
    parser.set_defaults(foreign=lambda args: not _is_report(args.a))
    parser.add_argument("a", type=Path, metavar="A", help="an .onnx file, or a report")
    parser.add_argument("b", type=Path, metavar="B", nargs="?", help="another (default: A, in another runtime)")
    text = "a stored set, a sentinel file, a .npz or .npy (default: random numbers, whose margins mean nothing)"
    parser.add_argument("--images", type=Path, metavar="BANK", help=text)
    parser.add_argument("--limit", type=positive, default=64, metavar="N", help="images at most (default: 64)")
    text = "the float network that A was made from: A is compared with it and judged, as a run is"
    parser.add_argument("--teacher", type=Path, metavar="FILE", help=text)
    text = "with --teacher: end with 0 where A cannot be judged; it is still not called ok"
    parser.add_argument("--allow-not-judged", action="store_true", help=text)
    parser.add_argument("--runtime-a", metavar="NAME", help=f"runtime of A: {_RUNTIMES}")
    parser.add_argument("--runtime-b", metavar="NAME", help="runtime of B (default: onnxruntime)")
    parser.add_argument(
        "--min-sqnr", type=float, metavar="DB", help="below this a layer has parted, where scales differ (default: 20)"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of a runtime on the CPU")
    add_task(parser)


def _compare(args: argparse.Namespace) -> int:
    reports = [_is_report(path) for path in (args.a, args.b) if path is not None]
    if any(reports):
        return _reports(args, reports)
    from dfqkit_export.backends import DEFAULT

    if args.teacher is not None:
        if args.b is not None:
            args.parser.error("--teacher is what A is compared with: leave B out")
        args.a, args.b = args.teacher, args.a
        return _files(args, judged=True)
    if args.b is None and (args.runtime_a or DEFAULT.name) == (args.runtime_b or DEFAULT.name):
        args.parser.error("give two files, or one file and another runtime, such as --runtime-b openvino")
    return _files(args)


def _is_report(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".json"


def _files(args: argparse.Namespace, *, judged: bool = False) -> int:
    from dfqkit_export.backends import DEFAULT
    from dfqkit_export.comparison import MIN_SQNR, Side, compare_files, render_comparison
    from dfqkit_export.comparison.inputs import read_inputs
    from dfqkit_export.images.inputs import model_image, random_inputs
    from dfqkit_export.onnxfile.model import load_onnx
    from dfqkit_export.tasks import task_of

    model = load_onnx(args.a)
    if args.b is not None and model_image(model) is None:
        model = load_onnx(args.b)
    if args.images is None:
        inputs = random_inputs(model, args.limit)
        note("The images are random numbers: margins and flips on them mean nothing. Give real ones with --images.")
    else:
        inputs = read_inputs(args.images, model, args.limit)
    found = compare_files(
        Side(path=args.a, runtime=args.runtime_a or DEFAULT.name),
        Side(path=args.b or args.a, runtime=args.runtime_b or DEFAULT.name),
        inputs,
        threads=args.threads,
        min_sqnr=MIN_SQNR if args.min_sqnr is None else args.min_sqnr,
        task=task_of(args.task) if args.task else None,
    )
    if not judged:
        result(document(found.to_dict()) if args.json else render_comparison(found))
        return 0
    from dfqkit_export.comparison.verdict import judge_comparison
    from dfqkit_export.report.verdict import NOT_JUDGED, OK

    verdict = judge_comparison(found)
    if args.json:
        result(document({**found.to_dict(), **asdict(verdict)}))
    else:
        reasons = [finding.message for finding in verdict.findings] or verdict.reasons
        result("\n".join([render_comparison(found), "", *(f"{verdict.verdict.upper()}  {why}" for why in reasons)]))
    return int(verdict.verdict != OK and not (verdict.verdict == NOT_JUDGED and args.allow_not_judged))


def _reports(args: argparse.Namespace, reports: list[bool]) -> int:
    if reports != [True, True]:
        args.parser.error("a report is compared with another report: give two, or two .onnx files")
    unused = [
        name for name in ("images", "runtime_a", "runtime_b", "min_sqnr", "task") if getattr(args, name) is not None
    ]
    if unused:
        args.parser.error(f"reports were measured already: leave out --{unused[0].replace('_', '-')}")

    from dfqkit.cli.running import read_report, report_in
    from dfqkit_export.comparison import compare_reports, render_differences

    found = compare_reports(*(read_report(report_in(path)) for path in (args.a, args.b)))
    result(document(found.to_dict()) if args.json else render_differences(found))
    return 0
