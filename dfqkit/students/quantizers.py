"""Which Brevitas quantizer each tensor gets (the recipe's scheme crossed with the target's table), and its insides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from brevitas.core.function_wrapper import CeilSte
from brevitas.core.quant import IntQuant
from brevitas.core.scaling.standalone import ParameterFromStatsFromParameterScaling
from brevitas.inject.enum import RestrictValueType
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
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
from torch import Tensor, nn

from dfqkit.config.quant import QuantConfig
from dfqkit_export.backends.target import Target


class RoundFirst(IntQuant):
    """Brevitas' quantization, rounded before the zero point is added, as ONNX defines it.

    The sum would round once more: values off any grid, behind operators in float, would cross a tie by it.
    """

    def to_int(self, scale: Tensor, zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        """Return the codes of ``x``, as float."""
        codes = self.float_to_int_impl(self.input_view_impl(x) / scale) + zero_point
        clamped: Tensor = self.tensor_clamp_impl(
            codes, min_val=self.min_int(bit_width), max_val=self.max_int(bit_width)
        )
        return clamped


class EndingBehind(nn.ReLU):
    """ReLU in place of ReLU6, where the quantizer behind it ends at 6 or below; it needs that quantizer."""


class Factor(nn.Module):
    """What a scale is multiplied with beside the calibrated or trained value: 1, or what `agreeing` needs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))
        self.factor: Tensor

    def forward(self, scale: Tensor) -> Tensor:
        """Return the scale that is used."""
        return scale * self.factor


def weight_quantizer(config: QuantConfig, bits: int, target: Target) -> Any:
    """Brevitas weight quantizer class: symmetric, one learnable scale an output channel, or one.

    Source: LSQ (Esser et al., "Learned Step Size Quantization", 2020), as Brevitas has it.
    """
    base = Int8WeightPerChannelFloatMSE if config.weight_range == "mse" else Int8WeightPerChannelFloat
    return base.let(
        bit_width=target.weights.width(bits),
        scaling_impl=ParameterFromStatsFromParameterScaling,
        narrow_range=target.weights.narrow_range,
        scaling_per_output_channel=target.weights.granularity == config.weight_granularity == "per_channel",
    )


def activation_quantizer(config: QuantConfig, bits: int, target: Target, *, signed: bool, exact_scale: bool) -> Any:
    """Brevitas activation quantizer class with a learnable scale, for a tensor that may be negative (``signed``).

    ``exact_scale`` restricts the scale to powers of two, where the scheme asks for that at all.
    """
    space = target.signed_activations if signed else target.unsigned_activations
    plain, least_error = {
        (True, True): (Int8ActPerTensorFloat, Int8ActPerTensorFloatMSE),
        (False, True): (Uint8ActPerTensorFloat, Uint8ActPerTensorFloatMSE),
        (False, False): (ShiftedUint8ActPerTensorFloat, ShiftedUint8ActPerTensorFloatMSE),
    }[space.signed and (signed or bits == 8), space.symmetric]  # below 8 bits, 0 to 2^b - 1 fits int8 too
    options: dict[str, Any] = {"bit_width": bits, "int_quant": RoundFirst}
    if target.additions_agree:
        options["restrict_scale_threshold_impl"] = Factor
    if config.activation_range != "mse":
        held = config.percentile if config.activation_range == "percentile" else 100.0  # what is cut is chosen later
        options["high_percentile_q"] = held
        if not space.symmetric:
            # Brevitas takes no 0: it is the smallest value.
            options["low_percentile_q"] = max(100 - held, 1e-6)
    if config.scales == "power_of_two" and exact_scale:
        options["restrict_scaling_type"] = RestrictValueType.POWER_OF_TWO
        options["restrict_value_float_to_int_impl"] = CeilSte  # rounding down would cut the calibrated range
    return (least_error if config.activation_range == "mse" else plain).let(**options)


def activation_proxy(module: nn.Module | None) -> Any:
    """Return what knows an activation quantizer's bits, sign, scale and zero point; None for any other module."""
    return None if isinstance(module, QuantWeightBiasInputOutputLayer) else getattr(module, "act_quant", None)


def activation_internals(module: nn.Module | None) -> Any:
    """Return the Brevitas module with an activation quantizer's scale and zero point; None for any other module."""
    proxy = activation_proxy(module)
    return None if proxy is None else proxy.fused_activation_quant_proxy.tensor_quant


def zero_point_values(module: nn.Module) -> Any:
    """Return the tensor behind an asymmetric quantizer's zero point, scale x zero point; None for any other module."""
    return getattr(getattr(activation_internals(module), "zero_point_impl", None), "value", None)


def scale_to(module: nn.Module, scale: float) -> None:
    """Give an activation quantizer that has a `Factor` another scale, with the zero point that it has."""
    proxy, shift = activation_proxy(module), zero_point_values(module)
    with torch.no_grad():
        zero_point = torch.round(proxy.zero_point())
        for part in activation_internals(module).scaling_impl.modules():
            if isinstance(part, Factor):
                exact = proxy.scale().double() / part.factor.double()
                part.factor.copy_((scale / exact).reshape(()))
        if shift is not None:
            shift.copy_((zero_point * proxy.scale()).reshape(shift.shape))


def range_of(module: nn.Module) -> tuple[float, float]:
    """Return the smallest and the largest value that an activation quantizer gives."""
    proxy = activation_proxy(module)
    with torch.no_grad():
        scale, zero_point, codes = float(proxy.scale()), float(proxy.zero_point()), 2 ** int(proxy.bit_width())
    lowest = -codes // 2 if proxy.is_signed else 0
    return (lowest - zero_point) * scale, (lowest + codes - 1 - zero_point) * scale


def set_range(module: nn.Module, low: float, high: float) -> None:
    """Let an activation quantizer reach from ``low`` <= 0 to ``high`` >= 0; a symmetric one to the further of both."""
    scaling, shift = activation_internals(module).scaling_impl, zero_point_values(module)
    with torch.no_grad():
        reach = high - low if shift is not None else max(high, -low)
        scaling.value.copy_(scaling.restrict_scaling_pre(torch.full_like(scaling.value, reach)))
        if shift is not None:
            shift.fill_(-low)


def range_state(module: nn.Module) -> list[Tensor]:
    """Return what an activation quantizer's range is stored as, for `restore_range`."""
    stored = (activation_internals(module).scaling_impl.value, zero_point_values(module))
    return [value.detach().clone() for value in stored if value is not None]


def restore_range(module: nn.Module, state: Sequence[Tensor]) -> None:
    """Give an activation quantizer the range back that it had."""
    with torch.no_grad():
        for value, stored in zip(
            (activation_internals(module).scaling_impl.value, zero_point_values(module)), state, strict=False
        ):
            value.copy_(stored)
