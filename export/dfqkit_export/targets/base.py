"""The types that a target table is made of. Data only: nothing here knows a runtime or a framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import TargetError

Granularity = Literal["per_tensor", "per_channel"]


@dataclass(frozen=True, kw_only=True)
class QuantSpace:
    """The quantized types one kind of tensor may have.

    Attributes:
        bits: allowed bit widths. Below 8, the codes are stored in 8-bit types and clipped to the smaller range.
        signed: whether the stored codes are signed (int8) or not (uint8).
        symmetric: True where the zero point must be 0, False where it may lie anywhere in the range.
        granularity: one scale a tensor, or one an output channel.
        narrow_range: True where the lowest code is left unused ([-127, 127] at 8 bits).
    """

    bits: tuple[int, ...]
    signed: bool
    symmetric: bool
    granularity: Granularity
    narrow_range: bool = False


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime's quantization rules.

    Attributes:
        name: key in recipes and on the command line.
        title: name for people.
        runtime: key of the runtime that executes it.
        opset: ONNX opset of the exported file.
        weights: types of convolution and linear weights.
        unsigned_activations: types of tensors that cannot be negative (after ReLU, Sigmoid).
        signed_activations: types of all other activations.
        bias: ``int32`` with scale input x weight, or ``float``.
        quantize_outputs: True where Q/DQ is wanted behind every operator that computes (Conv, Add, pooling...), False
            where only the inputs of weighted operators and the residual branch of an addition are quantized.
        clip_before_quantize: True where a sub-8-bit range is cut by a float Clip in front of QuantizeLinear, False
            where an integer Clip behind it is better.
        quirks: behaviour a reader must know, each with its source.
    """

    name: str
    title: str
    runtime: str
    opset: int
    weights: QuantSpace
    unsigned_activations: QuantSpace
    signed_activations: QuantSpace
    bias: Literal["int32", "float"]
    quantize_outputs: bool
    clip_before_quantize: bool
    quirks: tuple[str, ...] = ()

    def require(self, *, weight_bits: int, activation_bits: int) -> None:
        """Refuse bit widths the target cannot run.

        Raises:
            TargetError: naming the field, what was asked and what is allowed.
        """
        for field, bits, space in (
            ("weights", weight_bits, self.weights),
            ("activations", activation_bits, self.signed_activations),
        ):
            if bits not in space.bits:
                message = (
                    f"Target '{self.name}' cannot run {bits}-bit {field}; it takes {', '.join(map(str, space.bits))} "
                    f"bits. "
                    f"Set quant.bits to one of these (w8a8, w4a8, w4a4, ...) or choose another target."
                )
                raise TargetError(message)
