"""Which Brevitas quantizer each tensor gets: the recipe's scheme crossed with the target's table."""

from __future__ import annotations

import re
from typing import Any, Literal

from brevitas.core.function_wrapper import CeilSte
from brevitas.core.scaling.standalone import ParameterFromStatsFromParameterScaling
from brevitas.inject.enum import RestrictValueType
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8ActPerTensorFloatMSE,
    Int8WeightPerChannelFloat,
    Int8WeightPerChannelFloatMSE,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8ActPerTensorFloatMSE,
    Uint8ActPerTensorFloat,
    Uint8ActPerTensorFloatMSE,
)
from pydantic import BaseModel, ConfigDict, Field, field_validator

from dfqkit_export.backends.targets import Target

_BITS = re.compile(r"w([2-8])a([2-8])")


class QuantConfig(BaseModel):
    """The ``quant`` section of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bits: str = Field("w8a8", description="Weight and activation bits of every layer but the first and the last: w4a8.")
    first_last: int | None = Field(
        8,
        ge=2,
        le=8,
        description="Bits of the first and last layer's weights and inputs (common practice since Zhou et al., "
        "DoReFa-Net, 2016, section 3.6); null gives them the bits of all others.",
    )
    elementwise: int | None = Field(
        8,
        ge=2,
        le=8,
        description="Bits of tensors that no convolution multiplies, such as the inputs of a residual addition. The "
        "literature leaves these in float; an integer runtime cannot. null gives them the activation bits.",
    )
    scales: Literal["power_of_two", "float"] = Field(
        "power_of_two",
        description="Activation scales. With powers of two every product and sum of the integer network is exact in "
        "float32, so that torch and the runtime give the same bits; float scales fit ranges closer, but ties round "
        "differently "
        "in each runtime and the differences grow from layer to layer.",
    )
    weight_range: Literal["max", "mse"] = Field(
        "mse", description="How weight scales start: largest value, or least error."
    )
    activation_range: Literal["percentile", "mse"] = Field("mse", description="How activation ranges are calibrated.")
    percentile: float = Field(
        99.99, gt=50, le=100, description="Share (in percent) of values a calibrated range holds."
    )
    equalize: int = Field(
        0, ge=0, description="Iterations of cross-layer equalization (Nagel et al., 2019); 0 is none."
    )
    bias_correction: bool = Field(True, description="Empirical bias correction (Nagel et al., 2019, section 4.2).")

    @field_validator("bits")
    @classmethod
    def _check_bits(cls, value: str) -> str:
        return check_bits(value)

    @property
    def weight_bits(self) -> int:
        """Bits of inner weights."""
        return int(self.bits[1])

    @property
    def activation_bits(self) -> int:
        """Bits of the tensors that inner convolutions multiply."""
        return int(self.bits[3])

    def check(self, target: Target) -> None:
        """Refuse a scheme that the target cannot run, before any compute is spent."""
        target.require(weight_bits=self.weight_bits, activation_bits=self.activation_bits)
        edge, elementwise = self.first_last or self.weight_bits, self.elementwise or self.activation_bits
        target.require(weight_bits=edge, activation_bits=elementwise)


def check_bits(value: str) -> str:
    """Return a pair of bit widths as it is.

    Raises:
        ValueError: it is not one.
    """
    if not _BITS.fullmatch(value):
        message = f"'{value}' must be w<weights>a<activations> with 2 to 8 bits each, such as w8a8, w4a8 or w4a4"
        raise ValueError(message)
    return value


def weight_quantizer(config: QuantConfig, bits: int, target: Target) -> Any:
    """Brevitas weight quantizer class: symmetric, one learnable scale an output channel.

    Source: LSQ (Esser et al., "Learned Step Size Quantization", 2020), as Brevitas has it.
    """
    base = Int8WeightPerChannelFloatMSE if config.weight_range == "mse" else Int8WeightPerChannelFloat
    return base.let(
        bit_width=target.weights.width(bits),
        scaling_impl=ParameterFromStatsFromParameterScaling,
        narrow_range=target.weights.narrow_range,
        scaling_per_output_channel=target.weights.granularity == "per_channel",
    )


def activation_quantizer(config: QuantConfig, bits: int, target: Target, *, signed: bool, exact_scale: bool) -> Any:
    """Brevitas activation quantizer class with a learnable scale.

    Args:
        config: the scheme.
        bits: bit width.
        target: decides sign and symmetry.
        signed: whether the tensor may be negative.
        exact_scale: restrict the scale to powers of two, where the scheme asks for that at all.
    """
    space = target.signed_activations if signed else target.unsigned_activations
    plain, least_error = {
        (True, True): (Int8ActPerTensorFloat, Int8ActPerTensorFloatMSE),
        (False, True): (Uint8ActPerTensorFloat, Uint8ActPerTensorFloatMSE),
        (False, False): (ShiftedUint8ActPerTensorFloat, ShiftedUint8ActPerTensorFloatMSE),
    }[space.signed and (signed or bits == 8), space.symmetric]  # below 8 bits, 0 to 2^b - 1 fits int8 too
    options: dict[str, Any] = {"bit_width": bits}
    if config.activation_range == "percentile":
        options["high_percentile_q"] = config.percentile
        if not space.symmetric:
            options["low_percentile_q"] = max(
                100 - config.percentile, 1e-6
            )  # Brevitas takes no 0: it is the smallest value
    if config.scales == "power_of_two" and exact_scale:
        options["restrict_scaling_type"] = RestrictValueType.POWER_OF_TWO
        options["restrict_value_float_to_int_impl"] = CeilSte  # rounding down would cut the calibrated range
    return (plain if config.activation_range == "percentile" else least_error).let(**options)
