"""`dfqkit check`: the gate, for a shell and for CI."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqkit.cli.options import Commands, add_command, names, note, positive, result

if TYPE_CHECKING:
    from dfqkit_export.gate import Outcome

_DESCRIPTION = (
    "Run bundles on their sentinel images and compare with the teacher's stored answers and with the baseline; reports "
    "are compared by the numbers in them. Needs neither data nor torch. A metric fails where it is worse than the "
    "baseline by more than its tolerance or two standard errors, whichever is larger, or beyond its floor."
)
_EPILOG = """\
verdicts:
  regressed   worse than the baseline beyond the tolerance, or beyond a floor (fails)
  refused     calibrated on noise, not calibrated, or of unknown origin: see --allow (fails)
  failed      broken, whatever was recorded: judged by the rules of a run's report (fails: see --reason)
  missing     in the baseline, but not measured (fails)
  not judged  nothing here can tell whether it is broken, which is no OK (fails without --allow-not-judged)
  improved    better beyond the tolerance (fails with --strict)
  new         not in the baseline (fails with --strict; a whole new case always does)
  unmeasured  could not be measured here, with the reason (fails with --strict)
  expected    fails, as the baseline says it does, with the reason
  ok          none of these

The file runs in ONNX Runtime. One that was made for another runtime (TensorRT, OpenVINO) runs as written, without
ONNX Runtime's optimizations, which would turn its float biases into integers: what is checked is then what the file
says, and `dfqkit compare` tells what its own runtime makes of it.

exit codes: 0 all well, 1 a check failed, 2 a file cannot be used, 3 ONNX Runtime is not installed, 4 a bug.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "check", _check, "check exported files against a baseline", _DESCRIPTION, _EPILOG)
    text = "bundle (folder or .zip), run folder, or report.json"
    parser.add_argument("paths", nargs="+", type=Path, metavar="BUNDLE|REPORT", help=text)
    parser.add_argument("--baseline", required=True, type=Path, metavar="FILE", help="usually dfqkit-baseline.json")
    parser.add_argument("--update", action="store_true", help="record what is measured, and list what that changes")
    parser.add_argument("--update-in-ci", action="store_true", help="the same even where CI is set")
    parser.add_argument("--strict", action="store_true", help="fail on improved, new, unmeasured and unused, too")
    parser.add_argument("--junit-xml", type=Path, metavar="FILE", help="write JUnit XML, a test for each metric")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write Markdown; in a GitHub step it goes to the summary as well"
    )
    text = "add the figures to this table (CSV), by commit, and draw them in a page beside it"
    parser.add_argument("--history", type=Path, metavar="FILE", help=text)
    assigned: dict[str, Any] = {"type": _assignment, "action": "append", "default": [], "metavar": "METRIC=VALUE"}
    text = "tolerance in the metric's unit instead of the recorded one; may be given several times"
    parser.add_argument("--tolerance", help=text, **assigned)
    text = "with --update: record the worst value allowed, which later updates keep"
    parser.add_argument("--floor", help=text, **assigned)
    parser.add_argument("--allow", default="", metavar="REASON", help="take a file that is refused, and say why")
    text = "with --update: record a file whose verdict is not ok, and say why; it is kept and shown"
    parser.add_argument("--reason", default="", metavar="TEXT", help=text)
    text = "pass a file that cannot be judged here; it is still not called ok"
    parser.add_argument("--allow-not-judged", action="store_true", help=text)
    text = "families of kernels, as `dfqkit prove --on`, in which each file must compute the same bits on its images"
    parser.add_argument("--prove", default=(), type=names, metavar="NAMES", help=text)
    text = "that each file must be as fast as in float, timed here: fails where the whole interval of 95 %% is below"
    parser.add_argument("--min-speedup", type=float, metavar="TIMES", help=text)
    text = "the float file for --min-speedup (default: the teacher.onnx of the bundle or run)"
    parser.add_argument("--teacher", default="", metavar="FLOAT", help=text)
    parser.add_argument("--threads", type=positive, metavar="N", help="threads inside one operator of the runtime")
    text = "run the graph as written, in float, to tell a kernel from a file"
    parser.add_argument("--no-optimizations", action="store_true", help=text)


def _check(args: argparse.Namespace) -> int:
    from dfqkit_export.gate import in_ci

    update = args.update or args.update_in_ci
    if update and not args.update_in_ci and in_ci():
        args.parser.error(
            "--update is refused where CI is set, so that a pipeline cannot approve its own change; record the "
            "baseline on your machine and commit it, or give --update-in-ci"
        )
    if args.floor and not update:
        args.parser.error("--floor is recorded, so it needs --update")
    if args.reason.strip() and not update:
        args.parser.error("--reason is recorded, so it needs --update")
    if args.teacher and args.min_speedup is None:
        args.parser.error("--teacher is timed beside each file, so it needs --min-speedup TIMES")

    from dfqkit_export.gate import Baseline, Options, check, read_baseline, render_json, render_text, save_cases

    outcome = check(
        args.paths,
        Baseline() if update and not args.baseline.exists() else read_baseline(args.baseline),
        Options(
            strict=args.strict,
            tolerances=dict(args.tolerance),
            floors=dict(args.floor),
            threads=args.threads,
            optimized=not args.no_optimizations,
            allow=args.allow.strip(),
            update=update,
            reason=args.reason.strip(),
            allow_not_judged=args.allow_not_judged,
            prove=args.prove,
            min_speedup=args.min_speedup,
            teacher=args.teacher,
        ),
    )
    entries = {case.name: case.entry for case in outcome.cases if case.entry is not None}
    if outcome.baseline is not None and entries:
        save_cases(args.baseline, entries, outcome.baseline.environment)
        note(f"Wrote {args.baseline}")
    result(render_json(outcome) if args.json else render_text(outcome))
    _write_renderings(args, outcome)
    if args.history is not None:
        from dfqkit_export.gate.history import current_commit, keep_history

        keep_history(args.history, outcome, current_commit())
        note(f"Wrote {args.history} and {args.history.with_suffix('.html')}")
    return outcome.exit_code


def _write_renderings(args: argparse.Namespace, outcome: Outcome) -> None:
    from dfqkit_export.files import write_bytes
    from dfqkit_export.gate import render_junit, render_markdown

    if args.junit_xml is not None:
        write_bytes(args.junit_xml, render_junit(outcome))
    if args.markdown is None:
        return
    text = render_markdown(outcome)
    write_bytes(args.markdown, text.encode())
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary and Path(summary).resolve() != args.markdown.resolve():
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            note(f"Could not add to the step's summary '{summary}': {error}")


def _assignment(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        message = f"takes METRIC=VALUE, such as agreement=2.5; found '{text}'"
        raise argparse.ArgumentTypeError(message)
    return name, value
