"""A report as one self-contained HTML page.

What belongs here: the page's structure. It is readable without script and in print, needs no network, and everything
that is interpolated is escaped. What is shown is decided in `rows`, how it looks in `style`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from dfqkit_export.measure.kinds import DROPS, known_kinds
from dfqkit_export.report.charts import interval_chart, loss_charts, points_charts
from dfqkit_export.report.document import LayerRow, Report
from dfqkit_export.report.floors import floor_of
from dfqkit_export.report.markup import document, facts, pictures, section, table
from dfqkit_export.report.rows import (
    MetricGroup,
    data_note,
    estimate_sentence,
    figure,
    head_note,
    main_subject,
    metric_groups,
    subjects,
    timing_caption,
    timing_rows,
    verdict_sentence,
)
from dfqkit_export.report.verdict import FAILED, NOT_JUDGED, OK, Verdict

_MAX_KEYS = 4
#: Rows of a breakdown that are shown; the rest is in report.json.
_MAX_PARTS = 15
_MARKS: Mapping[Verdict, str] = {OK: "✓", FAILED: "✗", NOT_JUDGED: "?"}

#: Enough for a notebook's cell, whose page has its own fonts and colours.
_HEAD_STYLE = (
    ".dfqkit dl{display:flex;flex-wrap:wrap;gap:1em 2em}.dfqkit dt{font-size:.8em}.dfqkit dd{margin:0;font-size:1.3em}"
    ".dfqkit small{display:block;font-size:.6em}.dfqkit .badge{font-weight:bold;margin-right:1em}"
)


def render_html(report: Report, *, sheets: Mapping[str, bytes] | None = None) -> str:
    """Return the report as one HTML page.

    Args:
        report: What to show.
        sheets: Contact sheets of synthetic images by caption, each a PNG file's bytes.

    Raises:
        ArtefactError: A sheet is not a PNG.
    """
    sections = (
        _provenance(report),
        _metrics(report),
        _breakdowns(report),
        _findings(report),
        _estimate(report),
        _precision(report),
        _layers(report.layers),
        _latency(report),
        _losses(report),
        _sheets(sheets or {}, report),
        _recipe(report),
    )
    body = f"{_warnings(report)}{_header(report)}\n{''.join(part for part in sections if part)}"
    footer = "Made by dfqkit from report.json, which holds the same numbers in full."
    return document(f"{report.title}: {report.verdict}", body, footer)


def render_head(report: Report) -> str:
    """Return what a report's page begins with, verdict and key figures, as HTML that stands by itself in a notebook."""
    return f"<style>{_HEAD_STYLE}</style><div class='dfqkit'>{_warnings(report)}{_header(report)}</div>"


def _warnings(report: Report) -> str:
    items = "".join(f"<li><strong>Warning.</strong> {escape(warning)}</li>" for warning in report.warnings)
    return f'<aside class="warnings" aria-label="Warnings"><ul class="findings">{items}</ul></aside>\n' if items else ""


def _header(report: Report) -> str:
    mark = f'<span aria-hidden="true">{_MARKS[report.verdict]}</span>'
    note = head_note(report)
    images = f'<p class="note">{escape(note)}</p>' if note else ""
    badge = f'<span class="badge {report.verdict}">{mark}{report.verdict}</span>'
    return (
        f'<header><p class="eyebrow">{badge}<span>Proof of a quantized network</span></p>'
        f"<h1>{escape(report.title)}</h1>"
        f'<p class="verdict">{escape(verdict_sentence(report))}</p>{images}{_key_figures(report)}</header>'
    )


def _key_figures(report: Report) -> str:
    shown = main_subject(report)
    groups = {group.name: group for group in reversed(metric_groups(report)) if shown in group.cells}
    keys = []
    for name in [kind.name for kind in known_kinds() if kind.headline and kind.name in groups][:_MAX_KEYS]:
        cell = groups[name].cells[shown]
        value = f"{cell.number} {cell.unit}".rstrip()
        notes = "<br>".join(escape(text) for text in (cell.error, cell.gap) if text)
        keys.append(f"<div><dt>{escape(groups[name].title)}</dt><dd>{escape(value)}<small>{notes}</small></dd></div>")
    return f'<dl class="keys">{"".join(keys)}</dl>' if keys else ""


def _provenance(report: Report) -> str:
    known = dict(report.provenance)
    command = known.pop("command", None)
    environment = known.pop("environment", None)
    body = f"<pre><code>{escape(command)}</code></pre>" if isinstance(command, str) and command else ""
    body += facts(known)
    if isinstance(environment, Mapping) and environment:
        body += f"<details><summary>Environment</summary>{facts(environment)}</details>"
    return section("Reproduce", body, "What made the file, and the command that makes it again.")


def _metrics(report: Report) -> str:
    columns = subjects(report)
    header = [("metric", "pin"), *((subject, "num") for subject in columns)]
    rows = (_metric_row(group, columns) for group in metric_groups(report))
    drop = next((m for m in report.metrics if m.name in DROPS and m.subject == main_subject(report)), None)
    floor = None if drop is None else floor_of(drop, report.floors)
    chart = interval_chart(report.estimate, drop, floor)
    body = f'<div class="charts">{chart}</div>' if chart else ""
    body += table("Metrics by subject", header, rows) if report.metrics else ""
    note = (
        "Value ± standard error, or with an interval of 95 % in brackets; below it the distance to the teacher and the "
        "floor that the recipe promised. n counts images, calls or layers."
    )
    return section("Metrics", body, note)


def _metric_row(group: MetricGroup, columns: list[str]) -> str:
    cells = []
    for subject in columns:
        cell = group.cells.get(subject)
        if cell is None:
            cells.append('<td class="num"></td>')
            continue
        below = "".join(f"<small>{escape(text)}</small>" for text in (cell.error, cell.gap, cell.floor) if text)
        cells.append(f'<td class="num"><div>{escape(cell.number)} {escape(cell.unit)}{below}</div></td>')
    # Beside the name, not in columns of their own: these would be the first to scroll out of sight.
    about = " · ".join(part for part in (f"{group.data}, n {group.n}", group.direction) if part)
    name = f'<th scope="row" class="pin">{escape(group.title)}<small>{escape(about)}</small></th>'
    return f"<tr>{name}{''.join(cells)}</tr>"


def _breakdowns(report: Report) -> str:
    found = []
    for each in report.breakdowns:
        rows = [
            f'<tr><th scope="row" class="pin">{escape(str(name))}</th>'
            + "".join(f'<td class="{_class(value)}">{escape(_part(value))}</td>' for value in values)
            + "</tr>"
            for name, *values in each.rows[:_MAX_PARTS]
        ]
        kinds = map(_class, (each.rows or [each.header])[0][1:])
        header = list(zip(each.header, ("pin", *kinds), strict=True))
        more = len(each.rows) - len(rows)
        rest = f'<p class="note">and {more} more, in report.json</p>' if more > 0 else ""
        title = f"{each.title}: {each.subject}, {each.data}"
        found.append(
            section(title, table(title, header, rows) + rest + (points_charts(each) if each.plot else ""), each.note)
        )
    return "".join(found)


def _class(value: str | int | float | None) -> str:
    return "wrap" if isinstance(value, str) and " " in value else "num"


def _part(value: str | int | float | None) -> str:
    return value if isinstance(value, str) else f"{value:.1f}" if isinstance(value, float) else figure(value)


def _findings(report: Report) -> str:
    items = "".join(f"<li><strong>Failed.</strong> {escape(finding.message)}</li>" for finding in report.findings)
    rests = "".join(f"<li>{escape(reason)}</li>" for reason in report.reasons)
    found = section("Findings", f'<ul class="findings">{items}</ul>') if items else ""
    return found + (section("What the verdict rests on", f"<ul>{rests}</ul>") if rests else "")


def _estimate(report: Report) -> str:
    sentence = estimate_sentence(report.estimate)
    if not sentence:
        return ""
    shown = frozenset({"value", "low", "high", "confidence", "trusted", "reason", "n", "features"})
    body = f'<p class="note">{escape(sentence)}</p>{facts(report.estimate, skip=shown)}'
    features = report.estimate.get("features")
    if isinstance(features, Mapping) and features:
        body += f"<details><summary>What it was estimated from</summary>{facts(features)}</details>"
    return section("Estimated drop", body)


def _precision(report: Report) -> str:
    integer, floats = report.precision.get("integer"), report.precision.get("float")
    if not isinstance(integer, int) or not isinstance(floats, int) or integer + floats <= 0:
        return ""
    share = 100.0 * integer / (integer + floats)
    bar = f'<div class="share" aria-hidden="true"><i style="width:{share:.1f}%"></i></div>'
    rest = report.precision.get("float_ops")
    names = [f"{op.get('op')} {op.get('name')}" for op in rest or [] if isinstance(op, Mapping)]
    nodes = report.precision.get("nodes")
    body = bar + (_float_table(report.layers) if floats else "")
    if names:
        body += f'<p class="note">Operators left in float: {escape(", ".join(names))}.</p>'
    if isinstance(nodes, Mapping) and nodes:
        body += f"<details><summary>Operators in the optimized graph</summary>{facts(nodes)}</details>"
    note = (
        f"{integer} of {integer + floats} layers run in integer kernels, {floats} in float: what the runtime executed."
    )
    return section("Realised precision", body, note)


def _float_table(layers: Iterable[LayerRow]) -> str:
    rows = [
        f'<tr><th scope="row" class="mono pin">{escape(layer.name)}</th><td>{escape(layer.op)}</td>'
        f'<td>{escape(layer.executed_as)}</td><td class="wrap">{escape(layer.detail)}</td></tr>'
        for layer in layers
        if layer.precision == "float"
    ]
    header = [("float layer", "pin"), ("operator", ""), ("executed as", ""), ("why, and what repairs it", "wrap")]
    return table("Layers in float", header, rows) if rows else ""


def _layers(layers: Iterable[LayerRow]) -> str:
    rows = list(layers)
    best = max((value for row in rows for value in (row.sqnr_student_db, row.sqnr_runtime_db) if value), default=1.0)
    slowest = max((row.ms for row in rows if row.ms), default=0.0)
    header = [
        ("#", "num"),
        ("layer", "pin"),
        ("operator", ""),
        ("student, dB", "num"),
        ("runtime, dB", "num"),
        *([("time, ms", "num")] if slowest else []),
        ("precision", ""),
        ("executed as", ""),
    ]
    body = table("Layers", header, (_layer_row(i, row, best, slowest) for i, row in enumerate(rows, 1)), sortable=True)
    note = (
        "Signal-to-quantization-noise ratio of each layer's output: the student against the teacher, the runtime "
        "against the student. Lower means more noise; 6 dB is about one bit."
        + (" Layers that run as one have their time at the first." if slowest else "")
    )
    return section("Layers", body, note) if rows else ""


def _layer_row(index: int, row: LayerRow, best: float, slowest: float) -> str:
    precision = escape(row.precision)
    chip = f'<span class="chip {precision}">{precision}</span>' if precision else ""
    return (
        f'<tr><td class="num quiet" data-v="{index}">{index}</td>'
        f'<th scope="row" class="mono pin">{escape(row.name)}</th>'
        f"<td>{escape(row.op)}</td>{_bar(row.sqnr_student_db, best, 1)}{_bar(row.sqnr_runtime_db, best, 1)}"
        f"{_bar(row.ms, slowest, 3) if slowest else ''}"
        f"<td>{chip}</td><td>{escape(row.executed_as)}</td></tr>"
    )


def _bar(value: float | None, best: float, digits: int) -> str:
    if value is None:
        return '<td class="num quiet" data-v="">-</td>'
    width = max(0.0, min(100.0, 100.0 * value / best)) if best > 0 else 0.0
    bar = f'<span class="bar" aria-hidden="true"><i style="width:{width:.0f}%"></i></span>'
    return f'<td class="num" data-v="{value:.6g}">{bar}{value:.{digits}f}</td>'


def _latency(report: Report) -> str:
    rows = []
    for name, cells in timing_rows(report):
        values = "".join(f'<td class="num">{escape(cell)}</td>' for cell in cells)
        rows.append(f'<tr><th scope="row" class="pin">{escape(name)}</th>{values}</tr>')
    columns = ("median", "min", "p10", "p90", "max")
    header = [("session", "pin"), *((name, "num") for name in columns)]
    return section("Latency", table("Latency", header, rows), timing_caption(report)) if rows else ""


def _losses(report: Report) -> str:
    charts = loss_charts(report.synthesis.get("losses"))
    body = f'<div class="charts">{"".join(charts)}</div>' if charts else ""
    cost = report.synthesis.get("cost")
    body += facts(cost) if isinstance(cost, Mapping) else ""
    body += facts(report.synthesis, skip=frozenset({"losses", "cost"}))
    if report.selection:
        body += f"<details><summary>Selection without real data</summary>{facts(report.selection)}</details>"
    return section("Synthesis", body, "Loss terms by round, each on its own scale.")


def _sheets(sheets: Mapping[str, bytes], report: Report) -> str:
    title = "Synthetic images" if report.synthesis.get("data_free") is True else "Images"
    return section(title, pictures(sheets), data_note(report)) if sheets else ""


def _recipe(report: Report) -> str:
    text = f"<details><summary>Resolved recipe</summary><pre><code>{escape(report.recipe)}</code></pre></details>"
    return section("Recipe", text if report.recipe else "")
