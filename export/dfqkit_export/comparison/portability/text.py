"""The portability table in words, for terminals and reports."""

from __future__ import annotations

from dfqkit_export.comparison.portability.proving import EQUAL, PARTS, PROVEN, Portability, Row
from dfqkit_export.measure.breakdown import Breakdown
from dfqkit_export.words import some, table

#: Stands wherever the table does.
NUMBERS_ONLY = "Emulation shows numbers, never speed."
_REASONS = 2
_HEADER = ("kernels", "what was found", "ONNX Runtime", "run by")


def render_portability(found: Portability) -> str:
    """Return the table as text."""
    rows = [_HEADER, *(cells(row) for row in found.rows)]
    lines = [
        f"{found.file} on {found.n} images of {found.images}, beside {found.reference}.",
        NUMBERS_ONLY,
        "",
        *table(rows, ruler=True),
    ]
    for row in found.rows:
        lines += [f"{row.title}: {text}" for text in remarks(row)]
    return "\n".join(lines)


def portability_table(found: Portability) -> Breakdown:
    """Return the table as a report holds it; why nothing ran stands where else what ran it does."""
    return Breakdown(
        title="Kernels of other processors",
        note=f"Bits of all outputs beside {found.reference}. {NUMBERS_ONLY}",
        subject=found.file,
        data=f"{found.n} images of {found.images}",
        header=_HEADER,
        rows=[(*cells(row)[:3], row.how or some(row.why, 1, "; ")) for row in found.rows],
    )


def cells(row: Row) -> tuple[str, str, str, str]:
    """Return what a table says of a family: kernels, verdict, version, what ran it."""
    return row.title, said(row), row.version, row.how


def said(row: Row) -> str:
    """Return a family's verdict in one clause."""
    if row.verdict == EQUAL:
        return f"equal on these {row.n} images"
    if row.verdict != PARTS:
        return row.verdict + (f", and equal on these {row.n} images" if row.n else "")
    where = f" at {row.first.name} by {row.first.codes} codes" if row.first else ""
    return (
        f"parts{where}, flips {row.flips} of {row.n}; {row.bits or 0.0:.1%} of outputs equal, "
        f"largest difference {row.largest:.3g}"
    )


def remarks(row: Row) -> list[str]:
    """Return what else there is to say of a family."""
    found = []
    if row.exact:
        found.append(f"with session.x64quantprecision set to 1: {row.exact}.")
    if row.verdict == PARTS and row.first is None:
        found.append("no inner tensor says where.")
    if row.why:
        begins = "not proven" if row.n else "not run" if row.verdict == PROVEN else "not looked at"
        found.append(f"{begins}: {some(row.why, _REASONS, '; ')}.")
    return found
