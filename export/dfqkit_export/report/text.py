"""A report as plain text for a terminal, and as Markdown for a pull request.

What belongs here: layout in characters. What is shown is decided in `rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dfqkit_export.report.document import LayerRow, Report
from dfqkit_export.report.rows import (
    estimate_sentence,
    figure,
    head_note,
    metric_groups,
    subjects,
    timing_caption,
    timing_rows,
    verdict_sentence,
)
from dfqkit_export.report.verdict import FAILED, NOT_JUDGED, OK, Verdict
from dfqkit_export.words import clean, page, plain, table

_WORST = 8
_SIGNS: Mapping[Verdict, str] = {OK: "✅", FAILED: "❌", NOT_JUDGED: "❔"}
_TIMING_HEADER = ["session", "median", "min", "p10", "p90", "max"]
_LAYER_HEADER = ["layer", "op", "student dB", "runtime dB", "precision", "executed as"]


def render_text(report: Report) -> str:
    """Return the report as plain text with fixed-width tables, ending in a newline.

    Warnings come first. All metrics are shown; of the layers, those that run in float and those with the lowest SQNR.

    Args:
        report: What to show.
    """
    warnings = [page(f"WARNING  {warning}" for warning in report.warnings)] if report.warnings else []
    blocks = [*warnings, page([report.title, f"{report.verdict.upper()}  {verdict_sentence(report)}"])]
    blocks.extend(map(plain, filter(None, [head_note(report)])))
    if report.metrics:
        blocks.append(_table(*_metric_table(report)))
    if report.findings:
        blocks.append(page(["Findings", *(f"  - {finding.message}" for finding in report.findings)]))
    if report.reasons:
        blocks.append(page(["What the verdict rests on", *(f"  - {reason}" for reason in report.reasons)]))
    blocks.extend(filter(None, [estimate_sentence(report.estimate)]))
    layers = _notable(report.layers)
    if layers:
        title = f"Layers: {len(layers)} of {len(report.layers)}, float ones and the lowest SQNR"
        blocks.append(f"{title}\n" + _table(_LAYER_HEADER, [_layer_cells(layer) for layer in layers]))
        reasons = [f"  {layer.name}: {layer.detail}" for layer in layers if layer.detail]
        blocks.extend([page(["Why float", *reasons])] if reasons else [])
    for each in report.breakdowns:
        rows = [[cell for cell in row if isinstance(cell, str)] for row in each.rows]
        if all(len(row) == len(each.header) for row in rows):  # a table of words is no matter of columns of numbers
            blocks.append(
                f"{plain(each.title)}: {plain(each.data)}. {plain(each.note)}\n" + _table(list(each.header), rows)
            )
    timings = [[name, *cells] for name, cells in timing_rows(report)]
    if timings:
        blocks.append(f"{plain(timing_caption(report))}\n" + _table(_TIMING_HEADER, timings))
    return clean("\n\n".join(blocks)) + "\n"


def render_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown, ending in a newline.

    Args:
        report: What to show.
    """
    sign = f"{_SIGNS[report.verdict]} {report.verdict}"
    warnings = "\n".join(f"> ⚠️ **Warning.** {_md(warning)}\n>" for warning in report.warnings).removesuffix("\n>")
    blocks = [*filter(None, [warnings]), f"### {_md(report.title)}: {sign}", _md(verdict_sentence(report))]
    blocks.extend(_md(note) for note in filter(None, [head_note(report)]))
    if report.metrics:
        blocks.append(_markdown_table(*_metric_table(report)))
    if report.findings:
        blocks.append("**Findings**\n\n" + "\n".join(f"- {_md(finding.message)}" for finding in report.findings))
    if report.reasons:
        blocks.append("**What the verdict rests on**\n\n" + "\n".join(f"- {_md(text)}" for text in report.reasons))
    blocks.extend(filter(None, [_md(estimate_sentence(report.estimate))]))
    if report.layers:
        layers = _markdown_table(_LAYER_HEADER, [_layer_cells(layer) for layer in report.layers])
        blocks.append(f"<details><summary>{len(report.layers)} layers</summary>\n\n{layers}\n\n</details>")
    timings = [[name, *cells] for name, cells in timing_rows(report)]
    if timings:
        blocks.append(f"{_md(timing_caption(report))}\n\n{_markdown_table(_TIMING_HEADER, timings)}")
    command = report.provenance.get("command")
    if isinstance(command, str) and command:
        blocks.append(f"Reproduce with `{_md(command.replace('`', ''))}`")
    return "\n\n".join(blocks) + "\n"


def _metric_table(report: Report) -> tuple[list[str], list[list[str]]]:
    columns = subjects(report)
    rows: list[list[str]] = []
    for group in metric_groups(report):
        cells = [group.cells.get(subject) for subject in columns]
        rows.append([group.title, *(str(cell) if cell else "" for cell in cells), str(group.n), group.data])
        if any(cell and cell.gap for cell in cells):
            rows.append(["  against the teacher", *(cell.gap if cell else "" for cell in cells), "", ""])
    return ["metric", *columns, "n", "data"], rows


def _notable(layers: Sequence[LayerRow]) -> list[LayerRow]:
    known = sorted((layer.sqnr_student_db, i) for i, layer in enumerate(layers) if layer.sqnr_student_db is not None)
    chosen = {index for _, index in known[:_WORST]} | {
        i for i, layer in enumerate(layers) if layer.precision == "float"
    }
    return [layer for index, layer in enumerate(layers) if index in chosen]


def _layer_cells(layer: LayerRow) -> list[str]:
    decibels = (figure(layer.sqnr_student_db, "dB"), figure(layer.sqnr_runtime_db, "dB"))
    return [layer.name, layer.op, *decibels, layer.precision, layer.executed_as]


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(table([header, *rows], ruler=True))


def _markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [
        [_md(cell) for cell in header],
        ["---"] * len(header),
        *([_md(cell.strip()) for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md(text: str) -> str:
    escapes: Mapping[str, str] = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|"}
    return "".join(escapes.get(character, character) for character in plain(text))
