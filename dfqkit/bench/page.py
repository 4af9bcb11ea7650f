"""A comparison as one self-contained HTML page: plots and tables of a scheme together, then the images.

What belongs here: the order of the page. Look and sorting are the report's own; everything interpolated is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dfqkit.bench.plots import cost_plot, drop_plot
from dfqkit.bench.table import IMAGE_COLUMNS, NOTES, columns, sections, text_of
from dfqkit_export.report import markup

_EXTRA = """
.seed { fill: none; stroke: var(--quiet); stroke-width: 1 }
.wide {
  display: grid; grid-template-columns: repeat(auto-fit,minmax(min(100%,24rem),1fr)); gap: 1rem; margin: 0 0 1rem;
}
"""


def page(data: Mapping[str, Any], sheets: Mapping[str, bytes]) -> str:
    """Render a document of `table.document`, with a sheet of each source's images as PNG."""
    provenance = data["provenance"]
    budget = f"{provenance['passes']:,} teacher passes a synthesis" if provenance["passes"] else "each recipe's budget"
    facts = {
        "teacher": f"{provenance['teacher']}, {data['teacher_top1']:.2f} % on {provenance['data']}",
        "target": provenance["target"],
        "budget": f"{budget}, {provenance['images']} images for calibration",
        "machine": f"{provenance['environment']['cpu']['model']}, {provenance['threads']} thread(s)",
        "versions": ", ".join(f"{name} {version}" for name, version in provenance["environment"]["packages"].items()),
    }
    claim = "Synthesizers at equal cost" if provenance["passes"] else "Synthesizers, each at its own cost"
    warned = "".join(f"<li>{escape(text)}</li>" for text in data["warnings"])
    warned = f'<ul class="findings">{warned}</ul>' if warned else ""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in NOTES if note)
    body = [
        f'<header><p class="eyebrow"><span>{claim}</span></p><h1>{escape(provenance["title"])}</h1>'
        f"{markup.facts(facts)}{warned}</header>",
        markup.section("Command", f"<pre>{escape(provenance['command'])}</pre>"),
        *(_section(bits, mode, rows) for (bits, mode), rows in sections(data["rows"]).items()),
        _images(data["images"], sheets),
        notes,
    ]
    return markup.document(provenance["title"], "\n".join(body), style=_EXTRA)


def _section(bits: str, mode: str, rows: Sequence[Mapping[str, Any]]) -> str:
    kinds = columns(rows)
    header = _header("source", *(kind.short for kind in kinds), "n", "passes", "seconds")
    lines = []
    for row in rows:
        passes = row["synthesis_passes"]["mean"] + row["game_passes"]["mean"]
        seconds = row["synthesis_seconds"]["mean"] + row["game_seconds"]["mean"]
        cells = [_value(row[kind.name], 2) for kind in kinds]
        cells += [_cell(str(row["n"]), row["n"]), _cell(f"{passes:,.0f}", passes), _cell(f"{seconds:,.0f}", seconds)]
        lines.append(_line(row, cells))
    title = f"{bits}, {mode}"
    body = (
        f'<div class="wide"><figure class="chart"><figcaption>drop, mean ± standard deviation, every seed</figcaption>'
        f'{drop_plot(rows)}</figure><figure class="chart"><figcaption>top-1 % against wall time</figcaption>'
        f"{cost_plot(rows)}</figure></div>{markup.table(title, header, lines, sortable=True)}"
    )
    note = "Drop in points against the float teacher, measured in the runtime; lower is better."
    return markup.section(title, body, note)


def _images(rows: Sequence[Mapping[str, Any]], sheets: Mapping[str, bytes]) -> str:
    header = _header("source", *(heading for _, heading, _ in IMAGE_COLUMNS))
    lines = [_line(row, [_value(row[key], digits) for key, _, digits in IMAGE_COLUMNS]) for row in rows]
    table = markup.table("The images", header, lines, sortable=True)
    return markup.section("The images", table + markup.pictures(sheets))


def _header(first: str, *others: str) -> list[tuple[str, str]]:
    return [(first, "pin"), *((text, "num") for text in others)]


def _line(row: Mapping[str, Any], cells: Sequence[str]) -> str:
    return f'<tr><th scope="row" class="pin">{escape(row["contestant"])}</th>{"".join(cells)}</tr>'


def _value(entry: Mapping[str, Any], digits: int) -> str:
    return _cell(text_of(entry, digits), entry["mean"])


def _cell(text: str, value: float | None) -> str:
    key = "" if value is None else f"{value:.6g}"
    return f'<td class="num" data-v="{key}">{escape(text)}</td>'
