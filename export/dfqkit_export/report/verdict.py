"""The verdict: its three states, and how several make one.

What belongs here: what everybody who shows or asks for a verdict reads. What decides it is `judging`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

Verdict = Literal["ok", "failed", "not judged"]

#: It was judged, and nothing speaks against it.
OK: Final = "ok"
#: It was judged, and something does not hold.
FAILED: Final = "failed"
#: What could be measured does not tell; never to be shown as `OK`, and never without the reason.
NOT_JUDGED: Final = "not judged"

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict of several together: the worst, of which one that was not judged is worse than one that was.

    Example:
        >>> overall(["ok", "not judged"]), overall(["not judged", "failed"]), overall([])
        ('not judged', 'failed', 'ok')
    """
    found = set(verdicts)
    return FAILED if FAILED in found else NOT_JUDGED if NOT_JUDGED in found else OK


def exit_code(verdict: Verdict) -> int:
    """Return that of a command that made something: 1 where it failed, 0 else."""
    return int(verdict == FAILED)
