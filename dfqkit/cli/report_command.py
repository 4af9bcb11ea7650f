"""`dfqkit report`: a run's report, rendered again from its JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .options import Parser, note, result
from .running import read_report

if TYPE_CHECKING:
    from .options import Commands

_PAGE = "report.html"


def add(commands: Commands) -> None:
    """Add the command."""
    parser: Parser = commands.add_parser(
        "report",
        help="render a run's report again",
        description="Write report.html again from report.json and print the report as text; nothing is measured.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of a run, or any that holds a report.json")
    parser.set_defaults(handler=_report)


def _report(args: argparse.Namespace) -> int:
    from dfqkit_export.files import write_bytes
    from dfqkit_export.report.page import render_html
    from dfqkit_export.report.text import render_text

    report = read_report(args.folder)
    page = render_html(report, sheets=_sheets(args.folder)).encode()
    if (args.folder / "manifest.json").exists():
        from ..run.folder import RunFolder

        with RunFolder.open(args.folder) as folder:
            folder.rewrite("validate", _PAGE, page)
    else:
        write_bytes(args.folder / _PAGE, page)
    result(render_text(report))
    note(f"Wrote {args.folder / _PAGE}")
    return 0


def _sheets(folder: Path) -> dict[str, bytes]:
    if not (folder / "images").is_dir():
        return {}
    from ..run.sheets import contact_sheets

    return contact_sheets(folder / "images")
