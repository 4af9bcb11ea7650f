"""What a backend is: one way to execute a file, with the targets that it serves.

What belongs here: the shape of an entry of the table, and nothing that loads a runtime. What an entry needs beyond its
name is imported inside its functions (`pkgutil.resolve_name`), so that the whole table is read without any of the
runtimes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dfqkit_export.errors import RuntimeUnavailableError, TargetError
from dfqkit_export.lazy import install_hint

if TYPE_CHECKING:
    from dfqkit_export.backends.precision import Realised
    from dfqkit_export.backends.rule import Rule
    from dfqkit_export.backends.session import Session
    from dfqkit_export.backends.target import Target


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a file is run where that is left open.

    Attributes:
        threads: Threads of a runtime on the CPU, at least 1; None leaves the choice to it. Others do not ask.
    """

    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to execute a file.

    Attributes:
        name: Key on the command line, and the subject of what it computed in reports.
        title: Name for people.
        package: Distribution whose version a report states.
        load: Loads a file. Raises `RuntimeUnavailableError` and `ArtefactError`.
        missing: Says why files cannot be given to it on this machine, and what to install; "" where they can.
        targets: What it serves; each names it as its `Target.backend`.
        executed: Says how each layer of a file is executed; None where nothing tells.
        rules: The checker's rules for its targets, beside those for all.
        witness_of: Names of targets for which it says what runs in integers, without their hardware.
        on_cpu: Whether it computes on the CPU.
        sees_layers: Whether inner tensors can be made outputs without another computation taking place.
        rounds_inside: Whether it rounds to codes where the file says so inside what it computes in one kernel.
        rounds_biases: Whether it rounds float biases of quantized layers, which the file does not say.
        trtexec: Whether NVIDIA's `trtexec` builds files for its targets.
    """

    name: str
    title: str
    package: str
    load: Callable[[Path, Options], Session]
    missing: Callable[[], str]
    targets: tuple[Target, ...] = ()
    executed: Callable[[Path], Realised] | None = None
    rules: Callable[[], tuple[Rule, ...]] = tuple
    witness_of: tuple[str, ...] = ()
    on_cpu: bool = True
    sees_layers: bool = False
    rounds_inside: bool = True
    rounds_biases: bool = False
    trtexec: bool = False

    def __post_init__(self) -> None:
        """Refuse a target of another backend."""
        for target in self.targets:
            if target.backend != self.name:
                message = f"Target {target.name!r} says that {target.backend!r} executes it, not {self.name!r}."
                raise TargetError(message)

    def require(self) -> None:
        """Raise `RuntimeUnavailableError`, which says what is missing, where files cannot be given to it."""
        missing = self.missing()
        if missing:
            message = f"Runtime {self.name!r} cannot be used on this machine: {missing}."
            raise RuntimeUnavailableError(message)


def not_installed(module: str, install: str = "", *, extra: str = "") -> str:
    """Say what to do about a module that is not installed: add `extra`, or what `install` says; "" where it is."""
    if find_spec(module) is not None:
        return ""
    return f"{module} is not installed; {install or f'run {install_hint(extra)}'}"
