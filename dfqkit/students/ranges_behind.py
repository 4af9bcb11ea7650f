"""Ranges of tensors that activation functions read, by the error that is left behind them.

What belongs here: runtimes fuse ReLU into the layer before it, others not, so that what these read has a grid of its
own. Most of its negative half hardly counts behind them: LeakyReLU takes a tenth of it, GELU next to nothing below -3,
and a range that holds it all spends half of the codes there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from dfqkit.students.nodes import called, op_name, watch
from dfqkit.students.quantizers import range_of, set_range, zero_point_values

#: Functions of each value for itself, by the operator's and by the module's name.
_FUNCTIONS = {"leaky_relu", "leakyrelu", "elu", "gelu", "hardsigmoid", "mish", "sigmoid", "tanh"}
#: Shares of both ends that are tried.
_SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2)
#: Values of a tensor that are looked at in a batch, at most.
_VALUES = 2**16

_Function = Callable[[Tensor], Tensor]


def narrow_ranges(student: fx.GraphModule, batches: Sequence[Tensor]) -> None:
    """Cut the calibrated ranges of asymmetric quantizers that only such functions read, in place.

    Of all shares of the lowest and of the highest value the two are taken that leave the least squared error behind the
    function.

    Args:
        student: Its scales are any float numbers.
        batches: Normalised images (n, C, H, W), those that calibrated it.
    """
    functions = _functions(student)
    read: dict[fx.Node, list[Tensor]] = {}

    def see(node: fx.Node, value: Tensor) -> None:
        for reader in node.users:
            if reader in functions:
                flat = value.flatten()
                read.setdefault(reader, []).append(flat[:: max(1, flat.numel() // _VALUES)].clone())

    for batch in batches if functions else ():
        watch(student, batch, see)
    for node, values in read.items():
        _narrow(student.get_submodule(str(node.target)), torch.cat(values), functions[node])


def _functions(student: fx.GraphModule) -> dict[fx.Node, _Function]:
    """Return the quantizers that one function reads alone, with it."""
    modules = dict(student.named_modules())
    found: dict[fx.Node, _Function] = {}
    for node in student.graph.nodes:
        quantizer = called(node, modules)
        if quantizer is None or zero_point_values(quantizer) is None or len(node.users) != 1:
            continue
        (reader,) = node.users
        function = called(reader, modules)
        name = type(function).__name__.lower() if function is not None else op_name(reader.target)
        if name in _FUNCTIONS and reader.all_input_nodes == [node]:
            found[node] = function if function is not None else _bound(reader)
    return found


def _bound(node: fx.Node) -> _Function:
    """Return an operator with all of its arguments but the first."""
    target, others, named = node.target, node.args[1:], node.kwargs
    assert callable(target)
    return lambda x: target(x, *others, **named)


def _narrow(quantizer: nn.Module, values: Tensor, function: _Function) -> None:
    low, high = range_of(quantizer)
    tried = [(low * a, high * b) for a in _SHARES for b in _SHARES if low < 0 < high] or [(low, high)]
    with torch.no_grad():
        wanted, errors = function(values), []
        for ends in tried:
            set_range(quantizer, *ends)
            errors.append(float((function(quantizer(values)) - wanted).square().mean()))
    set_range(quantizer, *tried[errors.index(min(errors))])
