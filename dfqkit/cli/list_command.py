"""`dfqkit list`: the recipes, synthesizers, targets and runtimes there are."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from dfqkit.cli.options import Commands, add_command, show
from dfqkit_export.words import table

_DESCRIPTION = (
    "List recipes with what each is for, synthesizers with what each needs of a teacher, targets with what each takes, "
    "or runtimes with what each lacks on this machine. `list targets NAME` prints the whole table of one target, "
    "every cell with its source."
)


def add(commands: Commands) -> None:
    """Add the command."""
    text = "list recipes, synthesizers, targets or runtimes"
    parser = add_command(commands, "list", _list, text, _DESCRIPTION)
    parser.add_argument("what", choices=tuple(_LISTS), help="what to list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a target, to print everything known about it")


def _list(args: argparse.Namespace) -> int:
    if args.name is not None and args.what != "targets":
        args.parser.error(f"NAME goes with targets; leave out '{args.name}'")
    if args.name is not None:
        from dfqkit_export.backends import get_target
        from dfqkit_export.backends.target_text import render_target

        target = get_target(args.name)
        show(args, {"target": dataclasses.asdict(target)}, render_target(target))
        return 0
    reading, columns = _LISTS[args.what]
    rows = reading()
    show(args, {args.what: [dict(zip(columns, row, strict=True)) for row in rows]}, table(rows))
    return 0


def _recipes() -> list[tuple[str, ...]]:
    import yaml

    from dfqkit.config.files import list_recipes

    # One line of each is needed, and they are ours: no recipe is built, and no text looked at with suspicion.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    documents: dict[str, Any] = {
        name: yaml.compose(path.read_text(encoding="utf-8"), loader) for name, path in list_recipes().items()
    }
    return [
        (name, next((value.value for key, value in document.value if key.value == "why"), ""))
        for name, document in documents.items()
    ]


def _synthesizers() -> list[tuple[str, ...]]:
    from dfqkit.config.registry import synthesizer_configs

    return [
        (name, f"needs {', '.join(sorted(method.needs)) or 'nothing'}", method.summary())
        for name, method in synthesizer_configs().items()
    ]


def _targets() -> list[tuple[str, ...]]:
    from dfqkit_export.backends import all_targets
    from dfqkit_export.backends.target_text import summary

    return summary(all_targets().values())


def _runtimes() -> list[tuple[str, ...]]:
    from dfqkit_export.backends import all_backends

    missing = {name: backend.missing() for name, backend in all_backends().items()}
    return [(name, "missing" if reason else "available", reason) for name, reason in missing.items()]


#: What there is to list: what reads the rows, and what their columns are called in a document.
_LISTS: dict[str, tuple[Callable[[], list[tuple[str, ...]]], tuple[str, ...]]] = {
    "recipes": (_recipes, ("name", "why")),
    "synthesizers": (_synthesizers, ("name", "needs", "summary")),
    "targets": (_targets, ("name", "title", "opsets", "student")),
    "runtimes": (_runtimes, ("name", "state", "missing")),
}
