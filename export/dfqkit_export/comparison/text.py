"""Comparisons in words.

What belongs here: text for people. What was measured is `files`' and `reports`'.
"""

from __future__ import annotations

from dfqkit_export.comparison.files import Comparison
from dfqkit_export.comparison.layers import MAX_DIFFERING, LayerDifference
from dfqkit_export.comparison.reports import ReportDifference
from dfqkit_export.words import page, some, table

_HEADER = ("layer", "SQNR dB", "max error", "in LSB", "other code", "> 1 code", "")


def render_comparison(found: Comparison) -> str:
    """Return the comparison as text: the sides, the outputs, the first layer that parts, the layers, the notes."""
    lines = [
        f"A       {found.a.path} in {found.a.runtime}",
        f"B       {found.b.path} in {found.b.runtime}",
        f"images  {found.n} of {found.images}",
        f"layers  {_matched(found)}",
        "",
        f"{found.task.words:<7} largest difference {_number(found.logit_max_abs, 'not finite')}, "
        f"SQNR {_number(found.logit_sqnr_db, 'infinite')} dB",
        f"{found.task.answer:<7} {_flips(found)}",
    ]
    if found.layers:
        rows = [_HEADER, *map(_row, found.layers)]
        lines += [f"parts   {_first(found)}", "", *table(rows, numbers=True), ""]
        lines += [f"A layer parts {_rule(found.min_sqnr)}."]
    return page([*lines, *(f"note: {note}" for note in found.notes)])


def render_differences(found: ReportDifference) -> str:
    """Return both reports as one table of text."""
    rows = [("metric", "subject", "data", "A", "B", "difference", "")]
    for m in found.metrics:
        apart = "" if m.a is None or m.b is None else f"{m.b - m.a:+.4g}"
        noise = "" if m.noise is None or not apart else f" (2 s.e. {m.noise:.2g})"
        unit = f" {m.unit}" if m.unit else ""
        rows.append((m.name, m.subject, m.data, _value(m.a, unit), _value(m.b, unit), apart + noise, m.change))
    head = [f"A  {found.title_a}: {found.verdict_a}", f"B  {found.title_b}: {found.verdict_b}", ""]
    return page(head + table(rows))


def _matched(found: Comparison) -> str:
    matching = found.matching
    text = f"{len(matching.pairs)} matched {matching.how}"
    for side, names in (("A", matching.only_a), ("B", matching.only_b)):
        if names:
            text += f"; {len(names)} only in {side} ({some(names, 3)})"
    return text


def _flips(found: Comparison) -> str:
    text = f"{found.flips} of {found.n} images flip ({100 * found.flips / found.n:.2f} %)"
    return text if found.margin is None else f"{text}; A's largest margin among them is {found.margin:.3g}"


def _first(found: Comparison) -> str:
    first, begins = found.first, found.begins
    if first is None:
        text = "no layer parts"
    else:
        other = "" if first.name == first.name_b else f" ({first.name_b} in B)"
        text = f"first at {first.name}{other}: {first.why}"
    if begins is not None and begins is not first and begins.differing is not None:
        text += f"; it begins at {begins.name}, where {100 * begins.differing:.2g} % of the values are another code"
    return text


def _rule(min_sqnr: float) -> str:
    return (
        "where both sides quantize it with the same scale, when its error has more power than the quantizer's own "
        f"(step^2 / 12), and begins to with {100 * MAX_DIFFERING:g} % other codes; elsewhere below {min_sqnr:g} dB"
    )


def _row(layer: LayerDifference) -> tuple[str, ...]:
    return (
        layer.name if layer.name == layer.name_b else f"{layer.name} = {layer.name_b}",
        _number(layer.sqnr_db, "equal" if layer.max_abs == 0 else "-"),
        _number(layer.max_abs, "not finite"),
        _number(layer.lsb, "-"),
        "-" if layer.differing is None else f"{100 * layer.differing:.3g} %",
        "-" if layer.beyond is None else f"{100 * layer.beyond:.3g} %",
        "parts" if layer.parts else "",
    )


def _number(value: float | None, none: str) -> str:
    return none if value is None else f"{value:.3g}"


def _value(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.6g}{unit}"
