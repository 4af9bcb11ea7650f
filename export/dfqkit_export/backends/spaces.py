"""The quantized types that tables are written with, named like the field names them, and the short form of a row.

What belongs here: the spaces, from `U8_ZERO` to `W8_UNSIGNED`, and `row` for an operator whose cells share a source.
"""

from __future__ import annotations

from collections.abc import Mapping

from dfqkit_export.backends.target import Bias, Cell, OperatorRule, Placement, QuantSpace

_BITS = (2, 3, 4, 5, 6, 7, 8)

#: uint8 activations with zero point 0, for tensors that cannot be negative.
U8_ZERO = QuantSpace(bits=_BITS, signed=False, symmetric=True, granularity="per_tensor")
#: uint8 activations with any zero point.
U8 = QuantSpace(bits=_BITS, signed=False, symmetric=False, granularity="per_tensor")
#: int8 activations with zero point 0.
S8_ZERO = QuantSpace(bits=_BITS, signed=True, symmetric=True, granularity="per_tensor")
#: int8 activations with any zero point.
S8 = QuantSpace(bits=_BITS, signed=True, symmetric=False, granularity="per_tensor")
#: int8 weights, zero point 0, one scale an output channel: all that is taken, and what this project writes.
W8_FULL = QuantSpace(bits=_BITS, signed=True, symmetric=True, granularity="per_channel")
W8 = QuantSpace(bits=_BITS, signed=True, symmetric=True, granularity="per_channel", narrow_range=True)
#: int8 weights, zero point 0, one scale for all.
W8_TENSOR = QuantSpace(bits=_BITS, signed=True, symmetric=True, granularity="per_tensor")
#: int8 weights whose codes fill 7 bits: what this project writes, and all that is taken.
W7 = QuantSpace(
    bits=_BITS, signed=True, symmetric=True, granularity="per_channel", narrow_range=True, reduce_range=True
)
W7_FULL = QuantSpace(bits=_BITS, signed=True, symmetric=True, granularity="per_channel", reduce_range=True)
W7_TENSOR = QuantSpace(bits=_BITS, signed=True, symmetric=True, granularity="per_tensor", reduce_range=True)
#: uint8 weights with any zero point.
W8_UNSIGNED = QuantSpace(bits=_BITS, signed=False, symmetric=False, granularity="per_tensor")


def row(
    *operators: str,
    placement: Placement,
    activations: tuple[QuantSpace, ...] = (),
    weights: tuple[QuantSpace, ...] = (),
    bias: tuple[Bias, ...] = (),
    source: str | Mapping[str, str],
) -> OperatorRule:
    """Write a row; types and forms of the bias are alternatives, nothing where there are none.

    Args:
        operators: ONNX operator types.
        placement: Where Q/DQ go.
        activations: Nothing for an operator that always computes in float.
        weights: Nothing where it has none.
        bias: Nothing where it has none.
        source: Of every cell, or by the cell's name with "" for all others.
    """
    sources: Mapping[str, str] = {"": source} if isinstance(source, str) else source

    def cited(name: str) -> str:
        return sources.get(name, sources[""])

    return OperatorRule(
        operators=operators,
        placement=Cell(value=placement, source=cited("placement")),
        activations=Cell(value=activations, source=cited("activations")),
        weights=Cell(value=weights, source=cited("weights")) if weights else None,
        bias=Cell(value=bias, source=cited("bias")) if bias else None,
    )
