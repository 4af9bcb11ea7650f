"""What the checker finds and what its repairs did, as plain data.

What belongs here: the types that other rooms and the command line read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dfqkit_export.backends.rule import Severity


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One place in a file that breaks one rule.

    Attributes:
        rule: The rule's id, such as "E4", "W3" or "O2".
        severity: "error" where the runtime refuses the file or computes other numbers, "warning" where it accepts the
            file and is slower than it could be, or where other tools may stumble.
        node: Name of the node; its operator and index where it has none; "" where the whole file is meant.
        message: What was found, and why that matters.
        repair: What to change.
        fixable: Whether `fix_file` changes it.
    """

    rule: str
    severity: Severity
    node: str
    message: str
    repair: str
    fixable: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the problem as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Every problem of one file for one target.

    Attributes:
        target: The target's name.
        problems: Errors first, then in the order of the rules and of the file.
    """

    target: str
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that keep the file from running, or from computing what it says."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The problems that leave layers in float, slow, or at another tool's mercy."""
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        return {
            "target": self.target,
            "ok": self.ok,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "problems": [asdict(problem) for problem in self.problems],
        }


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """One change that `fix_file` made.

    Attributes:
        rule: The id of the rule that the change obeys.
        node: The node that was changed or removed; "" where the whole file is meant.
        change: What was done, as a sentence without a full stop.
    """

    rule: str
    node: str
    change: str


@dataclass(frozen=True, kw_only=True)
class FixResult:
    """What `fix_file` changed, and the proof that the numbers stayed.

    Attributes:
        target: The target's name.
        path: The file that was written.
        applied: The changes, in the order in which they were made.
        remaining: What the checker still finds in the written file.
        images: How many random inputs both files were run on; 0 where nothing was changed.
        largest_difference: Largest absolute difference between the two files' outputs, optimizations off.
        reason: Why the outputs are not equal bit for bit; "" where they are.
    """

    target: str
    path: Path
    applied: tuple[Repaired, ...]
    remaining: tuple[Problem, ...]
    images: int
    largest_difference: float
    reason: str

    @property
    def exact(self) -> bool:
        """Whether both files gave the same bits."""
        return self.largest_difference == 0.0

    @property
    def ok(self) -> bool:
        """Whether no error is left."""
        return all(problem.severity != "error" for problem in self.remaining)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        return {
            "target": self.target,
            "path": str(self.path),
            "ok": self.ok,
            "applied": [asdict(repaired) for repaired in self.applied],
            "remaining": [asdict(problem) for problem in self.remaining],
            "images": self.images,
            "largest_difference": self.largest_difference,
            "exact": self.exact,
            "reason": self.reason,
        }
