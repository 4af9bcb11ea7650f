"""The ``quant`` section: how many bits each tensor gets, and how its scale is found."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from dfqkit.config.section import Added, Section

if TYPE_CHECKING:
    from dfqkit_export.backends.target import Target

_PATTERN = "^w[2-8]a[2-8]$"


def checked_bits(value: object) -> object:
    """Refuse what is no pair of bit widths, in words instead of by a pattern."""
    if isinstance(value, str) and not re.fullmatch(_PATTERN, value):
        message = f"'{value}' must be w<weights>a<activations> with 2 to 8 bits each, such as w8a8, w4a8 or w4a4"
        raise ValueError(message)
    return value


#: Bits of weights and of activations.
Bits = Annotated[str, Field(pattern=_PATTERN), BeforeValidator(checked_bits)]


class QuantConfig(Section):
    """The ``quant`` section of a recipe."""

    bits: Bits = Field(
        "w8a8", description="Weight and activation bits of every layer but the first and the last: w4a8."
    )
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
        description="Activation scales. ONNX Runtime's file gives the bits of the measured student with either. With "
        "powers of two every product and sum of the integer network is exact in float32, so that all runtimes and "
        "processors do; float scales fit ranges closer, but where a tie rounds depends on the runtime's kernels.",
    )
    weight_range: Literal["max", "mse"] = Field(
        "mse", description="How weight scales start: largest value, or least error."
    )
    weight_granularity: Annotated[Literal["per_channel", "per_tensor"], Added("0.2.0")] = Field(
        "per_channel", description="Whether each output channel's weights have a scale, or all of a layer share one."
    )
    weight_rounding: Annotated[Literal["nearest", "gptq"], Added("0.2.0")] = Field(
        "nearest",
        description="gptq: codes of a layer are chosen together, one layer after the other, for what the float network "
        "gives there (Frantar et al., 2022, with inputs corrected as in Qronos, Zhang et al., 2025), biases with them.",
    )
    reconstruct: Annotated[int, Added("0.2.0")] = Field(
        0,
        ge=0,
        description="Steps in which each block learns which weights to round up (AdaRound, Nagel et al., 2020; BRECQ, "
        "Li et al., 2021) and, with float scales, its activation scales, with values that skip quantizers at random "
        "(QDrop, Wei et al., 2022); it starts from the codes of weight_rounding. 0 is none.",
    )
    eight_bit_share: Annotated[float, Added("0.2.0")] = Field(
        0.0,
        ge=0,
        lt=1,
        description="With gptq: of the weights between the first and the last layer, the share that may have 8 bits. "
        "Layers get them whose rounding moves the answers most per weight, on images held out.",
    )
    activation_range: Literal["percentile", "mse", "outputs"] = Field(
        "mse",
        description="How activation ranges are calibrated: by a share of the values, by their least error, or by the "
        "least error weighed by what it does to the outputs (after BRECQ, Li et al., 2021, equation 10).",
    )
    percentile: float = Field(
        99.99, gt=50, le=100, description="Share (in percent) of values a calibrated range holds."
    )
    equalize: int = Field(
        0, ge=0, description="Iterations of cross-layer equalization (Nagel et al., 2019); 0 is none."
    )
    equalize_values: Annotated[float, Added("0.2.0")] = Field(
        0.0,
        ge=0,
        le=1,
        description="Exponent by which channels' values are made more alike on the calibration images, weights "
        "behind them scaled back (after SmoothQuant, Xiao et al., 2023, equation 4); 0 is none, 1 makes all as large.",
    )
    costly_in_float: Annotated[float, Added("0.2.0")] = Field(
        1.0,
        gt=0,
        le=1,
        description="Tensors whose 8 bits do more than this share of what those of all do to the outputs, on images "
        "held out, stay in float; 1 is none.",
    )
    in_float: Annotated[tuple[str, ...], Added("0.2.0")] = Field(
        (), description="Layers and additions, by their names in the report, whose results stay in float."
    )
    bias_correction: bool = Field(True, description="Empirical bias correction (Nagel et al., 2019, section 4.2).")

    @property
    def weight_bits(self) -> int:
        """Bits of inner weights."""
        return int(self.bits[1])

    @property
    def activation_bits(self) -> int:
        """Bits of the tensors that inner convolutions multiply."""
        return int(self.bits[3])

    @property
    def rescales(self) -> bool:
        """Whether students have features of another scale than the network that they are made of."""
        return bool(self.equalize or self.equalize_values)

    def check(self, target: Target) -> None:
        """Refuse a scheme that the target cannot run, before any compute is spent."""
        target.require(weight_bits=self.weight_bits, activation_bits=self.activation_bits)
        edge, elementwise = self.first_last or self.weight_bits, self.elementwise or self.activation_bits
        target.require(weight_bits=edge, activation_bits=elementwise)
