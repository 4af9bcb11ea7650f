"""Scales around additions with which the kernels of all processors give the same codes.

What belongs here: choosing them. x86 computes an addition in float32 and rounds half to even, Arm in fixed point and
rounds half away from 0, so that sums half way between two codes part; with scales that are powers of two every other
sum is one. Of two 8-bit inputs there are 65,536 pairs, so that a choice is proven by computing all of them with the
formula of each kind of processor (`dfqkit_export.backends.onnxruntime.kernels`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from dfqkit.students.nodes import called, op_name, source
from dfqkit.students.onnx_nodes import activation_parameters, input_quantizer
from dfqkit.students.quantizers import activation_proxy, scale_to
from dfqkit_export.backends.onnxruntime.kernels import Codes, parting_additions

#: Significant bits of the quotient of two inputs' scales: 6 % more range at most, and few enough sums that differ.
QUOTIENT_BITS = 4
#: Larger scales of a sum that are tried, and how far apart they are: 5 % more range at most.
TRIED, STEP = 200, 2.0**-12


def agree(student: fx.GraphModule) -> None:
    """Move the scales of sums, and of inputs that nothing else reads, in place, until all kernels agree on every pair.

    Scales only become larger, so that no range is cut. Additions whose kernels agree already stay as they are. Where no
    scale that is tried serves, that with the fewest pairs apart is taken, and what checks or proves the file says so.
    """
    if not student.meta.get("additions_agree"):
        return
    modules, settled = dict(student.named_modules()), set[nn.Module]()
    for node in student.graph.nodes:
        out = called(node, modules)
        addition = _addition(node, modules)
        if out is None or addition is None or out in settled:
            continue
        inputs = [_quantizer(argument, modules) for argument in addition.args]
        if any(quantizer is None or quantizer is out for quantizer, _ in inputs):
            continue
        (first, first_free), (second, second_free) = inputs
        if not _parting(first, second, out):
            settled |= {first, second, out}
            continue
        if second_free and second not in settled:
            _relate(second, first)
        elif first_free and first not in settled:
            _relate(first, second)
        _search(first, second, out)
        settled |= {first, second, out}


def _addition(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """Return the addition of two tensors whose codes a quantizer makes, through a ReLU; None for other nodes."""
    if activation_proxy(called(node, modules)) is None:
        return None
    made = source(node)
    if isinstance(called(made, modules), nn.ReLU):
        made = source(made)
    of_two = made.op == "call_function" and op_name(made.target) == "add" and len(made.args) == 2 and not made.kwargs
    return made if of_two and all(isinstance(each, fx.Node) for each in made.args) else None


def _quantizer(argument: Any, modules: Mapping[str, nn.Module]) -> tuple[Any, bool]:
    """Return the quantizer of an input, and whether nothing but the addition reads its codes."""
    if input_quantizer(argument, modules) is None:
        return None, False
    node, free = argument, len(argument.users) == 1
    while activation_proxy(called(node, modules)) is None:  # what only moves values lies between
        node = source(node)
        free = free and len(node.users) == 1
    return called(node, modules), free


def _codes(quantizer: nn.Module) -> Codes:
    scale, zero, (low, high), _ = activation_parameters(activation_proxy(quantizer))
    return Codes(scale=float(scale), zero=zero, low=low, high=high)


def _parting(first: nn.Module, second: nn.Module, out: nn.Module) -> int:
    return parting_additions(_codes(first), _codes(second), _codes(out))


def _relate(moved: nn.Module, kept: nn.Module) -> None:
    """Make a scale a short multiple of another, and not smaller."""
    unit = _codes(kept).scale
    mantissa, exponent = math.frexp(_codes(moved).scale / unit * (1 - 2.0**-20))  # what is short already stays
    scale_to(moved, unit * math.ldexp(math.ceil(mantissa * 2**QUOTIENT_BITS) / 2**QUOTIENT_BITS, exponent))


def _search(first: nn.Module, second: nn.Module, out: nn.Module) -> None:
    """Make the scale of a sum larger until the kernels agree, or as nearly as they can."""
    begin, best, fewest = _codes(out).scale, _codes(out).scale, math.inf
    for step in range(TRIED):
        scale_to(out, begin * (1 + step * STEP))
        count = _parting(first, second, out)
        if count < fewest:
            best, fewest = float(torch.as_tensor(_codes(out).scale)), count
        if not count:
            return
    scale_to(out, best)
