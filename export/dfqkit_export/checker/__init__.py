"""Judges a QDQ file for a target without running it, and repairs what can be repaired without changing a number.

What belongs here: rules on the file as it is written, each with an id, a severity and a repair; one module for each
subject, one table over all of them. Nothing here needs a runtime, except the proof of a repair, which needs ONNX
Runtime.
"""

from __future__ import annotations

from dfqkit_export.checker.check import all_rules, check_file, check_model, rules_for
from dfqkit_export.checker.fix import fix_file
from dfqkit_export.checker.framework import CheckResult, FixResult, Problem, Repaired

__all__ = [
    "CheckResult", "FixResult", "Problem", "Repaired", "all_rules", "check_file", "check_model", "fix_file",
    "rules_for",
]  # fmt: skip
