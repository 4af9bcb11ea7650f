"""Text that several messages and renderings are made of.

What belongs here: tables of text, lists that stop, names that were meant, and foreign text made fit for a terminal.
What is said with them belongs to whoever says it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import zip_longest

#: What runners of CI jobs obey in a log: GitHub at the start of a line, and Azure's and TeamCity's forms anywhere.
_COMMAND = re.compile(r"^\s*::|##(?=\[|\w+\[)")


def table(rows: Sequence[Sequence[str]], *, numbers: bool = False, ruler: bool = False) -> list[str]:
    """Lay out rows in columns, each as wide as its longest cell.

    Args:
        rows: Cells; a shorter row leaves its last columns empty.
        numbers: Whether all columns but the first are aligned to the right.
        ruler: Whether the first row is a heading, with a line under it.

    Returns:
        A line for each row, without spaces at its end.

    Example:
        >>> table([("layer", "dB"), ("conv1", "9")], numbers=True)
        ['layer  dB', 'conv1   9']
    """
    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    if ruler:
        rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return [
        "  ".join(
            cell.rjust(width) if numbers and column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]


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
