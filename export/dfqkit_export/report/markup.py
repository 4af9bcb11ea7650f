"""What the pages of this package are built of: the document's frame, sections, tables and lists of facts.

What belongs here: markup that knows nothing of reports. Everything that is interpolated is escaped, except what the
arguments named ``body`` and ``rows`` hold, which is markup already.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from typing import Any

from dfqkit_export.errors import ArtefactError
from dfqkit_export.report.rows import figure

# The page works from a file and from a CI artefact; nothing else may be loaded or contacted.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"
# The page's look (light, dark and print; tables scroll inside their own box, so that the page never does sideways), and
# the sorting of tables, a convenience: without script they are complete, in the model's order.
_STYLE, _SCRIPT = (
    "\n" + resources.files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
)
_PNG = b"\x89PNG\r\n\x1a\n"


def document(title: str, body: str, footer: str = "", *, style: str = "") -> str:
    """Frame a whole page that needs no network and no script; `style` stands beside the rules that all pages have."""
    ending = f"<footer>{escape(footer)}</footer>" if footer else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}{ending}\n"
        f"</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(title: str, body: str, note: str = "") -> str:
    """Return a titled section with a sentence that explains it; nothing where the body is empty."""
    if not body:
        return ""
    lead = f"<p>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{body}</section>\n"


def table(label: str, header: Iterable[tuple[str, str]], rows: Iterable[str], *, sortable: bool = False) -> str:
    """Return a table in a box of its own that scrolls; the header is (text, class of the column)."""
    heads = "".join(f'<th scope="col" class="{kind}">{escape(text)}</th>' for text, kind in header)
    kind = ' class="sortable"' if sortable else ""
    # tabindex lets a keyboard scroll the box.
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label, quote=True)}"><table{kind}>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def pictures(images: Mapping[str, bytes]) -> str:
    """Return PNG files as figures that are part of the page, each under its caption.

    Raises:
        ArtefactError: One is no PNG file.
    """
    figures = []
    for caption, png in images.items():
        if not png.startswith(_PNG):
            message = f"Contact sheet {caption!r} is not a PNG file. Encode it as PNG first."
            raise ArtefactError(message)
        data, text = base64.b64encode(png).decode("ascii"), escape(caption)
        figures.append(
            f'<figure><figcaption>{text}</figcaption><img alt="{text}" src="data:image/png;base64,{data}"></figure>'
        )
    return f'<div class="sheets">{"".join(figures)}</div>' if figures else ""


def facts(values: Mapping[str, Any], *, skip: frozenset[str] = frozenset()) -> str:
    """Return a list of names and values of any kind."""
    pairs = "".join(
        f"<dt>{escape(str(key).replace('_', ' '))}</dt><dd>{_fact(value)}</dd>"
        for key, value in values.items()
        if key not in skip
    )
    return f'<dl class="facts">{pairs}</dl>' if pairs else ""


def _fact(value: Any) -> str:
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return escape(figure(value))
    return f'<span class="mono">{escape(json.dumps(value, ensure_ascii=False))}</span>'
