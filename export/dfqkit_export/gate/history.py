"""What was measured commit by commit: a table that grows by a few lines a check, and a page that draws it.

What belongs here: the file, CSV so that a reviewer reads it in a diff, and its page. Verdicts never depend on it.
"""

from __future__ import annotations

import csv
import io
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes
from dfqkit_export.gate.verdicts import Outcome
from dfqkit_export.report.charts import loss_charts
from dfqkit_export.report.markup import document, section
from dfqkit_export.report.rows import title_of

_COLUMNS = ("commit", "case", "metric", "value", "stderr", "verdict")
#: Where CI services say which commit is checked.
_COMMITS = ("GITHUB_SHA", "CI_COMMIT_SHA", "BUILD_SOURCEVERSION")


def current_commit(environment: Mapping[str, str] = os.environ) -> str:
    """Return the commit that is checked, in twelve digits: what a CI service says, or git; "" without either."""
    named = next((environment[name] for name in _COMMITS if environment.get(name)), "")
    if not named:
        try:
            asked = subprocess.run(
                ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
            )
            named = asked.stdout.strip() if asked.returncode == 0 else ""
        except (OSError, subprocess.TimeoutExpired):
            named = ""
    return named[:12]


def keep_history(path: Path, outcome: Outcome, commit: str) -> list[dict[str, str]]:
    """Add what was measured to a table, in place of what it has of the same commit and case; draw it beside.

    Args:
        path: The table, a CSV file; made where it is not there. The page has its name with ``.html``.
        outcome: Of a check.
        commit: What the rows are known by.

    Returns:
        All rows.

    Raises:
        ArtefactError: The file is there and is no such table.
    """
    cases = {case.name for case in outcome.cases}
    rows = [row for row in _read(path) if row["commit"] != commit or row["case"] not in cases]
    for case in outcome.cases:
        for row in case.rows:
            if row.now is not None:
                stderr = "" if row.stderr is None else f"{row.stderr:.6g}"
                cells = (commit, case.name, row.metric, f"{row.now:.6g}", stderr, row.verdict)
                rows.append(dict(zip(_COLUMNS, cells, strict=True)))
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())
    write_bytes(path.with_suffix(".html"), _page(rows).encode())
    return rows


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            if tuple(reader.fieldnames or ()) == _COLUMNS and not any(
                None in row or None in row.values() for row in rows
            ):
                for row in rows:
                    float(row["value"])
                return rows
    except (OSError, UnicodeDecodeError, ValueError, csv.Error):
        pass  # said below, like any other table
    message = f"'{path}' is no history: its columns must be {', '.join(_COLUMNS)}. Name another file for --history."
    raise ArtefactError(message)


def _page(rows: list[dict[str, str]]) -> str:
    commits = list(dict.fromkeys(row["commit"] for row in rows))
    points = [
        {
            "round": commits.index(row["commit"]) + 1,
            "member": row["case"],
            "terms": {title_of(row["metric"]): float(row["value"])},
        }
        for row in rows
    ]
    ends = [(place, commits[place - 1]) for place in dict.fromkeys((1, len(commits)))] if commits else []
    named = ", ".join(f"check {place} is of {f'commit {commit}' if commit else 'no commit'}" for place, commit in ends)
    charts = f'<div class="charts">{"".join(loss_charts(points, step="check"))}</div>'
    note = f"What was measured, check by check: {named}." if named else "Nothing was measured yet."
    body = f"<header><h1>History of checks</h1></header>{section('Metrics', charts, note)}"
    return document("History of checks", body, "Made by dfqkit check --history.")
