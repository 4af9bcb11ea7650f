"""One metric taken apart: a small table of the parts that it is made of, as a report holds and shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dfqkit_export.errors import ArtefactError


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """A table beside the metrics of one subject on one set of images.

    Attributes:
        title: What is taken apart.
        note: How to read it, a sentence or two.
        subject: Whose numbers they are.
        data: The images.
        header: What the columns are called, that of the parts first.
        rows: The parts, the worst first: a name, and numbers; None where there is nothing to measure.
        plot: Headers of columns that are shown as a point for each part: the last one up, each other one across in a
            plot of its own; empty for none.
    """

    title: str
    note: str
    subject: str
    data: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]
    plot: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Make rows tuples, and refuse what is no table of texts and numbers."""
        whole = all(isinstance(row, list | tuple) and len(row) == len(self.header) > 0 for row in self.rows)
        whole = whole and len(self.plot) != 1 and set(self.plot) <= set(self.header)
        cells = [cell for row in self.rows for cell in row] if whole else []
        if not whole or not all(isinstance(cell, str | int | float | None) for cell in (*self.header, *cells)):
            told = "its rows are texts and numbers, one under each column, of which a plot names two or more"
            message = f"Breakdown {self.title!r} is no table: {told}."
            raise ArtefactError(message)
        object.__setattr__(self, "plot", tuple(self.plot))
        object.__setattr__(self, "header", tuple(map(str, self.header)))
        object.__setattr__(self, "rows", tuple(map(tuple, self.rows)))
