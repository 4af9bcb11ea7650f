"""The gate: says whether a quantized file is still as good as when it was recorded, without data and without torch.

What belongs here: measuring with the sentinel set, the baseline, verdicts, causes and their renderings. `check` is all
that a caller needs; the command line and the pytest plugin add nothing to what it decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit_export.lazy import attach

if TYPE_CHECKING:
    from dfqkit_export.gate.baseline import Baseline, Case, Expected, Recorded, in_ci, read_baseline, write_baseline
    from dfqkit_export.gate.compare import check, check_case, check_metrics, check_path, conclude
    from dfqkit_export.gate.measurement import Measurement, measure_report, measure_subject, open_subject
    from dfqkit_export.gate.recording import save_cases
    from dfqkit_export.gate.renderings import render_json, render_junit, render_markdown, render_text
    from dfqkit_export.gate.verdicts import CaseOutcome, Options, Outcome, Row

__getattr__, __dir__ = attach(
    __name__,
    {
        "Baseline": "dfqkit_export.gate.baseline",
        "Case": "dfqkit_export.gate.baseline",
        "CaseOutcome": "dfqkit_export.gate.verdicts",
        "Expected": "dfqkit_export.gate.baseline",
        "Measurement": "dfqkit_export.gate.measurement",
        "Options": "dfqkit_export.gate.verdicts",
        "Outcome": "dfqkit_export.gate.verdicts",
        "Recorded": "dfqkit_export.gate.baseline",
        "Row": "dfqkit_export.gate.verdicts",
        "check": "dfqkit_export.gate.compare",
        "check_case": "dfqkit_export.gate.compare",
        "check_metrics": "dfqkit_export.gate.compare",
        "check_path": "dfqkit_export.gate.compare",
        "conclude": "dfqkit_export.gate.compare",
        "in_ci": "dfqkit_export.gate.baseline",
        "measure_report": "dfqkit_export.gate.measurement",
        "measure_subject": "dfqkit_export.gate.measurement",
        "open_subject": "dfqkit_export.gate.measurement",
        "read_baseline": "dfqkit_export.gate.baseline",
        "render_json": "dfqkit_export.gate.renderings",
        "render_junit": "dfqkit_export.gate.renderings",
        "render_markdown": "dfqkit_export.gate.renderings",
        "render_text": "dfqkit_export.gate.renderings",
        "save_cases": "dfqkit_export.gate.recording",
        "write_baseline": "dfqkit_export.gate.baseline",
    },
)

__all__ = [
    "Baseline",
    "Case",
    "CaseOutcome",
    "Expected",
    "Measurement",
    "Options",
    "Outcome",
    "Recorded",
    "Row",
    "check",
    "check_case",
    "check_metrics",
    "check_path",
    "conclude",
    "in_ci",
    "measure_report",
    "measure_subject",
    "open_subject",
    "read_baseline",
    "render_json",
    "render_junit",
    "render_markdown",
    "render_text",
    "save_cases",
    "write_baseline",
]
