"""What TensorRT and TensorRT-RTX have in common on our side of the process: asking for a build, and what came of it.

What belongs here: `Build` and the call that makes one in a child process. The vendor's interfaces are `_engine_build`'s
and `engine_session`'s.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqkit_export.backends.isolation import Limits, call_isolated
from dfqkit_export.errors import ArtefactError, RuntimeUnavailableError
from dfqkit_export.files import require_model, write_bytes

_COMPLAINTS = ("INTERNAL_ERROR", "ERROR", "WARNING")


@dataclass(frozen=True, kw_only=True)
class ParserProblem:
    """One thing that the vendor's ONNX parser refused: its error code, the node, that one's operator, what it said."""

    code: str
    node: str
    operator: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Build:
    """What a vendor's builder made of a file.

    Attributes:
        path: The ONNX file.
        runtime: "tensorrt" or "tensorrt-rtx".
        version: The vendor library's version.
        accepted: Whether there is an engine.
        problems: What the parser refused.
        messages: The log's errors and warnings, as "ERROR: text".
        log: The log's texts, all severities; the layer table is among them.
        seconds: What parsing and building took.
        engine: The engine file; None where it was refused or not asked for.
        engine_bytes: Size of the engine, kept or not.
        layer_info: What the engine's inspector said, as JSON text; "" where the engine was not loaded.
    """

    path: Path
    runtime: str
    version: str
    accepted: bool
    problems: tuple[ParserProblem, ...]
    messages: tuple[str, ...]
    log: tuple[str, ...]
    seconds: float
    engine: Path | None
    engine_bytes: int
    layer_info: str = ""

    def require(self) -> None:
        """Refuse a file that the builder refused: says at which node, or in the builder's words why."""
        if self.accepted:
            return
        said = [f"{item.operator} {item.node!r}: {item.text} ({item.code})" for item in self.problems]
        said += [message for message in self.messages if not message.startswith("WARNING")] if not said else []
        message = (
            f"Model {str(self.path)!r} is not accepted by {self.runtime} {self.version}: "
            f"{'; '.join(said) or 'it gave no reason'}. 'dfqkit inspect FILE --target {self.runtime}' names the rules "
            "that it breaks, and their repair."
        )
        raise ArtefactError(message)


def build_isolated(
    runtime: str, path: str | Path, out: str | Path | None, options: Mapping[str, Any], *, timeout: float
) -> Build:
    """Build an engine in a child process.

    Args:
        runtime: "tensorrt" or "tensorrt-rtx".
        path: The ONNX file.
        out: Where to keep the engine; None keeps none.
        options: Arguments of `_engine_build.build_engine` beside module, path and plan.
        timeout: Seconds after which the builder is stopped.
    """
    require_model(Path(path))
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
        plan = Path(folder) / "engine"
        found = call_isolated(
            "backends.tensorrt._engine_build:build_engine",
            {"module": module_name(runtime), "path": str(Path(path).resolve()), "plan": str(plan), **options},
            runtime=runtime,
            doing=f"building {str(path)!r}",
            limits=Limits(seconds=timeout),
        )
        size = plan.stat().st_size if found["accepted"] else 0
        if found["accepted"] and out is not None:
            write_bytes(Path(out), plan.read_bytes())
    messages = [f"{severity}: {text}" for severity, text in found["messages"] if severity in _COMPLAINTS]
    return Build(
        path=Path(path),
        runtime=runtime,
        version=found["version"],
        accepted=found["accepted"],
        problems=tuple(ParserProblem(**problem) for problem in found["problems"]),
        messages=tuple(messages),
        log=tuple(text for _, text in found["messages"]),
        seconds=found["seconds"],
        engine=Path(out) if out is not None and found["accepted"] else None,
        engine_bytes=size,
    )


def require(runtime: str, missing: str) -> None:
    """Refuse to go on where something is missing."""
    if missing:
        message = f"{runtime} cannot be used here: {missing}."
        raise RuntimeUnavailableError(message)


def module_name(runtime: str) -> str:
    """Return the Python module of "tensorrt" or "tensorrt-rtx"."""
    return runtime.replace("-", "_")


def check_batches(batches: Sequence[int]) -> list[int]:
    """Return smallest, best and largest batch as a list."""
    found = list(batches)
    if len(found) != 3 or found[0] < 1 or found != sorted(found):
        message = f"Batches are {found}; give three, smallest, best and largest, each at least 1, in order: (1, 8, 32)."
        raise ArtefactError(message)
    return found
