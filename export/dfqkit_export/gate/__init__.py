"""The gate: says whether a quantized file is still as good as when it was recorded, without data and without torch.

What belongs here: measuring with the sentinel set, the baseline, verdicts, causes and their renderings. `check` is all
that a caller needs; the command line and the pytest plugin add nothing to what it decides.
"""

from __future__ import annotations

from dfqkit_export.gate.apart import check_apart
from dfqkit_export.gate.baseline import Baseline, Case, Expected, Recorded, in_ci, read_baseline, write_baseline
from dfqkit_export.gate.compare import check, check_case, check_metrics, check_path, conclude
from dfqkit_export.gate.measurement import Measurement, measure_report, measure_subject, open_subject
from dfqkit_export.gate.recording import save_cases
from dfqkit_export.gate.renderings import render_json, render_junit, render_markdown, render_text
from dfqkit_export.gate.verdicts import CaseOutcome, Options, Outcome, Row

__all__ = [
    "Baseline", "Case", "CaseOutcome", "Expected", "Measurement", "Options", "Outcome", "Recorded", "Row", "check",
    "check_apart", "check_case", "check_metrics", "check_path", "conclude", "in_ci", "measure_report",
    "measure_subject", "open_subject", "read_baseline", "render_json", "render_junit", "render_markdown", "render_text",
    "save_cases", "write_baseline",
]  # fmt: skip
