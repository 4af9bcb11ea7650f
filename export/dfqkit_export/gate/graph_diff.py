"""How the layers of two files differ, read from what a baseline keeps of them; nothing is run.

What belongs here: the differences one layer at a time, and which of them are wrong whatever the accuracy: a file that
is not of the kind that was recorded, or that contradicts itself. What made them, over all layers, is `diagnosis`'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dfqkit_export.gate.signature import LayerSignature, Signature, relative_distance

_MISFIT = 0.02
_DOUBLED = 0.9
#: Relative difference up to which two scales are the same one; a baseline keeps a few digits of each.
_SAME_SCALE = 1e-3
#: Share of its codes' size by which one layer may change alone, as where a value on the edge is rounded otherwise.
_REWRITTEN = 0.01


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference of one layer.

    Attributes:
        layer: Name of the layer; "" for the file as a whole.
        kind: What differs: "granularity", "bits", "type", "bias", "bias_scale", "weight_scale", "folding", "rounding",
            "weights", "activation_scale", "layers", "operators", "opset".
        text: What differs, as part of a sentence.
        size: How much, in a measure of the kind's own: the base-2 logarithm of a ratio, or a share.
        shift: By how many codes weights are higher on average, for "weights" and "rounding".
        wrong: Whether it is wrong whatever the accuracy.
    """

    layer: str
    kind: str
    text: str
    size: float = 0.0
    shift: float = 0.0
    wrong: bool = False


def compare_signatures(base: Signature | None, now: Signature | None) -> tuple[Change, ...]:
    """Return how a file differs from the one of the baseline, in the file's order; nothing where one is not known."""
    if base is None or now is None:
        return ()
    pairs, renamed = _pairs(base.layers, now.layers)
    found = [*_frame(base, now), *renamed]
    for before, after in pairs:
        found += _kinds(before, after)
    outputs_told = any(change.kind == "type" for change in found)
    for before, after in pairs:
        if not outputs_told:
            found += _typed(before.input, after.input, after.name, "input")
        found += _values(before, after)
    return tuple(_lone(found, pairs))


def _pairs(
    base: Mapping[str, LayerSignature], now: Mapping[str, LayerSignature]
) -> tuple[list[tuple[LayerSignature, LayerSignature]], list[Change]]:
    """Return layers that belong together, by name, or by place where an exporter gave them all new names."""
    common = [name for name in now if name in base]
    if 2 * len(common) < len(base) and [m.op for m in base.values()] == [m.op for m in now.values()]:
        text = "layers have other names and are compared by their place"
        return list(zip(base.values(), now.values(), strict=True)), [Change(layer="", kind="names", text=text)]
    other = [(layer, "gone") for name, layer in base.items() if name not in now]
    other += [(layer, "new") for name, layer in now.items() if name not in base]
    changes = [
        Change(layer=layer.name, kind="layers", text=f"layer {layer.name} ({layer.op}) is {what}", wrong=True)
        for layer, what in other
    ]
    return [(base[name], now[name]) for name in common], changes


def _frame(base: Signature, now: Signature) -> Iterator[Change]:
    if base.before != now.before:
        text = f"operators before the first layer were [{base.before or 'none'}] and are [{now.before or 'none'}]"
        yield Change(layer="", kind="operators", text=text, wrong=True)
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
            f"bias codes of {name} have {after.bias_error:.3g} times the scale of its input times its weights, so one "
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
    if before.output_scale > 0 and after.output_scale > 0:
        ratio = after.output_scale / before.output_scale
        if abs(ratio - 1) > _SAME_SCALE:
            text = f"the scale of {name}'s output is {ratio:.3g} times what it was"
            yield Change(layer=name, kind="activation_scale", text=text, size=math.log2(ratio))


def _rescaled(before: LayerSignature, after: LayerSignature) -> Change:
    steps = after.scales - before.scales
    step, name = float(np.median(steps)), after.name
    if float(np.ptp(steps)) < 0.05:
        text = f"the weight scale of {name} is {2**step:.2g} times what it was, with the same codes"
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
        if (c.kind in kinds and abs(c.size) >= _DOUBLED) or (c.kind == "weights" and c.size >= _REWRITTEN)
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
