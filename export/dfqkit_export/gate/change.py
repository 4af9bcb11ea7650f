"""One difference between two files, as all that compares them tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference of one layer.

    Attributes:
        layer: Name of the layer; "" for the file as a whole.
        kind: What differs: "granularity", "bits", "type", "bias", "bias_scale", "weight_scale", "folding", "rounding",
            "weights", "activation_scale", "layers", "names", "graph", "quantizers", "constants", "interface".
        text: What differs, as part of a sentence.
        size: How much, in a measure of the kind's own: the base-2 logarithm of a ratio, or a share.
        shift: By how many codes weights are higher on average, for "weights" and "rounding".
        wrong: Whether it is wrong whatever the accuracy.
        also: All operators that it is about, where it is about several.
    """

    layer: str
    kind: str
    text: str
    size: float = 0.0
    shift: float = 0.0
    wrong: bool = False
    also: frozenset[str] = frozenset()
