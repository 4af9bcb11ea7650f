"""`dfqkit list`: the recipes, synthesizers and targets there are."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .options import Parser, result, table

if TYPE_CHECKING:
    from .options import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    parser: Parser = commands.add_parser(
        "list",
        help="list recipes, synthesizers or targets",
        description="List recipes with what each is for, synthesizers with what each needs of a teacher, or targets.",
    )
    parser.add_argument("what", choices=("recipes", "synthesizers", "targets"), help="what to list")
    parser.set_defaults(handler=_list)


def _list(args: argparse.Namespace) -> int:
    rows = {"recipes": _recipes, "synthesizers": _synthesizers, "targets": _targets}[args.what]()
    result(table(rows))
    return 0


def _recipes() -> list[tuple[str, ...]]:
    import yaml

    from ..recipe import list_recipes

    # Only the text is read: validating a recipe imports torch.
    texts = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in list_recipes().items()}
    return [(name, str(data.get("why", ""))) for name, data in texts.items()]


def _synthesizers() -> list[tuple[str, ...]]:
    from ..registry import synthesizers

    return [
        (name, f"needs {', '.join(sorted(method.needs)) or 'nothing'}", (method.__doc__ or "").partition("\n")[0])
        for name, method in synthesizers().items()
    ]


def _targets() -> list[tuple[str, ...]]:
    from dfqkit_export.targets import TARGETS

    rows: list[tuple[str, ...]] = []
    for name, target in sorted(TARGETS.items()):
        spaces = {
            "weights": target.weights,
            "activations": target.signed_activations,
            "after ReLU": target.unsigned_activations,
        }
        kinds = "; ".join(
            f"{what} {_bits(space.bits)} {'int' if space.signed else 'uint'} {space.granularity.replace('_', ' ')}"
            f"{' symmetric' if space.symmetric else ''}"
            for what, space in spaces.items()
        )
        rows.append((name, target.title, kinds))
    return rows


def _bits(bits: tuple[int, ...]) -> str:
    whole = bits == tuple(range(bits[0], bits[-1] + 1)) and len(bits) > 1
    return f"{bits[0]}-{bits[-1]} bit" if whole else f"{', '.join(map(str, bits))} bit"
