"""Torch modules that stand for ONNX nodes while `torch.onnx` walks a student.

What belongs here: what Brevitas learned (scales, zero points, integer codes), read out and written as QuantizeLinear /
DequantizeLinear with integer initializers. The modules' `forward` writes the operators while the exporter walks by.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from torch import Tensor, fx, nn

from dfqkit.students.naming import layer_names
from dfqkit.students.nodes import REGRID, STRUCTURAL, called, op_name, tensor_at
from dfqkit.students.quantizers import activation_proxy
from dfqkit_export.backends.target import Target
from dfqkit_export.errors import TargetError

_symbolic = torch.onnx.ops.symbolic


class _GlobalAveragePool(nn.Module):
    """Written as the ONNX operator: the exporter's ReduceMean has no integer kernel in ONNX Runtime."""

    def forward(self, x: Tensor) -> Tensor:
        return _symbolic("GlobalAveragePool", (x,), dtype=x.dtype, shape=(x.shape[0], x.shape[1], 1, 1), version=None)


class _QuantizeDequantize(nn.Module):
    """A Q/DQ pair with constant scale and zero point, and a Clip where the codes do not fill 8 bits.

    ``bounds`` are the lowest and the highest code; with ``clip_before`` a float Clip in front of Q takes the place of
    an integer Clip behind it.
    """

    def __init__(
        self, scale: Tensor, zero_point: int, bounds: tuple[int, int], *, signed: bool, clip_before: bool
    ) -> None:
        super().__init__()
        self.dtype = torch.int8 if signed else torch.uint8
        self.clips = bounds != ((-128, 127) if signed else (0, 255))
        self.clip_before = clip_before
        self.scale = nn.Buffer(scale.detach().clone().reshape(()))
        self.zero_point = nn.Buffer(torch.tensor(zero_point, dtype=self.dtype))
        if self.clips and clip_before:
            self.low, self.high = (nn.Buffer(torch.tensor((code - zero_point) * float(scale))) for code in bounds)
        elif self.clips:
            self.low, self.high = (nn.Buffer(torch.tensor(code, dtype=self.dtype)) for code in bounds)

    def forward(self, x: Tensor) -> Tensor:
        parameters = (self.scale, self.zero_point)
        if self.clips and self.clip_before:
            x = _symbolic("Clip", (x, self.low, self.high), dtype=x.dtype, shape=x.shape, version=None)
        codes = _symbolic("QuantizeLinear", (x, *parameters), dtype=self.dtype, shape=x.shape, version=None)
        if self.clips and not self.clip_before:
            codes = _symbolic("Clip", (codes, self.low, self.high), dtype=self.dtype, shape=x.shape, version=None)
        return _symbolic("DequantizeLinear", (codes, *parameters), dtype=x.dtype, shape=x.shape, version=None)


class _IntegerLayer(nn.Module):
    """A convolution, transposed or not, or linear layer whose weights (and bias) are stored as integer codes.

    ``first`` holds the weights where the layer is another call of one that is written already.
    """

    def __init__(
        self, layer: QuantWeightBiasInputOutputLayer, input_scale: Tensor | None, first: _IntegerLayer | None
    ) -> None:
        super().__init__()
        self._holder = (first or self,)  # of the weights, which lie there only
        codes, scale = weight_codes(layer)
        if first is None:
            self.weight_codes, self.weight_scale = nn.Buffer(codes), nn.Buffer(scale)
            self.weight_zero_point = nn.Buffer(torch.zeros_like(scale, dtype=torch.int8))
        self.function: Callable[..., Tensor] = nn.functional.linear
        self.options, self.axis = {}, 0
        if isinstance(layer, nn.Conv2d):
            self.function = nn.functional.conv2d
            self.options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
        if isinstance(layer, nn.ConvTranspose2d):
            self.function, self.axis = nn.functional.conv_transpose2d, 1
            self.options = {name: getattr(layer, name) for name in ("stride", "padding", "output_padding", "dilation")}
        bias = layer.bias.detach()
        self.integer_bias = input_scale is not None
        if input_scale is not None:
            bias_scale = input_scale * scale
            self.bias_codes, self.bias_scale = nn.Buffer(bias_codes(bias, bias_scale)), nn.Buffer(bias_scale)
            self.bias_zero_point = nn.Buffer(torch.zeros_like(scale, dtype=torch.int32))
        else:
            self.bias = nn.Buffer(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        holder = self._holder[0]
        weight = _dequantize(holder.weight_codes, holder.weight_scale, holder.weight_zero_point, self.axis)
        if not self.integer_bias:
            return self.function(x, weight, self.bias, **self.options)
        bias = _dequantize(self.bias_codes, self.bias_scale, self.bias_zero_point)
        return self.function(x, weight, bias, **self.options)


def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int = 0) -> Tensor:
    inputs = (codes, scale, zero_point)
    return _symbolic("DequantizeLinear", inputs, {"axis": axis}, dtype=torch.float32, shape=codes.shape, version=None)


def weight_codes(layer: QuantWeightBiasInputOutputLayer) -> tuple[Tensor, Tensor]:
    """Return integer codes (int8, the weight's shape) and scales (C_out,) of a Brevitas layer."""
    with torch.no_grad():
        quantized = layer.quant_weight()
        codes = quantized.int(float_datatype=False).to(torch.int8)
        scale = quantized.scale.detach().reshape(-1).clone()
    channels = codes.shape[layer.output_channel_dim]
    return codes.clone(), scale.expand(channels).clone() if scale.numel() == 1 else scale


def bias_codes(bias: Tensor, scale: Tensor) -> Tensor:
    """Return int32 codes of a bias (C_out,) on the grid ``scale`` (C_out,) = input scale x weight scale."""
    codes = torch.round(bias.double() / scale.double())
    if float(codes.abs().max()) > 2**31 - 1:
        message = (
            "A bias does not fit int32: its scale (input scale x weight scale) is too small for its size, so a range "
            "has collapsed. Calibrate again with more images or a higher percentile."
        )
        raise TargetError(message)
    return codes.to(torch.int32)


def activation_parameters(proxy: Any) -> tuple[Tensor, int, tuple[int, int], bool]:
    """Return scale, zero point, lowest and highest code, and signedness of a Brevitas activation quantizer."""
    bits, signed = int(proxy.bit_width()), bool(proxy.is_signed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if signed and proxy.is_narrow_range:
        low += 1
    return proxy.scale().detach(), round(float(proxy.zero_point().detach())), (low, high), signed


def with_onnx_pooling(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a copy whose global pooling is written as GlobalAveragePool."""
    copied = copy.deepcopy(graph).cpu().eval()
    for name, module in list(copied.named_modules()):
        if isinstance(module, nn.AdaptiveAvgPool2d):
            copied.set_submodule(name, _GlobalAveragePool())
    return copied


def with_qdq(graph: fx.GraphModule, target: Target) -> fx.GraphModule:
    """Return a copy whose Brevitas layers are replaced by modules that the exporter writes as integer QDQ.

    Raises:
        TargetError: When the graph holds a quantizer that the target cannot run.
    """
    copied, space = with_onnx_pooling(graph), target.signed_activations
    scales = input_scales(copied) if target.bias == "int32" else {}
    first: dict[nn.Module, _IntegerLayer] = {}  # by weights, which several calls of one layer share
    for name, module in list(copied.named_modules()):
        if isinstance(module, QuantWeightBiasInputOutputLayer):
            written = _IntegerLayer(module, scales.get(name), first.get(module.weight_quant))
            first.setdefault(module.weight_quant, written)
            copied.set_submodule(name, written)
        proxy = activation_proxy(module)
        if proxy is None or not name.startswith("quant."):
            continue
        scale, zero_point, bounds, signed = activation_parameters(proxy)
        if signed != space.signed and not (space.signed and bounds[1] <= 127 and zero_point == 0):
            message = (
                f"Quantizer '{name}' makes {'signed' if signed else 'unsigned'} codes, which target '{target.name}' "
                "does not take. Build the student for this target."
            )
            raise TargetError(message)
        pair = _QuantizeDequantize(
            scale, zero_point, bounds, signed=space.signed, clip_before=target.clip_before_quantize
        )
        copied.set_submodule(name, pair)
    return copied


def input_scales(graph: fx.GraphModule) -> dict[str, Tensor]:
    """Each quantized layer's input scale (scalar), by layer name; each is called once (`quantized_graph`).

    A layer whose input is in float has none, and its bias stays in float, too.
    """
    return {name: proxy.scale().detach().reshape(()) for name, proxy in _input_proxies(graph).items()}


def input_codes(graph: fx.GraphModule) -> dict[str, tuple[int, int]]:
    """Return the smallest and the largest code that each of these layers reads, as uint8, by layer name."""
    found = {}
    for name, proxy in _input_proxies(graph).items():
        _, _, (low, high), signed = activation_parameters(proxy)
        found[name] = (low + 128 * signed, high + 128 * signed)
    return found


def _input_proxies(graph: fx.GraphModule) -> dict[str, Any]:
    modules = dict(graph.named_modules())
    layers = (n for n in graph.graph.nodes if isinstance(called(n, modules), QuantWeightBiasInputOutputLayer))
    proxies = {str(node.target): input_quantizer(node.args[0], modules) for node in layers}
    return {name: proxy for name, proxy in proxies.items() if proxy is not None}


def float_layers(graph: fx.GraphModule, tensors: Collection[str]) -> dict[str, str]:
    """Return why rows of a student compute in float: what they read, or what they give, has no quantizer.

    Args:
        graph: The student.
        tensors: Nodes whose value placement leaves in float; what gives one, in front of an activation or at once, is
            no integer kernel.
    """
    modules, scales, rows = dict(graph.named_modules()), input_scales(graph), layer_names(graph)
    layers = (n for n in graph.graph.nodes if isinstance(called(n, modules), QuantWeightBiasInputOutputLayer))
    found = {str(n.target): "its input stays in float" for n in layers if str(n.target) not in scales}
    for node in (n for n in graph.graph.nodes if n.name in tensors and n.op != "placeholder"):
        before = node.args[0] if isinstance(called(node, modules), nn.ReLU | nn.ReLU6) else node
        for each in (node, before):
            if isinstance(each, fx.Node) and each in rows and rows[each] not in tensors:
                found.setdefault(rows[each], "its output stays in float")
    return found


def integer_bias(graph: fx.GraphModule) -> dict[str, Tensor]:
    """Return each quantized layer's bias as int32 will store it, by layer name: float32 (C_out,) on that grid."""
    return {
        name: bias_codes(tensor_at(graph, f"{name}.bias").detach(), scale).to(scale.dtype) * scale
        for name, scale in bias_scales(graph).items()
    }


def bias_scales(graph: fx.GraphModule) -> dict[str, Tensor]:
    """Return input scale x weight scale, (C_out,), of each quantized layer by its name: the step of its bias."""
    inputs = input_scales(graph).items()
    return {name: scale * weight_codes(graph.get_submodule(name))[1] for name, scale in inputs}


def input_quantizer(before: object, modules: Mapping[str, nn.Module]) -> Any:
    """Return the quantizer that the values of a node come from, through operators that only move them; None without."""
    while isinstance(before, fx.Node):
        proxy = activation_proxy(called(before, modules))
        if proxy is not None:
            return proxy
        moves = before.op == "call_function" and op_name(before.target) in STRUCTURAL | REGRID
        if not (moves or isinstance(called(before, modules), nn.MaxPool2d)):
            break
        before = before.args[0]
    return None
