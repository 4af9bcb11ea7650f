"""Ranges and biases of a freshly built student: calibration, the exact input range, bias correction.

Everything runs on batches of synthetic images. Brevitas' own modes do the work; what is ours is the order and the input
range, which needs no data at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import brevitas.nn as qnn
import torch
from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
from torch import Tensor, fx, nn

from dfqkit.students.freezing import even_zero_points
from dfqkit.students.inputs import image_of, is_input
from dfqkit.students.nodes import called, source
from dfqkit.students.quantizers import (
    EndingBehind,
    activation_internals,
    activation_proxy,
    set_range,
    zero_point_values,
)
from dfqkit.students.ranges_behind import narrow_ranges
from dfqkit.students.weight_scales import fix_weight_scales, short_mantissa
from dfqkit_export.images.spec import ImageSpec

#: Significant bits of the input's scale: rounded up to so few that products with it stay exact (see `freezing`).
INPUT_MANTISSA = 5
#: What natural images' averages over positions have of the standard deviation of single positions, at least: 0.57 to
#: 0.72 on digits behind a last layer, synthetic ones 0.32.
ALIKE = 0.5
#: By what averages are moved apart, at most, and the fewest images whose spread says anything.
MOST, FEWEST = 4.0, 8
#: Bits of a grid that has codes to spare for it.
ROOMY_BITS = 8
#: The same for scales behind ReLU6: 1.5 * 2^-6 ends at 5.98.
RELU6_MANTISSA = 2


def calibrate(student: fx.GraphModule, batches: Sequence[Tensor], image: ImageSpec, *, learnable: bool) -> None:
    """Find every activation range from normalised images, then fix the input's from the image specification.

    The input's quantizer so never depends on synthetic images. ``learnable`` says whether training may move the
    ranges; scales that are powers of two cannot move by small steps.
    """
    student.eval()
    with torch.no_grad(), _extremes(student) as seen, calibration_mode(student):
        for batch in batches:
            Dispersed(student).run(batch)
    for quantizer, (low, high) in seen.items():
        if not low <= 0 <= high:
            # Brevitas takes largest minus smallest value, and a zero point outside of the codes, which cannot be.
            set_range(quantizer, min(low, 0.0), max(high, 0.0))
    if learnable:  # else a range ends at a power of two, whatever is cut
        narrow_ranges(student, batches)
    for node in filter(is_input, student.graph.nodes):
        if f"quant.{node.name}" in dict(student.named_modules()):  # else it stays in float
            _cover(student.get_submodule(f"quant.{node.name}"), image_of(node, image))
    _end_at_six(student, exact=not learnable)
    settle(student, learnable=learnable)
    even_zero_points(student)


class Dispersed(fx.Interpreter):
    """Runs a graph with averages over positions as far apart from image to image as those of natural images.

    Synthetic images agree with statistics at every position, each on its own: the positions of one image are
    less alike than a natural one's, and averages over them lie closer together. Ranges behind these would cut natural
    images: 27 dB instead of 34 on digits. Means stay, and biases are corrected with images as they are. Below 8 bits
    the finer grid is worth more than the room.
    """

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and move the averages of each channel away from their mean where a quantizer reads them."""
        value = super().run_node(n)
        if n.op != "call_module" or not isinstance(self.fetch_attr(str(n.target)), nn.AdaptiveAvgPool2d):
            return value
        readers = (activation_proxy(self.fetch_attr(str(m.target))) for m in n.users if m.op == "call_module")
        roomy = any(proxy is not None and int(proxy.bit_width()) == ROOMY_BITS for proxy in readers)
        return _dispersed(self.fetch_args_kwargs_from_env(n)[0][0], value) if roomy else value


def _dispersed(x: Tensor, pooled: Tensor) -> Tensor:
    if len(x) < FEWEST or pooled.shape[2:] != (1, 1):
        return pooled
    centre, spread = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), correction=0, keepdim=True)
    found = pooled.std(0, correction=0, keepdim=True)
    factor = (ALIKE * spread / found.clamp_min(torch.finfo(x.dtype).tiny)).clamp(1, MOST)
    return (centre + factor * (pooled - centre)).clamp(x.min(), x.max())


@contextmanager
def _extremes(student: fx.GraphModule) -> Iterator[dict[nn.Module, tuple[float, float]]]:
    """Note the smallest and largest value that each asymmetric quantizer sees."""
    seen: dict[nn.Module, tuple[float, float]] = {}

    def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = seen.get(module, (math.inf, -math.inf))
        seen[module] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

    with ExitStack() as hooks:
        for module in student.modules():
            if zero_point_values(module) is not None:
                hooks.enter_context(module.register_forward_pre_hook(read))
        yield seen


def settle(student: fx.GraphModule, *, learnable: bool) -> None:
    """Make a student whose ranges are known (calibrated or loaded) ready to train: operators, trainable ranges."""
    student.eval()
    for node, _ in _behind_relu6(student):
        # ReLU: the quantizer behind it ends at 6 or below, and the runtime fuses ReLU, but not Clip.
        student.set_submodule(str(node.target), EndingBehind())
    modules = dict(student.named_modules())
    for node in student.graph.nodes:
        internals = activation_internals(called(node, modules))
        if internals is not None:
            internals.requires_grad_(learnable and not is_input(source(node)))
    fix_weight_scales(student)


def correct_bias(student: fx.GraphModule, batches: Sequence[Tensor]) -> None:
    """Shift each bias by the mean error that quantization adds to its layer's output.

    Source: Nagel et al., 2019, section 4.2.
    """
    student.eval()
    with torch.no_grad(), bias_correction_mode(student):
        for batch in batches:
            student(batch)


def _cover(quantizer: nn.Module, image: ImageSpec) -> None:
    """Let a quantizer hold all that pixels can be."""
    proxy, shift = activation_proxy(quantizer), zero_point_values(quantizer)
    codes = 2 ** int(proxy.bit_width())
    low, high = (min(image.bounds()[0], 0.0), max(image.bounds()[1], 0.0))
    with torch.no_grad():
        if shift is None:
            below, above = (codes // 2, codes // 2 - 1) if proxy.is_signed else (0, codes - 1)
            step = _short_above(max(high / above, -low / below if below else 0.0))
        else:
            step, zero_point = _covering(low, high, codes - 1)
            shift.fill_(zero_point * step)
        value = activation_internals(quantizer).scaling_impl.value
        value.fill_(step * round(float(value) / float(proxy.scale())))


def _short_above(step: float) -> float:
    return float(short_mantissa(torch.tensor(step, dtype=torch.float64), INPUT_MANTISSA, rounding=torch.ceil))


def _covering(low: float, high: float, codes: int) -> tuple[float, int]:
    """Return the smallest short step and the even zero point with which ``codes`` steps reach from low to high."""
    step = _short_above((high - low) / codes)
    while True:
        zero_point = 2 * math.ceil(-low / step / 2)
        if (codes - zero_point) * step >= high:
            return step, zero_point
        step = _short_above(step * (1 + 2**-INPUT_MANTISSA))


def _end_at_six(student: fx.GraphModule, *, exact: bool) -> None:
    """Let no range behind ReLU6 end above 6: the quantizer's clipping takes over from the activation's.

    A power of two would end at 8 or at 4. Where scales must be exact these keep two significant bits instead, so that
    divisions by them, the one place where they are not exact, still rarely meet a tie.
    """
    for _, quantizer in _behind_relu6(student):
        proxy = activation_proxy(quantizer)
        top = 2.0 ** float(proxy.bit_width()) - 1
        if proxy.is_signed:
            top = (top - 1) / 2
        with torch.no_grad():
            scale: Tensor = proxy.scale()
            wanted = torch.minimum(scale, torch.full_like(scale, 6 / top))
            if exact:
                wanted = short_mantissa(wanted, RELU6_MANTISSA, rounding=torch.floor)
            value: Tensor = activation_internals(quantizer).scaling_impl.value
            per_code = torch.round(value / scale.reshape(()))  # an integer: the quotient would not be exact
            value.copy_(wanted.reshape(()) * per_code)


def _behind_relu6(student: fx.GraphModule) -> list[tuple[fx.Node, nn.Module]]:
    """Return every ReLU6 that only quantizers read, with its quantizer."""
    modules = dict(student.named_modules())
    found: list[tuple[fx.Node, nn.Module]] = []
    for node in student.graph.nodes:
        if isinstance(called(node, modules), nn.ReLU6):
            quantizers = [m for m in (called(user, modules) for user in node.users) if isinstance(m, qnn.QuantIdentity)]
            if quantizers and len(quantizers) == len(node.users):
                found.append((node, quantizers[0]))
    return found
