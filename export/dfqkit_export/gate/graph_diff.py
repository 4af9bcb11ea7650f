"""How the layers of two files differ, read from what a baseline keeps of them; nothing is run.

What belongs here: the differences one layer at a time, and which of them are wrong whatever the accuracy: a file that
is not of the kind that was recorded, or that contradicts itself. What made them, over all layers, is `diagnosis`'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from dfqkit_export.gate.change import Change, times
from dfqkit_export.gate.regions import compare_structures
from dfqkit_export.gate.signature import LayerSignature, Signature, relative_distance

_MISFIT = 0.02
_DOUBLED = 0.9
#: Relative difference up to which two scales are the same one; a baseline keeps a few digits of each.
_SAME_SCALE = 1e-3
#: Share of its codes' size by which one layer may change alone, as where a value on the edge is rounded otherwise.
_REWRITTEN = 0.01
#: Layers whose biases may be others without that being a calibration.
_FEW = 3


def compare_signatures(base: Signature | None, now: Signature | None) -> tuple[Change, ...]:
    """Return how a file differs from the one of the baseline, in the file's order; nothing where one is not known."""
    if base is None or now is None:
        return ()
    whole = list(compare_structures(base.graph, now.graph)) if base.graph and now.graph else []
    if base.graph and now.graph and base.graph.function == now.graph.function and _equal(base, now):
        return (*whole, *_opset(base, now))  # whatever it is called and however it is written, it computes the same
    pairs, renamed = _pairs(base, now)
    found = [*_frame(base, now), *renamed]
    for before, after in pairs:
        found += _kinds(before, after)
    outputs_told = any(change.kind == "type" for change in found)
    for before, after in pairs:
        if not outputs_told:
            found += _typed(before.input, after.input, after.name, "input")
        found += _values(before, after)
    # What one layer writes, another reads: told once, of the one that writes.
    written = any(change.kind == "zero_point" and change.size for change in found)
    found = [change for change in found if not (change.kind == "zero_point" and written and not change.size)]
    if sum(change.kind == "bias_values" for change in found) > _FEW:
        found = [change for change in found if change.kind != "bias_values"]  # as every calibration has it
    found = _lone(found, pairs)
    if sum(change.kind == "activation_scale" for change in found) > len(pairs) // 2:
        # In a file that was calibrated anew, two grids may be one that were two, and a bound may bind that did not.
        whole = [replace(c, wrong=c.wrong and c.kind != "quantizers") for c in whole]
    told = {change.layer for change in found if change.wrong and change.kind != "layers"}
    whole = [c for c in whole if not (told and c.also is not None and c.also <= told)]
    shown = frozenset[str]().union(*(c.also for c in whole if c.also))
    return (*whole, *(c for c in found if c.kind != "layers" or c.layer not in shown))


def _equal(base: Signature, now: Signature) -> bool:
    """Whether the layers hold the same numbers, whatever they are called."""
    if len(base.layers) != len(now.layers):
        return False
    return all(
        (old.codes_sha256, old.scales_sha256, old.bias_sha256) == (new.codes_sha256, new.scales_sha256, new.bias_sha256)
        and math.isclose(old.output_scale, new.output_scale, rel_tol=_SAME_SCALE)
        for old, new in zip(base.layers.values(), now.layers.values(), strict=True)
    )


def _pairs(base: Signature, now: Signature) -> tuple[list[tuple[LayerSignature, LayerSignature]], list[Change]]:
    """Return layers that belong together: by name, by what surrounds them, or by place where names say nothing."""
    old, new = base.layers, now.layers
    common = [name for name in new if name in old]
    alike = base.graph is not None and now.graph is not None and base.graph.shape == now.graph.shape
    strange = old.keys() != new.keys() and (alike or 2 * len(common) < len(old))
    if strange and [m.op for m in old.values()] == [m.op for m in new.values()]:
        text = "layers have other names and are compared by their place"
        return list(zip(old.values(), new.values(), strict=True)), [Change(layer="", kind="names", text=text)]
    renamed = _renamed(base, now)
    gone = [layer for name, layer in old.items() if name not in new and name not in renamed.values()]
    come = [layer for name, layer in new.items() if name not in old and name not in renamed]
    changes = [
        Change(layer=layer.name, kind="layers", text=f"layer {layer.name} ({layer.op}) is {what}", wrong=True)
        for side, what in ((gone, "gone"), (come, "new"))
        for layer in side
    ]
    names = {name: name for name in common} | renamed
    return [(old[names[name]], new[name]) for name in new if name in names], changes


def _renamed(base: Signature, now: Signature) -> dict[str, str]:
    """Return the old name of layers that have another one, by what leads to them or follows from them."""
    if base.graph is None or now.graph is None:
        return {}
    found: dict[str, str] = {}
    for side in ("above", "below"):
        before, after = (
            {
                digest: operator.name
                for operator, digest in zip(one.graph.operators, getattr(one.graph, side), strict=True)
                if operator.name in one.layers and operator.name not in other.layers
            }
            for one, other in ((base, now), (now, base))
            if one.graph is not None
        )
        for digest in after.keys() & before.keys():
            if after[digest] not in found and before[digest] not in found.values():
                found[after[digest]] = before[digest]
    return found


def _frame(base: Signature, now: Signature) -> Iterator[Change]:
    if base.before != now.before:
        text = f"operators before the first layer were [{base.before or 'none'}] and are [{now.before or 'none'}]"
        yield Change(layer="", kind="operators", text=text, wrong=True)
    yield from _opset(base, now)


def _opset(base: Signature, now: Signature) -> Iterator[Change]:
    if base.opset != now.opset:
        yield Change(layer="", kind="opset", text=f"the opset was {base.opset} and is {now.opset}")


def _kinds(before: LayerSignature, after: LayerSignature) -> Iterator[Change]:
    """Yield differences of kind: types, bits, granularity, whether there is a bias."""
    name = after.name
    (old_type, old_bits, old_kind), (new_type, new_bits, new_kind) = map(_weight, (before.weight, after.weight))
    if old_kind != new_kind:
        text = f"weights of {name} were {old_kind or 'float'} and are {new_kind or 'float'}"
        yield Change(layer=name, kind="granularity", text=text, wrong=True)
    if old_type != new_type:
        yield Change(layer=name, kind="type", text=f"weights of {name} were {old_type}, are {new_type}", wrong=True)
    elif abs(old_bits - new_bits) >= 2:
        text = f"weights of {name} used {old_bits} bits and use {new_bits}"
        yield Change(layer=name, kind="bits", text=text, size=new_bits - old_bits, wrong=True)
    yield from _bias(before, after)
    yield from _typed(before.output, after.output, name, "output")


def _bias(before: LayerSignature, after: LayerSignature) -> Iterator[Change]:
    name = after.name
    if before.bias != after.bias:
        lost = after.bias == "none"
        text = f"{name} has lost its bias" if lost else f"bias of {name} was {before.bias} and is {after.bias}"
        yield Change(layer=name, kind="bias", text=text, wrong=True)
    elif before.bias_rms > 0 and after.bias_rms == 0:
        yield Change(layer=name, kind="bias", text=f"bias of {name} is zero in every channel", wrong=True)
    misfit = math.log2(max(after.bias_error, 1e-12) / max(before.bias_error, 1e-12))
    if abs(misfit) > math.log2(1 + _MISFIT) and before.bias == after.bias:
        text = (
            f"bias codes of {name} have {times(after.bias_error)} the scale of its input times its weights, so one "
            "of the three scales is wrong"
        )
        yield Change(layer=name, kind="bias_scale", text=text, size=misfit, wrong=True)


def _typed(before: str, after: str, name: str, which: str) -> Iterator[Change]:
    """Yield differences of an activation's type, bits and granularity; zero points move with every calibration."""
    old, new = before.split()[:3], after.split()[:3]
    if old != new:
        text = f"codes of {name}'s {which} were {' '.join(old) or 'float'} and are {' '.join(new) or 'float'}"
        yield Change(layer=name, kind="type", text=text, wrong=True)


def _values(before: LayerSignature, after: LayerSignature) -> Iterator[Change]:
    """Yield differences of numbers, which every calibration makes."""
    name = after.name
    if before.codes_sha256 == after.codes_sha256:
        scaled = before.scales.size and before.scales.shape == after.scales.shape
        if before.scales_sha256 != after.scales_sha256 and scaled:
            yield _rescaled(before, after)
    elif before.codes.shape == after.codes.shape and before.codes.size:
        yield _recoded(before, after)
    alike = (before.codes_sha256, before.scales_sha256) == (after.codes_sha256, after.scales_sha256)
    if alike and _corrected(before, after) and after.bias == before.bias != "none":
        yield Change(layer=name, kind="bias_values", text=f"the bias of {name} is another, with the same weights")
    yield from _moved(before, after)
    if before.output_scale > 0 and after.output_scale > 0:
        ratio = after.output_scale / before.output_scale
        if abs(ratio - 1) > _SAME_SCALE:
            text = f"the scale of {name}'s output is {times(ratio)} what it was"
            yield Change(layer=name, kind="activation_scale", text=text, size=math.log2(ratio))


def _moved(before: LayerSignature, after: LayerSignature) -> Iterator[Change]:
    """Yield zero points that moved on grids that are as wide as they were."""
    name = after.name
    places = (
        ("input", before.input, after.input, before.input_scale, after.input_scale),
        ("output", before.output, after.output, before.output_scale, after.output_scale),
        ("weights", before.weight, after.weight, 1.0, 1.0),
    )
    for which, was, now, old, new in places:
        points = [(text.split() + ["0"] * 4)[3] for text in (was, now)]
        if which == "input" and after.op == "Add":
            continue  # of two, whichever comes first
        if was and now and points[0] != points[1] and math.isclose(old, new, rel_tol=_SAME_SCALE):
            text = f"the zero point of {name}'s {which} was {points[0]} and is {points[1]}, with the same scale"
            yield Change(layer=name, kind="zero_point", text=text, size=float(which != "input"))


def _rescaled(before: LayerSignature, after: LayerSignature) -> Change:
    steps = after.scales - before.scales
    step, name = float(np.median(steps)), after.name
    if float(np.ptp(steps)) < 0.05:
        text = f"the weight scale of {name} is {times(2**step)} what it was, with the same codes"
        return Change(layer=name, kind="weight_scale", text=text, size=step)
    text = (
        f"the weight scales of {name} changed from channel to channel (x{2 ** float(steps.min()):.2g} to "
        f"x{2 ** float(steps.max()):.2g}) with the same codes, as when BatchNorm is folded with other statistics"
    )
    return Change(layer=name, kind="folding", text=text, size=float(np.abs(steps).max()))


def _recoded(before: LayerSignature, after: LayerSignature) -> Change:
    steps = after.codes - before.codes
    down, same, name = float(np.mean(steps == -1)), float(np.mean(steps == 0)), after.name
    if down + same == 1 and 0.2 < down < 0.8:
        text = f"{down:.0%} of {name}'s weight codes are one less and no others differ"
        return Change(layer=name, kind="rounding", text=text, size=down, shift=-down)
    size = relative_distance(before.codes_sketch, after.codes_sketch) ** 0.5
    text = f"weight codes of {name} differ by {size:.0%} of their size"
    return Change(layer=name, kind="weights", text=text, size=size, shift=float(steps.mean()))


def _lone(changes: Sequence[Change], pairs: Sequence[tuple[LayerSignature, LayerSignature]]) -> list[Change]:
    """Take other weights and doubled scales as wrong where one layer has them and nothing else changed.

    No calibration does that, since it corrects every bias a little; an edit does. It matters where few images answer
    for many classes: two swapped classes of a thousand may have none.
    """
    touched = {change.layer for change in changes if change.layer and change.kind != "bias_scale"}
    touched |= {now.name for before, now in pairs if _corrected(before, now)}
    if len(touched) != 1 or len(pairs) < 3:
        return list(changes)
    kinds = ("weight_scale", "activation_scale", "folding")
    return [
        replace(c, text=f"{c.text}, and no other layer changed", wrong=True)
        if (c.kind in kinds and abs(c.size) >= _DOUBLED)
        or (c.kind == "weights" and c.size >= _REWRITTEN)
        or c.kind == "zero_point"
        else c
        for c in changes
    ]


def _corrected(before: LayerSignature, after: LayerSignature) -> bool:
    """Whether a bias is another; behind an input of another scale it is the same one, rounded to another grid."""
    same_input = math.isclose(before.input_scale, after.input_scale, rel_tol=_SAME_SCALE)
    return before.bias_sha256 != after.bias_sha256 and same_input


def _weight(text: str) -> tuple[str, int, str]:
    """Return type, bits and granularity."""
    dtype, bits, granularity = [*text.split(), "", "", ""][:3]
    return dtype, int(bits) if bits.isdecimal() else 0, granularity
