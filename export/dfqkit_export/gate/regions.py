"""The smallest part in which two graphs differ.

What belongs here: comparing what `structure` keeps. An operator is the same in two files where all that leads to it is
the same, or all that follows from it: what is neither has changed. Two digests for each operator say both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from dfqkit_export.gate.change import Change
from dfqkit_export.gate.structure import QUANTIZERS, Operator, Structure
from dfqkit_export.words import some

_SHOWN = 4
_OPTIMIZED = "com.microsoft."  # what the canonical form opens is not of this domain any more


def compare_structures(base: Structure, now: Structure) -> Iterator[Change]:
    """Yield where two graphs differ, and what of that is wrong; nothing of two that compute the same."""
    yield from _interface(base, now)
    if base.function == now.function:
        return
    gone, new = _apart(base, now)
    if gone or new:
        kind = "quantizers" if all(o.op in {*QUANTIZERS, "Clip"} for o in (*gone, *new)) else "graph"
        named = next((o.name for o in (*new, *gone) if o.op not in QUANTIZERS and o.name), "")
        layers = frozenset(o.name for o in (*gone, *new) if o.op not in QUANTIZERS)
        yield Change(layer=named, kind=kind, text=_told(gone, new), wrong=True, also=layers)
    elif base.shape == now.shape:
        for before, after in _paired(base, now):
            if before.values != after.values:
                yield Change(layer=after.name, kind="constants", text=f"numbers that {_one(after)} reads are others")


def _interface(base: Structure, now: Structure) -> Iterator[Change]:
    """Yield what whoever runs the file must do otherwise."""
    sides = ((list(base.inputs), list(now.inputs), "input"), (list(base.outputs), list(now.outputs), "output"))
    for old, new, which in sides:
        if len(old) != len(new):
            yield Change(
                layer="", kind="interface", text=f"the file had {len(old)} {which}s and has {len(new)}", wrong=True
            )
        elif sorted(old) != sorted(new):
            yield Change(
                layer="", kind="names", text=f"the {which} is called {', '.join(new)} and was {', '.join(old)}"
            )
    for before, after in zip(base.inputs.values(), now.inputs.values(), strict=False):
        if before != after:
            yield Change(layer="", kind="interface", text=f"the input was {before} and is {after}", wrong=True)


def _apart(base: Structure, now: Structure) -> tuple[list[Operator], list[Operator]]:
    """Return the operators that are gone and those that are new: no others lie between what both have."""
    if base.shape == now.shape:
        return [], []
    gone, new = (
        [
            operator
            for operator, above, below in zip(one.operators, one.above, one.below, strict=True)
            if above not in ups and below not in downs
        ]
        for one, ups, downs in (
            (base, frozenset(now.above), frozenset(now.below)),
            (now, frozenset(base.above), frozenset(base.below)),
        )
    )
    for key in (lambda o: (o.name, o.label, _constants(o)), lambda o: (o.label, _constants(o))):
        both = Counter(map(key, gone)) & Counter(map(key, new))
        left = [
            [o for o in side if not _counted_down(counts, key(o))]
            for side, counts in ((gone, both.copy()), (new, both.copy()))
        ]
        if any(left):  # else the same operators in another order, and all of them are told
            gone, new = left
    if not gone and not new:  # two parts that are each in the other graph, put together otherwise
        new = [o for o, above in zip(now.operators, now.above, strict=True) if above not in base.above][:1]
    for side, theirs, other in ((new, gone, base), (gone, new, now)):
        # One that looks like another of the other graph is told beside the one of its own name.
        known = {id(o) for o in theirs}
        names = {o.name: o for o in other.operators if o.name and id(o) not in known}
        theirs += [names[o.name] for o in side if o.name in names and names[o.name].op == o.op]
    return gone, new


def _constants(operator: Operator) -> tuple[str, ...]:
    return tuple(text for text in operator.inputs if not text.startswith("#"))


def _counted_down(counts: Counter[Any], key: Any) -> bool:
    counts[key] -= 1
    return counts[key] >= 0


def _told(gone: Sequence[Operator], new: Sequence[Operator]) -> str:
    if len(gone) == len(new) == 1 and gone[0].op == new[0].op:
        was, has = (dict(_parts(o)) for o in (gone[0], new[0]))
        differs = [
            f"{name} was {was.get(name, 'left out')} and is {has.get(name, 'left out')}"
            for name in dict.fromkeys([*was, *has])
            if was.get(name) != has.get(name)
        ]
        return f"{_one(new[0])}: {some(differs, _SHOWN, '; ') or 'it reads other tensors'}"
    parts = [
        f"{_many(side)} {'is' if len(side) == 1 else 'are'} {what}"
        for side, what in ((new, "new"), (gone, "gone"))
        if side
    ]
    fused = sorted({operator.op for operator in new if operator.op.startswith(_OPTIMIZED)})
    if fused:
        parts[-1] += (
            f"; {some(fused, _SHOWN)}, of which ONNX Runtime's optimizer makes files for one processor, cannot be "
            "compared with what they stand for: check the file that was optimized"
        )
    return " and ".join(parts)


def _parts(operator: Operator) -> Iterator[tuple[str, str]]:
    """Yield what an operator is told by: its attributes and the constants it reads."""
    for name, _, value in (text.partition("=") for text in operator.label.replace(", ", ",").split(" ")[1:]):
        yield name, value
    for slot, text in enumerate(operator.inputs):
        yield f"input {slot}", "computed" if text.startswith("#") else text.lstrip("=").rpartition(":")[2] or text


def _one(operator: Operator) -> str:
    return f"{operator.op} {operator.name}".rstrip()


def _many(operators: Sequence[Operator]) -> str:
    counts = Counter(o.op for o in operators)
    if len(operators) <= _SHOWN:
        return some([_one(o) for o in operators], _SHOWN)
    kinds = some([f"{n} {op}" if n > 1 else op for op, n in counts.most_common()], 2 * _SHOWN)
    names = [o.name for o in operators if o.name]
    at = f", from {names[0]} to {names[-1]}" if names else ""
    return f"{len(operators)} operators ({kinds}{at})"


def _paired(base: Structure, now: Structure) -> Iterator[tuple[Operator, Operator]]:
    """Yield operators of two graphs of one shape."""
    places: dict[str, list[Operator]] = {}
    for operator, above in zip(base.operators, base.above, strict=True):
        places.setdefault(above, []).append(operator)
    for operator, above in zip(now.operators, now.above, strict=True):
        if places.get(above):
            yield places[above].pop(0), operator
