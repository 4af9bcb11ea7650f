"""One difference between two files, as all that compares them tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference of one layer.

    Attributes:
        layer: Name of the layer; "" for the file as a whole.
        kind: What differs: "granularity", "bits", "type", "bias", "bias_scale", "weight_scale", "folding", "rounding",
            "weights", "activation_scale", "layers", "names", "graph", "quantizers", "constants", "interface",
            "bias_values", "zero_point".
        text: What differs, as part of a sentence.
        size: How much, in a measure of the kind's own: the base-2 logarithm of a ratio, or a share.
        shift: By how many codes weights are higher on average, for "weights" and "rounding".
        wrong: Whether it is wrong whatever the accuracy.
        also: The operators that it is about, quantizers aside, where it is about a part of the graph.
    """

    layer: str
    kind: str
    text: str
    size: float = 0.0
    shift: float = 0.0
    wrong: bool = False
    also: frozenset[str] | None = None


def times(ratio: float) -> str:
    """Return a ratio in words that "what it was" follows: "2 times", or "0.3 % more than" where it is close to 1."""
    percent = 100 * abs(ratio - 1)
    if percent >= 2:
        return f"{ratio:.3g} times"
    return f"{max(percent, 0.001):.2g} % {'more' if ratio > 1 else 'less'} than"
