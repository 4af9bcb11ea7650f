"""The same file on other processors: proven, run under emulation, or not looked at; family of kernels by family.

What belongs here: the families (`families`), how each is reached (`environment`, `emulated`), what is said of them
without running anything (`bounds`) and by running them (`proving`), and the table (`text`).
"""

from __future__ import annotations

from dfqkit_export.comparison.portability.families import FAMILIES, Family, families, own_family, runs
from dfqkit_export.comparison.portability.proving import EQUAL, PARTS, PROVEN, UNSEEN, Portability, prove
from dfqkit_export.comparison.portability.text import portability_table, render_portability, said

__all__ = [
    "EQUAL", "FAMILIES", "PARTS", "PROVEN", "UNSEEN", "Family", "Portability", "families", "own_family",
    "portability_table", "prove", "render_portability", "runs", "said",
]  # fmt: skip
