"""Torch modules that stand for ONNX nodes while `torch.onnx` walks a student.

Imported only by `qdq`, inside functions, because it needs torch.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from torch import Tensor, fx, nn

from dfqkit_export.backends.target import Target
from dfqkit_export.errors import TargetError

_symbolic = torch.onnx.ops.symbolic


class GlobalAveragePool(nn.Module):
    """Written as the ONNX operator: the exporter's ReduceMean has no integer kernel in ONNX Runtime."""

    def forward(self, x: Tensor) -> Tensor:
        """Write the operators while the exporter walks by."""
        return _symbolic("GlobalAveragePool", (x,), dtype=x.dtype, shape=(x.shape[0], x.shape[1], 1, 1), version=None)


class QuantizeDequantize(nn.Module):
    """A Q/DQ pair with constant scale and zero point, and a Clip where the codes do not fill 8 bits.

    Args:
        scale: Scalar.
        zero_point: Integer scalar.
        low: Lowest code.
        high: Highest code.
        signed: int8 codes, else uint8.
        clip_before: float Clip in front of Q instead of an integer Clip behind it.
    """

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self, scale: Tensor, zero_point: int, bounds: tuple[int, int], *, signed: bool, clip_before: bool
    ) -> None:
        super().__init__()
        self.dtype = torch.int8 if signed else torch.uint8
        full = (-128, 127) if signed else (0, 255)
        self.clips = bounds != full
        self.clip_before = clip_before
        self.register_buffer("scale", scale.detach().clone().reshape(()))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=self.dtype))
        if self.clips and clip_before:
            limits = [(bound - zero_point) * float(scale) for bound in bounds]
            self.register_buffer("low", torch.tensor(limits[0]))
            self.register_buffer("high", torch.tensor(limits[1]))
        elif self.clips:
            self.register_buffer("low", torch.tensor(bounds[0], dtype=self.dtype))
            self.register_buffer("high", torch.tensor(bounds[1], dtype=self.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Write the operators while the exporter walks by."""
        parameters = (self.scale, self.zero_point)
        if self.clips and self.clip_before:
            x = _symbolic("Clip", (x, self.low, self.high), dtype=x.dtype, shape=x.shape, version=None)
        codes = _symbolic("QuantizeLinear", (x, *parameters), dtype=self.dtype, shape=x.shape, version=None)
        if self.clips and not self.clip_before:
            codes = _symbolic("Clip", (codes, self.low, self.high), dtype=self.dtype, shape=x.shape, version=None)
        return _symbolic("DequantizeLinear", (codes, *parameters), dtype=x.dtype, shape=x.shape, version=None)


class IntegerLayer(nn.Module):
    """A convolution or linear layer whose weights (and bias) are stored as integer codes."""

    weight_codes: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias_codes: Tensor
    bias_scale: Tensor
    bias_zero_point: Tensor

    def __init__(self, layer: QuantWeightBiasInputOutputLayer, input_scale: Tensor | None) -> None:
        super().__init__()
        codes, scale = weight_codes(layer)
        self.register_buffer("weight_codes", codes)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", torch.zeros_like(scale, dtype=torch.int8))
        self.options = {}
        if isinstance(layer, nn.Conv2d):
            self.options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
        self.function: Any = nn.functional.conv2d if isinstance(layer, nn.Conv2d) else nn.functional.linear
        bias = layer.bias.detach()
        self.integer_bias = input_scale is not None
        if input_scale is not None:
            bias_scale = input_scale.reshape(()) * scale
            self.register_buffer("bias_codes", bias_codes(bias, bias_scale))
            self.register_buffer("bias_scale", bias_scale)
            self.register_buffer("bias_zero_point", torch.zeros_like(scale, dtype=torch.int32))
        else:
            self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Write the operators while the exporter walks by."""
        weight = _dequantize(self.weight_codes, self.weight_scale, self.weight_zero_point)
        bias = (
            self.bias if not self.integer_bias else _dequantize(self.bias_codes, self.bias_scale, self.bias_zero_point)
        )
        return self.function(x, weight, bias, **self.options)  # type: ignore[no-any-return]


def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return _symbolic(
        "DequantizeLinear",
        (codes, scale, zero_point),
        {"axis": 0},
        dtype=torch.float32,
        shape=codes.shape,
        version=None,
    )


def weight_codes(layer: QuantWeightBiasInputOutputLayer) -> tuple[Tensor, Tensor]:
    """Integer codes (int8, the weight's shape) and scales (C_out,) of a Brevitas layer."""
    with torch.no_grad():
        quantized = layer.quant_weight()
        codes = quantized.int(float_datatype=False).to(torch.int8)
        scale = quantized.scale.detach().reshape(-1).clone()
    channels = codes.shape[0]
    return codes.clone(), scale.expand(channels).clone() if scale.numel() == 1 else scale


def bias_codes(bias: Tensor, scale: Tensor) -> Tensor:
    """int32 codes of a bias (C_out,) on the grid ``scale`` (C_out,) = input scale x weight scale.

    Raises:
        TargetError: When a bias does not fit 32 bits, which means a scale has collapsed.
    """
    codes = torch.round(bias.double() / scale.double())
    if float(codes.abs().max()) > 2**31 - 1:
        message = (
            "A bias does not fit int32: its scale (input scale x weight scale) is too small for its size, so a range "
            "has "
            "collapsed. Calibrate again with more images or a higher percentile."
        )
        raise TargetError(message)
    return codes.to(torch.int32)


def activation_parameters(module: nn.Module) -> tuple[Tensor, int, tuple[int, int], bool]:
    """Scale, zero point, lowest and highest code, and signedness of a Brevitas activation quantizer."""
    proxy: Any = module.act_quant
    bits = int(proxy.bit_width())
    signed = bool(proxy.is_signed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if signed and proxy.is_narrow_range:
        low += 1
    zero_point = round(float(proxy.zero_point()))
    return proxy.scale().detach(), zero_point, (low, high), signed


def with_onnx_pooling(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a copy whose global pooling is written as GlobalAveragePool."""
    copied = copy.deepcopy(graph).cpu().eval()
    for name, module in list(copied.named_modules()):
        if isinstance(module, nn.AdaptiveAvgPool2d):
            copied.set_submodule(name, GlobalAveragePool())
    return copied


def with_qdq(graph: fx.GraphModule, target: Target) -> fx.GraphModule:
    """Return a copy whose Brevitas layers are replaced by modules that the exporter writes as integer QDQ."""
    copied = with_onnx_pooling(graph)
    modules = dict(copied.named_modules())  # kept from before the replacements below
    for name, module in modules.items():
        if not hasattr(module, "act_quant") or not name.startswith("quant."):
            continue
        scale, zero_point, bounds, signed = activation_parameters(module)
        space = target.signed_activations
        if signed != space.signed and not (space.signed and bounds[1] <= 127 and zero_point == 0):
            message = (
                f"Quantizer '{name}' makes {'signed' if signed else 'unsigned'} codes, which target '{target.name}' "
                "does not take. Build the student for this target."
            )
            raise TargetError(message)
        pair = QuantizeDequantize(
            scale, zero_point, bounds, signed=space.signed, clip_before=target.clip_before_quantize
        )
        copied.set_submodule(name, pair)
    done: set[str] = set()
    for node in copied.graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, QuantWeightBiasInputOutputLayer) or str(node.target) in done:
            continue
        grid = input_scale(node, modules) if target.bias == "int32" else None
        copied.set_submodule(str(node.target), IntegerLayer(layer, grid))
        done.add(str(node.target))
    return copied


def input_scales(graph: fx.GraphModule) -> dict[str, Tensor]:
    """Each quantized layer's input scale (scalar), by layer name; of its first call, where it is called twice."""
    modules = dict(graph.named_modules())
    scales: dict[str, Tensor] = {}
    for node in graph.graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, QuantWeightBiasInputOutputLayer) and str(node.target) not in scales:
            scales[str(node.target)] = input_scale(node, modules)
    return scales


def rounded_biases(graph: fx.GraphModule) -> dict[str, Tensor]:
    """Return each quantized layer's bias on the int32 grid, by layer name, float32."""
    rounded: dict[str, Tensor] = {}
    for name, scale_in in input_scales(graph).items():
        layer: Any = graph.get_submodule(name)
        scale = scale_in * weight_codes(layer)[1]
        rounded[name] = bias_codes(layer.bias.detach(), scale).to(scale.dtype) * scale
    return rounded


def input_scale(node: fx.Node, modules: dict[str, nn.Module]) -> Tensor:
    """Scale of the quantizer that a layer's input comes from, through operators that only move values.

    Raises:
        TargetError: When there is none, so that an integer bias cannot be written.
    """
    source: Any = node.args[0]
    while isinstance(source, fx.Node):
        module = modules.get(str(source.target)) if source.op == "call_module" else None
        if (
            module is not None
            and hasattr(module, "act_quant")
            and not isinstance(module, QuantWeightBiasInputOutputLayer)
        ):
            return module.act_quant.scale().detach().reshape(())  # type: ignore[no-any-return, union-attr, operator]
        if source.target is operator.getitem or source.op in ("call_function", "call_module"):
            source = source.args[0]
        else:
            break
    message = f"Layer '{node.target}' has no quantized input, so its bias cannot be stored as int32."
    raise TargetError(message)
