"""The commands of README and docs, taken from the text: where each stands, its words, and how it is run.

What belongs here: reading pages. A block of shell, with a title or without, stands behind `<!-- commands: TIER -->`;
the README's two commands behind `<!-- command: run -->` and `test`, which `.ci/run` reads. A block of Python with a
title is a file of its page.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Run word for word in CI, run by `python tests/benchmarks/documented.py`, or read and no more.
CI, BENCHMARK, PARSED = TIERS = ("ci", "benchmark", "parsed")
_SHELL = r"```(?:sh|bash|shell|console|zsh)"
_BLOCK = re.compile(rf'(?:<!-- (commands?): (\w+) -->\n)?{_SHELL}(?: title="([\w.]+)")?\n(.*?)^```$', re.S | re.M)
_FILE = re.compile(r'```python title="([\w.]+)"\n(.*?)^```$', re.S | re.M)
#: What stands in a sentence and takes minutes or hours by itself.
_INLINE = re.compile(r"`(python (?:-m )?tests[./][^`]+)`")


@dataclass(frozen=True)
class Command:
    """One command of a page; ``tier`` is "" where the page does not say how it is run.

    ``script`` is the title of its block, where that is a file for a queue, which sets its variables.
    """

    page: str
    tier: str
    text: str
    script: str = ""

    @property
    def words(self) -> list[str]:
        """The command as a shell splits it, without comments."""
        return shlex.split(self.text.replace("\\\n", " "), comments=True)


def pages() -> list[Path]:
    """Return the README and all pages, in the order of their names."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[Command]:
    """Return the commands of a page, in order."""
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    found = []
    for word, mark, script, body in _BLOCK.findall(text):
        tier = CI if word == "command" else mark
        lines = re.sub(r"\\\n", "\\\n", body)
        joined = re.findall(r"(?:.*\\\n)*.+", lines)
        found += [Command(name, tier, line, script) for line in joined if not line.lstrip().startswith("#")]
    return found + [Command(name, BENCHMARK, " ".join(line.split())) for line in _INLINE.findall(text)]


def files(page: Path) -> dict[str, str]:
    """Return the files that a page shows, by name."""
    return dict(_FILE.findall(page.read_text(encoding="utf-8")))
