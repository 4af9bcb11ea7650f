"""What a stage of a run is; which ones there are, `stages` says.

What belongs here: the noun alone, without torch: command line, help and plan read it before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from dfqkit.config.recipe import Recipe
    from dfqkit.run.context import Context

__all__ = ["WHOLE", "Part", "Plan", "Stage", "StageResult", "always", "joined", "only", "whole"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a stage that needs no other piece of it, such as a shard or a seed; `WHOLE` is all of it."""

    name: str


WHOLE = Part(name="")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a stage is going to do.

    Attributes:
        text: in one phrase.
        size: bytes that it stores beyond what every run has room for.
    """

    text: str
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage leaves, beside the files themselves.

    Attributes:
        files: paths in the run's folder, each whole on disk.
        facts: what it found out; anything JSON holds.
    """

    files: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def always(_: Recipe) -> bool:
    """The stage has something to do for every recipe."""
    return True


def whole(_: Recipe) -> Sequence[Part]:
    """The stage is done in one piece."""
    return (WHOLE,)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run, which works from the files of those before it and leaves files of its own.

    Attributes:
        name: as the command line and the manifest have it.
        help: what it does, for `dfqkit run --help`.
        run: does one part of it.
        plan: says what it is going to do for a recipe.
        applies: whether it has something to do for a recipe; otherwise it is complete without being run.
        parts: what several processes could share.
    """

    name: str
    help: str
    run: Callable[[Context, Part], StageResult]
    plan: Callable[[Recipe], Plan]
    applies: Callable[[Recipe], bool] = always
    parts: Callable[[Recipe], Sequence[Part]] = whole


def joined(results: Sequence[StageResult]) -> StageResult:
    """What a stage's parts leave together; no two of them name the same file or fact."""
    facts = {key: value for result in results for key, value in result.facts.items()}
    return StageResult(files=[name for result in results for name in result.files], facts=facts)


def only(stage: str, folder: Path | str) -> str:
    """The command that does one stage of a run."""
    return f"dfqkit run --only {stage} {folder}"
