"""How to check, and what came of it: of one case, and of all.

What belongs here: what callers give and get. How it is decided is `judgement`'s, how it is shown `renderings`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dfqkit_export.gate.baseline import Baseline, Case
from dfqkit_export.gate.verdicts import Row

__all__ = ["CaseOutcome", "Options", "Outcome"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to check.

    Attributes:
        strict: Let improved, new and unmeasured metrics, unused cases and expected failures that pass fail, too.
        tolerances: Tolerances by metric that take the place of the recorded ones.
        floors: Floors by metric that an update adds.
        threads: Threads inside one operator; None leaves the choice to the runtime.
        optimized: False switches the runtime's graph optimizations off.
        allow: Why files that are refused by default are taken; "" refuses them.
        update: Whether to make a new baseline of what is measured.
    """

    strict: bool = False
    tolerances: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    threads: int | None = None
    optimized: bool = True
    allow: str = ""
    update: bool = False


@dataclass(frozen=True, kw_only=True)
class CaseOutcome:
    """What came of one case.

    Attributes:
        name: Name of the case; the path where it could not be read.
        rows: Its metrics, worst first.
        causes: Why it failed, the surest first.
        notes: What else changed.
        error: Why it could not be checked; "" otherwise.
        exit_code: That of the error; 0 without one.
        entry: What an update records; None where nothing is to be recorded.
    """

    name: str
    rows: tuple[Row, ...] = ()
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""
    exit_code: int = 0
    entry: Case | None = None

    def failed(self, *, strict: bool = False) -> bool:
        """Return whether the case fails the check."""
        return bool(self.error) or any(row.fails(strict=strict) for row in self.rows)

    def verdict(self) -> str:
        """Return the verdict of the worst row; "error" where nothing was measured."""
        return "error" if self.error else (self.rows[0].verdict if self.rows else "ok")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a check.

    Attributes:
        cases: One for each file, failed ones first, then by name.
        unused: Cases of the baseline that no file was given for; none where a file could not be read, which may be
            one of them.
        environment: What differs from where the baseline was recorded, a sentence each.
        strict: Whether the check was strict.
        baseline: The baseline that an update made; None without one.
        changes: What the update changed, a line each.
    """

    cases: tuple[CaseOutcome, ...]
    unused: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    strict: bool = False
    baseline: Baseline | None = None
    changes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether anything fails."""
        return any(case.failed(strict=self.strict) for case in self.cases) or (self.strict and bool(self.unused))

    @property
    def exit_code(self) -> int:
        """0 where all is well, 1 where a check failed; that of the first error where a file could not be checked."""
        errors = [case.exit_code for case in self.cases if case.error]
        return errors[0] if errors else int(self.failed)
