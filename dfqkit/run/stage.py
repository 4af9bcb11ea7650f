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


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a stage that needs no other piece of it.

    Attributes:
        name: What tells it, and its files, from the others; empty for the first, or only, one.
        target: The target that it is about; None where there is one, or it makes no difference.
    """

    name: str = ""
    target: str | None = None


WHOLE = Part()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a stage is going to do.

    Attributes:
        text: In one phrase.
        size: Bytes that it stores beyond what every run has room for.
    """

    text: str
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage leaves, beside the files themselves.

    Attributes:
        files: Paths in the run's folder, each whole on disk.
        facts: What it found out; anything JSON holds.
    """

    files: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def each_target(recipe: Recipe) -> Sequence[Part]:
    """Return the parts of a stage that is done once for every target of the recipe."""
    if len(recipe.targets) == 1:
        return (WHOLE,)
    return [Part(name=target if index else "", target=target) for index, target in enumerate(recipe.targets)]


def named(name: str, part: Part) -> str:
    """Return what a part calls a file of that name, so that no two write the same: ``model.openvino.onnx``."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}.{part.name}{dot}{suffix}" if part.name else name


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run, which works from the files of those before it and leaves files of its own.

    Attributes:
        name: As the command line and the manifest have it.
        help: What it does, for `dfqkit run --help`.
        run: Does it, or the part that the context is about.
        plan: Says what it is going to do for a recipe.
        applies: Whether it has something to do for a recipe; otherwise it is complete without being run.
        parts: What several processes could share.
        apart: Whether they may: not where one is timed, which another one beside it would disturb.
        assist: What further processes that torchrun started do while the first one runs a part; None for nothing.
    """

    name: str
    help: str
    run: Callable[[Context], StageResult]
    plan: Callable[[Recipe], Plan]
    applies: Callable[[Recipe], bool] = lambda _: True
    parts: Callable[[Recipe], Sequence[Part]] = lambda _: (WHOLE,)
    apart: bool = True
    assist: Callable[[Context], None] | None = None


def joined(results: Mapping[Part, StageResult]) -> StageResult:
    """Return what parts leave together: all files; the first part's facts, and beside them those of each other."""
    facts: dict[str, Any] = {}
    for part, result in results.items():
        facts |= {part.name: dict(result.facts)} if part.name else result.facts
    return StageResult(files=[name for result in results.values() for name in result.files], facts=facts)


def only(stage: str, folder: Path | str) -> str:
    """Return the command that does one stage of a run."""
    return f"dfqkit run --only {stage} {folder}"
