"""Target tables for people: one row a target, and one target with every cell and its source."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from dfqkit_export.backends.target import Cell, QuantSpace, Target

_WIDTH = 110
_PLACES = {
    "around": "on every input and behind the output",
    "inputs": "on the inputs",
    "through": "not here: codes pass through it",
    "float": "nowhere: it computes in float",
}


def describe(space: QuantSpace) -> str:
    """Say a space in a few words, such as ``uint8 2-8 bit per tensor, any zero point``."""
    bits = space.bits
    whole = len(bits) > 1 and bits == tuple(range(bits[0], bits[-1] + 1))
    words = [
        space.dtype,
        f"{bits[0]}-{bits[-1]} bit" if whole else f"{', '.join(map(str, bits))} bit",
        space.granularity.replace("_", " "),
    ]
    details = ["zero point 0" if space.symmetric else "any zero point"]
    details += ["lowest code unused"] if space.narrow_range else []
    details += ["7 bits filled"] if space.reduce_range else []
    return f"{' '.join(words)}, {', '.join(details)}"


def summary(targets: Iterable[Target]) -> list[tuple[str, ...]]:
    """Return one row a target: name, title, what the student gets, and the opsets that are read."""
    rows: list[tuple[str, ...]] = []
    for target in targets:
        first, last = target.opsets.value
        behind = target.unsigned_activations
        words = (
            f"weights {describe(target.weights)}; activations {describe(target.signed_activations)}"
            f"{'' if behind == target.signed_activations else f' (behind ReLU {_zero(behind)})'}; bias {target.bias}"
        )
        rows.append((target.name, target.title, f"opset {first}-{last}", words))
    return rows


def render_target(target: Target) -> str:
    """Return everything the table says about a target, each cell with the number of its source in the list below it."""
    sources = _Sources()
    return "\n".join([*_lines(target, sources), *sources.lines()])


class _Sources:
    """Numbers sources in the order in which they are first named."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, source: str) -> str:
        return f"[{self._numbers.setdefault(source, len(self._numbers) + 1)}]"

    def lines(self) -> Iterator[str]:
        yield "sources"
        for source, number in self._numbers.items():
            yield from _wrapped(source, f"  [{number}] ".ljust(7), " " * 7)


def _lines(target: Target, sources: _Sources) -> Iterator[str]:
    def cell(name: str, value: str, fact: Cell[Any]) -> list[str]:
        return _wrapped(f"{value} {sources.mark(fact.source)}", f"  {name:<12}", " " * 14)

    first, last = target.opsets.value
    relu = "the lowest code fuses" if target.relu_zero_point.value == "lowest" else "any fuses"
    refused = ", ".join(sorted(target.unsupported.value)) or "nothing known"
    yield f"{target.title} ({target.name}), run by {target.backend}"
    yield ""
    yield "what this project writes for it"
    yield f"  weights       {describe(target.weights)}"
    yield f"  activations   {describe(target.signed_activations)}"
    yield f"  behind ReLU   {describe(target.unsigned_activations)}"
    yield f"  bias          {target.bias}"
    yield f"  Q/DQ          {'behind every operator that computes' if target.quantize_outputs else 'on inputs only'}"
    yield f"  below 8 bits  Clip {'of floats before Q' if target.clip_before_quantize else 'of codes behind Q'}"
    yield f"  opset         {target.opset}"
    yield ""
    yield "what it takes"
    yield from cell("opsets", f"{first} to {last}", target.opsets)
    yield from cell("types", ", ".join(target.dtypes.value), target.dtypes)
    yield from cell("zero points", "0 alone" if target.zero_point_zero.value else "any", target.zero_point_zero)
    yield from cell("behind ReLU", relu, target.relu_zero_point)
    yield from cell("refused", refused, target.unsupported)
    for rule in target.operators:
        yield ""
        yield ", ".join(rule.operators)
        for name, fact in rule.cells():
            if fact.value:
                yield from cell("Q/DQ" if name == "placement" else name, _said(name, fact.value), fact)
    yield ""
    yield "Nothing is established about operators without a row."
    yield ""
    for quirk in target.quirks:
        yield from _wrapped(quirk, "* ", "  ")
    yield ""


def _said(column: str, value: Any) -> str:
    if column == "placement":
        return _PLACES[value]
    if column == "opsets":
        return f"{value[0]} to {value[1]}"
    return "; or ".join(describe(item) if isinstance(item, QuantSpace) else str(item) for item in value)


def _wrapped(text: str, first: str, other: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=other, break_on_hyphens=False)


def _zero(space: QuantSpace) -> str:
    return "zero point 0" if space.symmetric else "any zero point"
