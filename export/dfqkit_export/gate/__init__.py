"""The gate: says whether a quantized file is still as good as when it was recorded, without data and without torch.

What belongs here: measuring with the sentinel set, the baseline, verdicts, causes and their renderings. `check` is all
that a caller needs; the command line and the pytest plugin add nothing to what it decides.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .baseline import Baseline, Case, Expected, Recorded, read_baseline, write_baseline
    from .environments import in_ci
    from .judgement import check, check_case, check_metrics, check_path, conclude
    from .measurement import Measurement, measure, measure_report, open_subject
    from .outcome import CaseOutcome, Options, Outcome
    from .recording import save_cases
    from .renderings import render_json, render_junit, render_markdown, render_text
    from .verdicts import Row

_HOME = {
    "Baseline": "baseline",
    "Case": "baseline",
    "CaseOutcome": "outcome",
    "Expected": "baseline",
    "Measurement": "measurement",
    "Options": "outcome",
    "Outcome": "outcome",
    "Recorded": "baseline",
    "Row": "verdicts",
    "check": "judgement",
    "check_case": "judgement",
    "check_metrics": "judgement",
    "check_path": "judgement",
    "conclude": "judgement",
    "in_ci": "environments",
    "measure": "measurement",
    "measure_report": "measurement",
    "open_subject": "measurement",
    "read_baseline": "baseline",
    "render_json": "renderings",
    "render_junit": "renderings",
    "render_markdown": "renderings",
    "render_text": "renderings",
    "save_cases": "recording",
    "write_baseline": "baseline",
}

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
    "measure",
    "measure_report",
    "open_subject",
    "read_baseline",
    "render_json",
    "render_junit",
    "render_markdown",
    "render_text",
    "save_cases",
    "write_baseline",
]


def __getattr__(name: str) -> Any:
    """Import the module that holds `name` the first time it is asked for."""
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
