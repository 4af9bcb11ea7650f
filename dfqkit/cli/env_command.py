"""`dfqkit env`: the facts about this machine and its packages that results depend on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from dfqkit.cli.options import Commands, add_command, show
from dfqkit_export.words import table


def add(commands: Commands) -> None:
    """Add the command."""
    add_command(
        commands,
        "env",
        _env,
        "print versions and machine, for a bug report",
        "Print the versions and the facts about this machine that results depend on.",
    )


def _env(args: argparse.Namespace) -> int:
    from dfqkit_export._version import __version__
    from dfqkit_export.env import environment

    facts = {"dfqkit": __version__, **environment()}
    show(args, facts, table([*_rows(facts)]))
    return 0


def _rows(facts: Mapping[str, Any], parent: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{parent}{name} ")
        else:
            yield f"{parent}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
