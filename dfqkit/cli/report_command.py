"""`dfqkit report`: a run's report, rendered again from its JSON, or two of them side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dfqkit.cli.options import Commands, add_command, note, result
from dfqkit.cli.running import read_report, report_in
from dfqkit.run.validate import STAGE

_DESCRIPTION = (
    "Write report.html again from report.json and print the report as text; nothing is measured. With a second folder, "
    "write one page that compares the two."
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "report", _report, "render a run's report again, or two side by side", _DESCRIPTION)
    parser.add_argument("report", type=Path, metavar="DIR|FILE", help="a folder with a report.json, or such a file")
    parser.add_argument(
        "other", type=Path, nargs="?", metavar="DIR|FILE", help="a second one, to be compared with the first"
    )
    text = "where to write the page (default: beside the report; for two: comparison.html)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
    parser.add_argument("--open", action="store_true", help="show the page in the browser")


def _report(args: argparse.Namespace) -> int:
    page = _alone(args.report, args.out) if args.other is None else _beside(args.report, args.other, args.out)
    note(f"Wrote {page}")
    if args.open:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            note("No browser could be started here; open the file by hand.")
    return 0


def _alone(given: Path, out: Path | None) -> Path:
    from dfqkit_export.files import write_bytes
    from dfqkit_export.report.page import render_html
    from dfqkit_export.report.text import render_text

    file = report_in(given)
    report, folder, beside = read_report(file), file.parent, file.with_suffix(".html")
    page = render_html(report, sheets=_sheets(folder)).encode()
    if out is None and _is_run(folder):
        from dfqkit.run.folder import RunFolder

        with RunFolder.open(folder) as run:
            run.rewrite(STAGE.name, beside.name, page)
    else:
        write_bytes(out or beside, page)
    result(render_text(report))
    return out or beside


def _beside(first: Path, second: Path, out: Path | None) -> Path:
    from dfqkit_export.files import write_bytes
    from dfqkit_export.report.side_by_side import render_side_by_side

    out = out or Path("comparison.html")
    reports = [read_report(report_in(path)) for path in (first, second)]
    write_bytes(out, render_side_by_side(*reports).encode())
    return out


def _is_run(folder: Path) -> bool:
    """Return whether a manifest vouches for the page, and must learn of the new one; that of a bundle lists no page."""
    manifest = folder / "manifest.json"
    return manifest.exists() and "stages" in json.loads(manifest.read_text(encoding="utf-8"))


def _sheets(folder: Path) -> dict[str, bytes]:
    if not (folder / "images").is_dir():
        return {}
    from dfqkit.run.validate import contact_sheets

    return contact_sheets(folder / "images")
