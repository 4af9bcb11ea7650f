"""Where two files, or one file in two runtimes, or two reports part.

What belongs here: running and measuring both (`files`), which layer stands for which (`matching`), when a layer has
parted (`layers`), reports metric by metric (`reports`), and all of it in words (`text`).
"""

from __future__ import annotations

from dfqkit_export.comparison.files import Comparison, Side, compare_files
from dfqkit_export.comparison.layers import MIN_SQNR, LayerDifference
from dfqkit_export.comparison.reports import ReportDifference, compare_reports
from dfqkit_export.comparison.text import render_comparison, render_differences

__all__ = [
    "MIN_SQNR", "Comparison", "LayerDifference", "ReportDifference", "Side", "compare_files", "compare_reports",
    "render_comparison", "render_differences",
]  # fmt: skip
