"""What a rule is: an id, what it wants of a quantized file, and a function that yields every place that breaks it.

What belongs here: the shape of a rule. Rules of a runtime stand in its folder, those for all in `checker.rules_common`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dfqkit_export.backends.qdq import QdqGraph

if TYPE_CHECKING:
    from dfqkit_export.checker.editing import Editor

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Violation:
    """One place that breaks a rule, as the rule's function reports it.

    Attributes:
        node: Name of the place.
        message: What was found, and why that matters.
        repair: What to change here, where that differs from the rule's general repair.
        fixable: False where the rule's repair cannot keep the values in this place.
    """

    node: str
    message: str
    repair: str = ""
    fixable: bool = True


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of the checker's table.

    Attributes:
        id: Short name, unique.
        severity: "error" where the runtime refuses the file or computes other numbers, "warning" where it accepts the
            file and is slower than it could be, or where other tools may stumble.
        title: What the rule wants, in one line.
        repair: What to change where it is broken.
        find: Yields every place that breaks it.
        fixable: Whether `fix_file` knows a repair.
        mend: That repair, for a rule that brings its own; those of `checker.repairs` are found by the rule's id. It
            takes the model that is being repaired and the name of the place, and returns what it did as a sentence, ""
            where it could do nothing; no number may change.
    """

    id: str
    severity: Severity
    title: str
    repair: str
    find: Callable[[QdqGraph], Iterator[Violation]]
    fixable: bool = False
    mend: Callable[[Editor, str], str] | None = None


def rule(
    id: str, severity: Severity, title: str, *, repair: str, fixable: bool = False
) -> Callable[[Callable[[QdqGraph], Iterator[Violation]]], Rule]:
    """Make a rule of the function that finds what breaks it; the arguments are the rule's attributes."""
    return lambda find: Rule(id=id, severity=severity, title=title, repair=repair, find=find, fixable=fixable)


def rules_in(module: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Return the rules among a module's names."""
    return tuple(value for value in module.values() if isinstance(value, Rule))
