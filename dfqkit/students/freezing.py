"""The last step before export: put every number of a student on the grid that the integer file can hold.

What belongs here: rounding of zero points, biases and, where training moved them, scales, so that the fake-quantized
student in torch and the file that ships are one and the same function. Weights need nothing: their codes are integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx

from dfqkit.students.agreeing import agree
from dfqkit.students.nodes import tensor_at
from dfqkit.students.onnx_nodes import bias_scales, integer_bias
from dfqkit.students.quantizers import activation_proxy, zero_point_values
from dfqkit.students.weight_scales import round_weight_scales


def freeze(student: fx.GraphModule) -> None:
    """Round a calibrated student's weight scales, zero points and biases in place; it is final afterwards.

    Biases become multiples of input scale x weight scale for every target: where a file keeps them in float, ONNX
    Runtime still rounds them so when it fuses the layer.
    """
    student.eval()
    with torch.no_grad():
        round_scales(student)
        for layer, bias in integer_bias(student).items():
            tensor_at(student, f"{layer}.bias").copy_(bias)
    for parameter in student.parameters():
        parameter.requires_grad_(False)


@contextmanager
def integer_biases(student: fx.GraphModule) -> Iterator[None]:
    """Hold biases at what the file will store of them; gradients of what is computed meanwhile are theirs (STE).

    A 4-bit layer's bias is a few dozen steps of its grid away from the next code of its output, so that a rounded bias
    moves a channel everywhere by a percent or two of a code, which later layers can learn to make up for.
    """
    held: dict[Tensor, Tensor] = {}
    with torch.no_grad():
        for layer, step in bias_scales(student).items():
            bias = tensor_at(student, f"{layer}.bias")
            held[bias] = bias.detach().clone()
            bias.copy_(torch.round(bias.double() / step.double()) * step)
    try:
        yield
    finally:
        with torch.no_grad():
            for bias, value in held.items():
                bias.copy_(value)


def round_scales(student: fx.GraphModule) -> None:
    """Round zero points and scales, where training moved them, in place; doing so again changes nothing."""
    with torch.no_grad():
        even_zero_points(student)
        agree(student)
        round_weight_scales(student)


def even_zero_points(student: fx.GraphModule) -> None:
    """Make every zero point even.

    Brevitas rounds x / scale + zero_point, ONNX rounds x / scale and adds the zero point; both round half to even,
    which is the same only where the zero point is even.
    """
    with torch.no_grad():
        for module in student.modules():
            shift, proxy = zero_point_values(module), activation_proxy(module)
            if shift is not None:
                largest = 2 ** int(proxy.bit_width()) - 2
                code = torch.round(proxy.zero_point() / 2).mul(2).clamp(max=largest)
                shift.copy_((code * proxy.scale()).reshape(shift.shape))
