"""`dfqkit report`: a run's report, rendered again from its JSON, or two of them side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqkit.cli.options import Commands, add_command, note, result, wrote
from dfqkit.cli.prove_command import with_proof
from dfqkit.cli.running import read_report, report_in
from dfqkit.run.validate import STAGE
from dfqkit_export.errors import ArtefactError

if TYPE_CHECKING:
    from dfqkit.run.folder import RunFolder
    from dfqkit_export.report import Report

_DESCRIPTION = (
    "Write report.html again from report.json and print the report as text; nothing is measured. With a second folder, "
    "write one page that compares the two."
)


def add(commands: Commands) -> None:
    """Add the command."""
    text = "render a run's report again, or two side by side"
    parser = add_command(commands, "report", _report, text, _DESCRIPTION)
    parser.add_argument("report", type=Path, metavar="DIR|FILE", help="a folder with a report.json, or such a file")
    parser.add_argument(
        "other", type=Path, nargs="?", metavar="DIR|FILE", help="a second one, to be compared with the first"
    )
    text = "where to write the page (default: beside the report; for two: comparison.html)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
    parser.add_argument("--open", action="store_true", help="show the page in the browser")


def _report(args: argparse.Namespace) -> int:
    page, facts = _alone(args) if args.other is None else _beside(args.report, args.other, args.out)
    wrote(args, {**facts, "page": str(page)}, f"Wrote {page}")
    if args.open:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            note("No browser could be started here; open the file by hand.")
    return 0


def _alone(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    from dfqkit_export.files import write_bytes
    from dfqkit_export.report.page import render_html
    from dfqkit_export.report.text import render_text

    file, out = report_in(args.report), args.out
    report, folder, beside = with_proof(_read(file), file), file.parent, file.with_suffix(".html")
    page = render_html(report, sheets=_sheets(folder)).encode()
    run = _run_of(folder) if out is None else None
    if run is not None:
        with run:
            run.rewrite(STAGE.name, beside.name, page)
    else:
        write_bytes(out or beside, page)
    if not args.json:
        result(render_text(report))
    return out or beside, json.loads(report.to_json())


def _beside(first: Path, second: Path, out: Path | None) -> tuple[Path, dict[str, Any]]:
    from dfqkit_export.comparison import compare_reports
    from dfqkit_export.comparison.side_by_side import render_side_by_side
    from dfqkit_export.files import write_bytes

    out = out or Path("comparison.html")
    reports = [_read(report_in(path)) for path in (first, second)]
    write_bytes(out, render_side_by_side(*reports).encode())
    return out, compare_reports(*reports).to_dict()


def _read(file: Path) -> Report:
    """Read a report; what a manifest beside it vouches for must be as it was written."""
    from dfqkit.run.manifest import MANIFEST

    run = _run_of(file.parent)
    if run is not None:
        run.require(file.name)
    elif (file.parent / MANIFEST).is_file():
        from dfqkit_export.bundle import open_bundle

        with open_bundle(file.parent) as bundle:
            if file.name in bundle.damaged():
                message = f"'{file}' is not the file that the manifest beside it lists. Copy or make the bundle again."
                raise ArtefactError(message)
    return read_report(file)


def _run_of(folder: Path) -> RunFolder | None:
    """Return the run whose folder it is; None for any other folder, such as that of a bundle."""
    from dfqkit.run.folder import RunFolder
    from dfqkit.run.manifest import MANIFEST

    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        facts = {"stages": {}}  # opening it says what is wrong
    if isinstance(facts, dict) and "kind" in facts:
        return None
    return RunFolder.open(folder)


def _sheets(folder: Path) -> dict[str, bytes]:
    if not (folder / "images").is_dir():
        return {}
    from dfqkit.run.validate import contact_sheets

    run = _run_of(folder)
    if run is not None:
        for file in (folder / "images").glob("*.safetensors"):
            run.require(f"images/{file.name}")
    return contact_sheets(folder / "images")
