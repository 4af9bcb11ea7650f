"""A comparison as one self-contained HTML page: plots and tables of a scheme together, then the images.

What belongs here: the order of the page. Look and sorting are the report's own; everything interpolated is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dfqkit.bench.plots import cost_plot, drop_plot
from dfqkit.bench.table import IMAGE_COLUMNS, NOTES, sections, text_of
from dfqkit_export.report.style import SCRIPT, STYLE

_EXTRA = """
.dot { fill: var(--accent) }
.seed { fill: none; stroke: var(--quiet); stroke-width: 1 }
.wide {
  display: grid; grid-template-columns: repeat(auto-fit,minmax(min(100%,28rem),1fr)); gap: 1rem; margin: 0 0 1rem;
}
"""


def page(data: Mapping[str, Any]) -> str:
    """Render a document of `table.document`."""
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
    warned = f"<ul class='findings'>{warned}</ul>" if warned else ""
    body = [
        f"<header><p class='eyebrow'><span>{claim}</span></p><h1>{escape(provenance['title'])}</h1>",
        "<dl class='facts'>",
        *(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()),
        f"</dl>{warned}</header>",
        f"<section><h2>Command</h2><pre>{escape(provenance['command'])}</pre></section>",
        *(_section(bits, mode, rows) for (bits, mode), rows in sections(data["rows"]).items()),
        _images(data["images"]),
        *(f"<p class='note'>{escape(note)}</p>" for note in NOTES if note),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(provenance['title'])}</title>\n<style>{STYLE}{_EXTRA}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(bits: str, mode: str, rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ("source", "top-1 %", "drop", "agreement %", "integer ops %", "n", "passes", "seconds")
    lines = []
    for row in rows:
        passes = row["synthesis_passes"]["mean"] + row["game_passes"]["mean"]
        seconds = row["synthesis_seconds"]["mean"] + row["game_seconds"]["mean"]
        cells = [_value(row[name], 2) for name in ("top1", "top1_drop", "agreement", "integer_ops")]
        cells += [_cell(str(row["n"]), row["n"]), _cell(f"{passes:,.0f}", passes), _cell(f"{seconds:,.0f}", seconds)]
        lines.append(f"<tr><th class='pin'>{escape(row['contestant'])}</th>{''.join(cells)}</tr>")
    return (
        f"<section><h2>{escape(bits)}, {escape(mode)}</h2>"
        f"<p>Drop in points against the float teacher, measured in the runtime; lower is better.</p>"
        f"<div class='wide'><figure class='chart'><figcaption>drop, mean ± standard deviation, every seed"
        f"</figcaption>{drop_plot(rows)}</figure><figure class='chart'><figcaption>top-1 % against wall time, "
        f"numbered as in the other plot"
        f"</figcaption>{cost_plot(rows)}</figure></div>{_table(heads, lines)}</section>"
    )


def _images(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ("source", *(heading for _, heading, _ in IMAGE_COLUMNS))
    lines = [
        f"<tr><th class='pin'>{escape(row['contestant'])}</th>"
        + "".join(_value(row[key], digits) for key, _, digits in IMAGE_COLUMNS)
        + "</tr>"
        for row in rows
    ]
    return f"<section><h2>The images</h2>{_table(heads, lines)}</section>"


def _table(heads: Sequence[str], lines: Sequence[str]) -> str:
    head = "".join(
        f"<th scope='col' class='{'num' if index else 'pin'}'>{escape(text)}</th>" for index, text in enumerate(heads)
    )
    return (
        f"<div class='scroll' tabindex='0'><table class='sortable'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _value(entry: Mapping[str, Any], digits: int) -> str:
    return _cell(text_of(entry, digits), entry["mean"])


def _cell(text: str, value: float | None) -> str:
    key = "" if value is None else f"{value:.6g}"
    return f"<td class='num' data-v='{key}'>{escape(text)}</td>"
