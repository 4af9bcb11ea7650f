"""Two reports on one page: what changed between them, metric by metric and layer by layer.

What belongs here: pairing two reports. How the parts look is `markup`'s and `style`'s business. Nothing is judged: that
is what `dfqkit check` is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from dfqkit_export.comparison.reports import SIGMAS, MetricDifference, compare_reports
from dfqkit_export.measure.kinds import Metric
from dfqkit_export.report.document import LayerRow, Report
from dfqkit_export.report.markup import document, section, table
from dfqkit_export.report.rows import MISSING, difference_figure, figure, interval_text, title_of, verdict_sentence

#: Words for what became of a metric, where those of `Trend` do not say enough.
_WORDS = {"noise": "within two standard errors", "changed": "", "negligible": "hardly any"}


def render_side_by_side(first: Report, second: Report) -> str:
    """Return two reports as one self-contained HTML page; differences are counted from the first."""
    sections = (_metrics(first, second), _layers(first, second), _facts(first, second), _recipes(first, second))
    body = _header(first, second) + "".join(sections)
    return document(f"{first.title} and {second.title}", body, "Made by dfqkit from two report.json files.")


def _header(first: Report, second: Report) -> str:
    cards = "".join(
        f'<div><p class="eyebrow"><span class="badge {report.verdict}">{name}: {report.verdict}</span></p>'
        f'<p><strong>{escape(report.title)}</strong></p><p class="note">{escape(verdict_sentence(report))}</p></div>'
        for name, report in (("A", first), ("B", second))
    )
    return f'<header><h1>Two reports side by side</h1><div class="pair">{cards}</div></header>\n'


def _metrics(first: Report, second: Report) -> str:
    before, after = ({(m.name, m.subject, m.data): m for m in report.metrics} for report in (first, second))
    rows = []
    for found in compare_reports(first, second).metrics:
        key = (found.name, found.subject, found.data)
        rows.append(_metric_row(found, before.get(key), after.get(key)))
    header = [("metric", "pin"), ("A", "num"), ("B", "num"), ("B - A", "num"), ("change", "wrap")]
    note = (
        "What is worse comes first, then what is better. B minus A, with the standard error of two separate "
        "measurements; on the same images the true one is smaller."
    )
    return section("Metrics", table("Metrics", header, rows) if rows else "", note)


def _metric_row(found: MetricDifference, before: Metric | None, after: Metric | None) -> str:
    known = before or after
    about = "" if known is None else f"{known.subject} · {known.data}, n {known.n}"
    name = f'<th scope="row" class="pin">{escape(title_of(found.name))}<small>{escape(about)}</small></th>'
    values = "".join(f'<td class="num">{escape(_value(metric))}</td>' for metric in (before, after))
    apart = ""
    if known is not None and found.a is not None and found.b is not None:
        spread = f" ± {found.noise / SIGMAS:.2g}" if found.noise and found.a != found.b else ""
        apart = f"{'+' if found.b > found.a else ''}{difference_figure(found.b - found.a, known)}{spread}"
    word = _WORDS.get(found.change, found.change)
    return f'<tr>{name}{values}<td class="num">{escape(apart)}</td><td class="wrap">{escape(word)}</td></tr>'


def _value(metric: Metric | None) -> str:
    if metric is None:
        return MISSING
    error = interval_text(metric) or (f"± {metric.stderr:.2g}" if metric.stderr else "")
    return f"{figure(metric.value, metric.unit, metric.kind)} {error}".rstrip()


def _layers(first: Report, second: Report) -> str:
    before = {row.name: row for row in first.layers}
    after = {row.name: row for row in second.layers}
    rows = [_layer_row(i, name, before.get(name), after.get(name)) for i, name in enumerate({**before, **after}, 1)]
    header = [("#", "num"), ("layer", "pin"), ("A, dB", "num"), ("B, dB", "num"), ("B - A", "num"), ("precision", "")]
    note = "Signal-to-quantization-noise ratio of the student's output against the teacher, layer by layer."
    return section("Layers", table("Layers", header, rows, sortable=True) if rows else "", note)


def _layer_row(index: int, name: str, before: LayerRow | None, after: LayerRow | None) -> str:
    values = [None if row is None else row.sqnr_student_db for row in (before, after)]
    low, high = values
    change = high - low if low is not None and high is not None else None
    kinds = [row.precision if row is not None else MISSING for row in (before, after)]
    precision = kinds[0] if kinds[0] == kinds[1] else f"{kinds[0]} → {kinds[1]}"
    cells = "".join(
        f'<td class="num" data-v="{"" if value is None else f"{value:.6g}"}">'
        f"{MISSING if value is None else f'{value:.1f}'}</td>"
        for value in (*values, change)
    )
    return (
        f'<tr><td class="num quiet" data-v="{index}">{index}</td><th scope="row" class="mono pin">{escape(name)}</th>'
        f"{cells}<td>{escape(precision)}</td></tr>"
    )


def _facts(first: Report, second: Report) -> str:
    before, after = (dict(_leaves(report.provenance)) for report in (first, second))
    rows = [
        f'<tr><th scope="row" class="pin">{escape(key)}</th><td class="wrap">{escape(before.get(key, MISSING))}</td>'
        f'<td class="wrap">{escape(after.get(key, MISSING))}</td></tr>'
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]
    note = "Only what differs is shown."
    return section(
        "What made them", table("Provenance", [("", "pin"), ("A", ""), ("B", "")], rows) if rows else "", note
    )


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        name = f"{path} {key}".strip().replace("_", " ")
        if isinstance(item, Mapping):
            yield from _leaves(item, name)
        else:
            yield name, str(item)


def _recipes(first: Report, second: Report) -> str:
    before, after = (report.recipe.splitlines() for report in (first, second))
    if before == after or not before or not after:
        return ""
    import difflib  # only where there is something to compare: it is slow to load

    lines = "\n".join(difflib.unified_diff(before, after, "A", "B", lineterm="", n=1))
    return section("Recipes", f"<pre><code>{escape(lines)}</code></pre>", "Lines that differ.")
