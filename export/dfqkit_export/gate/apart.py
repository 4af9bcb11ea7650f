"""One case of a check in a process of its own, so that a file that crashes its runtime costs no other file's result.

What belongs here: the parent's end of that, and the JSON between both; the child's is `compare.answer`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dfqkit_export.backends.isolation import UnforeseenError, call_isolated, foreign_limits
from dfqkit_export.errors import RuntimeCrashedError
from dfqkit_export.gate.baseline import Baseline, Case
from dfqkit_export.gate.verdicts import CaseOutcome, Options, Row

_BUG = 4  # the exit code of what nobody foresaw


def check_apart(path: str | Path, baseline: Baseline, options: Options, *, name: str = "") -> CaseOutcome:
    """Check one file as `check_path` does, in a child process: its crash, hang or bug is this case's error."""
    arguments = {
        "path": str(path),
        "cases": {key: case.to_dict() for key, case in baseline.cases.items()},
        "options": asdict(options),
        "name": name,
    }
    try:
        found: dict[str, Any] = call_isolated(
            "gate.compare:answer",
            arguments,
            runtime="What reads or runs the file",
            doing=f"checking {str(path)!r}",
            limits=foreign_limits(),
            fresh=False,
        )
    except RuntimeCrashedError as error:
        return CaseOutcome(name=name or str(path), error=str(error), exit_code=error.exit_code)
    except UnforeseenError as error:
        told = f"This is a bug in dfqkit; please report it with the file: {str(error)[-1500:]}"
        return CaseOutcome(name=name or str(path), error=told, exit_code=_BUG)
    rows, entry = tuple(Row(**row) for row in found.pop("rows")), found.pop("entry")
    others: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    return CaseOutcome(rows=rows, entry=entry and Case.from_dict(entry), **others)
