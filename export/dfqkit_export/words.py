"""Text that several messages and renderings are made of.

What belongs here: tables of text, lists that stop, names that were meant, and foreign text made fit for a terminal.
What is said with them belongs to whoever says it.
"""

from __future__ import annotations

import os
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

#: What runners of CI jobs obey in a log: GitHub at the start of a line, and Azure's and TeamCity's forms anywhere.
_COMMAND = re.compile(r"^\s*::|##(?=\[|\w+\[)")

_NO_BREAK = "\u00a0"
_UNITS = r"\[|%|dB\b|[kMG]?B\b|bytes\b|ms\b|nats\b|points\b|min\b|s\b|h\b"
#: Spaces within a figure: beside the sign of an error, in an interval, and between a number and its unit.
_WITHIN = re.compile(rf"(?<=±) | (?=±)|(?<=\d,) (?=-?[\d.]+[x\]])|(?<=[\d\]]) (?={_UNITS})")


def table(rows: Sequence[Sequence[str]], *, numbers: bool = False, ruler: bool = False, indent: int = 0) -> list[str]:
    """Lay out rows in columns, each as wide as its longest cell; narrower ones where a screen has less room (`screen`).

    Args:
        rows: Cells; a shorter row leaves its last columns empty.
        numbers: Whether all columns but the first are aligned to the right.
        ruler: Whether the first row is a heading, with a line under it.
        indent: Spaces that the caller puts in front of every line.

    Returns:
        A line for each row, or several where it was folded, without spaces at its end.

    Example:
        >>> table([("layer", "dB"), ("conv1", "9")], numbers=True)
        ['layer  dB', 'conv1   9']
    """
    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    room = max(screen() - indent, 0)
    if room and sum(widths) + 2 * (len(widths) - 1) > room:
        narrow = _narrowed(rows, widths, room)
        if narrow is None:
            return _records(rows, room, headed=ruler)
        rows, widths = _folded(rows, narrow, ruler=ruler), narrow
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    if ruler:
        rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return [
        "  ".join(
            cell.rjust(width) if numbers and column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]


def screen() -> int:
    """Return the columns that a reader has, which COLUMNS says; 0 where nobody does: a pipe has any number."""
    told = os.environ.get("COLUMNS", "")
    return max(int(told), 20) if told.isdecimal() else 0


def wrapped(text: str, room: int, *, indent: str = "") -> list[str]:
    """Break one line at spaces, never within a number, its error, its interval or its unit.

    Example:
        >>> wrapped("it loses 0.5 [-0.1, 1.2]", 18)
        ['it loses', '0.5 [-0.1, 1.2]']
    """
    if len(text) <= room:
        return [text]
    lead = re.match(r"\s*", text)[0]  # type: ignore[index]
    joined = _joined(text[len(lead) :])
    settings: dict[str, Any] = {"break_on_hyphens": False, "initial_indent": lead, "subsequent_indent": lead + indent}
    return [line.replace(_NO_BREAK, " ") for line in textwrap.wrap(joined, room, **settings)]


def _joined(text: str) -> str:
    return _WITHIN.sub(_NO_BREAK, text)


def _narrowed(rows: Sequence[Sequence[str]], widths: Sequence[int], room: int) -> list[int] | None:
    """Return widths that fit, the widest columns narrowed first; None where words or numbers would have to break."""
    columns = list(zip_longest(*rows, fillvalue=""))
    words = [max((len(w) for cell in column for w in _joined(cell).split(" ")), default=0) for column in columns]
    least = [min(width, max(word, 12)) for word, width in zip(words, widths, strict=True)]
    found, spare = list(widths), room - 2 * (len(widths) - 1)
    while sum(found) > spare:
        place = max(range(len(found)), key=lambda n: found[n] - least[n])
        if found[place] <= least[place]:
            return None
        found[place] -= 1
    return found


def _folded(rows: Sequence[Sequence[str]], widths: Sequence[int], *, ruler: bool) -> list[list[str]]:
    """Return rows whose cells fit, a row of several lines for each that did not."""
    folded: list[list[str]] = []
    for number, row in enumerate(rows):
        cells = [wrapped(cell, width) for cell, width in zip(row, widths, strict=False)]
        folded += [list(line) for line in zip_longest(*cells, fillvalue="")]
        if ruler and number == 0:
            folded.append(["-" * width for width in widths])
    return folded


def _records(rows: Sequence[Sequence[str]], room: int, *, headed: bool) -> list[str]:
    """Return a row as several lines, a cell each behind the name of its column; what is too long for one goes on."""
    names, body = (list(rows[0]), rows[1:]) if headed else ([], rows)
    lead = 2 + max(map(len, names[1:]), default=0)
    lines = []
    for row in body:
        lines += wrapped(row[0], room, indent="  ")
        for number, cell in enumerate(row[1:], 1):
            if cell.strip():
                name = f"  {names[number]}".ljust(lead + 2) if names else "  "
                lines += wrapped(f"{name}{cell}", room, indent=" " * (4 if names else 2))
    return lines


def some(texts: Sequence[str], most: int, separator: str = ", ") -> str:
    """Join texts and count those beyond ``most``.

    Example:
        >>> some(["a", "b", "c", "d"], 2)
        'a, b and 2 more'
        >>> some(["one thing", "another", "a third"], 2, "; ")
        'one thing; another; and 1 more'
    """
    rest = len(texts) - most
    joined = separator.join(texts[:most])
    return f"{joined}{separator.rstrip(', ')} and {rest} more" if rest > 0 else joined


def nearest(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return up to ``n`` of the known names that look like ``name``, the most similar first; cutoff is from 0 to 1."""
    from difflib import get_close_matches  # slow to load, and needed for a message alone

    return get_close_matches(name, list(known), n=n, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> str:
    """Return a question for the end of a sentence, with the space before it; empty where nothing looks like ``name``.

    Example:
        >>> did_you_mean("opnvino", ["onnxruntime", "openvino"])
        " Did you mean 'openvino'?"
    """
    near = [repr(match) for match in nearest(name, known, n, cutoff)]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def first_line(error: Exception) -> str:
    """Return the first line of what somebody else's error says."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def plain(text: str) -> str:
    """Return a text on one line without anything that a terminal would obey: it may come from a foreign file."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def page(lines: Iterable[str]) -> str:
    """Join lines, each of which stays one whatever names are in it."""
    return "\n".join(map(plain, lines))


def clean(text: str) -> str:
    r"""Return lines of text that neither a terminal nor the log of a CI job obeys, whoever wrote the names in them.

    Control characters, those that turn the direction of writing, and separators of lines other than the line feed
    become "?"; what runners take for commands (`::error::`, `##[error]`, `##vso[...]`) gets a space into it.

    Example:
        >>> clean("layer \x1b[2J\n::error::all is well")
        'layer ?[2J\n: :error::all is well'
    """
    return "\n".join(
        _COMMAND.sub(lambda found: f"{found[0][:-1]} {found[0][-1]}", _inert(line)) for line in text.split("\n")
    )


def _inert(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c == "\t" or unicodedata.category(c) == "Zs" else "?" for c in line)
