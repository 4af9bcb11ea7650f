"""A frozen student in the arithmetic of ONNX Runtime's integer kernels: the bits of its file, whatever its scales.

What belongs here: which nodes become one kernel. Fake quantization computes the same numbers as the kernels but rounds
elsewhere, so that a tie can move a code; with scales that are powers of two nothing is rounded, and both agree. The
kernels' formulas are `integer_kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import brevitas.nn as qnn
import torch
from torch import Tensor, fx, nn

from dfqkit.students import integer_kernels as kernels
from dfqkit.students.nodes import called, op_name, source
from dfqkit.students.onnx_nodes import activation_parameters, bias_codes, input_quantizer, weight_codes
from dfqkit.students.quantizers import activation_proxy

_OF_TWO = {"add": kernels.addition, "mul": kernels.product}
_PRODUCTS = frozenset({"matmul", "bmm", "mm"})


class IntegerStudent(fx.Interpreter):
    """Runs a frozen student as ONNX Runtime's CPU provider runs its file: to the bit, up to the first float operator.

    What the runtime computes in integers gives codes here, up to the quantizer that makes values of them; all else runs
    as the student has it. Behind operators in float the two are alike and not equal: a tie can move a code.

    Args:
        student: Frozen, for one of ONNX Runtime's own targets; read here, so that it must not change afterwards.
        see: Is shown every node that gives a tensor, with it; between an operator and its quantizer that is codes.
    """

    def __init__(self, student: fx.GraphModule, see: Callable[[fx.Node, Tensor], None] | None = None) -> None:
        super().__init__(student)
        self._see = see
        self._called, self._kernels = dict(student.named_modules()), dict[fx.Node, kernels.Kernel]()
        with torch.no_grad():
            for node in student.graph.nodes:
                proxy = activation_proxy(called(node, self._called))
                if proxy is not None:
                    self._fuse(node, _grid(proxy))
            for node in student.graph.nodes:  # what gives values itself, not codes
                if node not in self._kernels and (kernel := self._kernel(node, None)):
                    self._kernels[node] = kernel

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, as part of its kernel where it has one."""
        kernel = self._kernels.get(n)
        value = kernel(*self.fetch_args_kwargs_from_env(n)[0]) if kernel else super().run_node(n)
        if self._see and isinstance(value, Tensor):
            self._see(n, value)
        return value

    def _fuse(self, quantizer: fx.Node, out: kernels.Grid) -> None:
        """Find the kernel that writes a quantizer's codes: an operator, with its ReLU, that nothing else reads."""
        node, chain = source(quantizer), dict[fx.Node, kernels.Kernel]({quantizer: out.values})
        if isinstance(called(node, self._called), nn.ReLU) and out.zero == out.low and len(node.users) == 1:
            node, chain[node] = source(node), lambda codes: codes  # what the ReLU cuts off lies below the grid
        if len(node.users) == 1 and (kernel := self._kernel(node, out)):
            self._kernels |= chain | {node: kernel}

    def _kernel(self, node: fx.Node, out: kernels.Grid | None) -> kernels.Kernel | None:
        """Return the kernel of an operator that reads nothing but codes, which gives codes of ``out``, or values."""
        layer, grids = called(node, self._called), self._grids(node.args)
        operator = op_name(node.target) if node.op == "call_function" and not node.kwargs and len(grids) == 2 else ""
        if operator in _PRODUCTS:
            return kernels.product_of_matrices(grids[0], grids[1], out)
        if isinstance(layer, qnn.QuantConv2d | qnn.QuantLinear) and grids and (out or isinstance(layer, nn.Linear)):
            return _weighted(layer, grids[0], out)
        if not (grids and out):
            return None
        if operator in _OF_TWO:
            return _OF_TWO[operator](grids[0], grids[1], out)
        if isinstance(layer, nn.AvgPool2d):
            return kernels.average(layer, out)
        return kernels.average_of_all(grids[0], out) if isinstance(layer, nn.AdaptiveAvgPool2d) else None

    def _grids(self, arguments: Sequence[Any]) -> list[kernels.Grid]:
        """Return the grids of arguments; none where one is not in codes."""
        proxies = [input_quantizer(argument, self._called) for argument in arguments]
        return [] if None in proxies else [_grid(proxy) for proxy in proxies]


def watch_integers(student: fx.GraphModule, images: Tensor, see: Callable[[fx.Node, Tensor], None]) -> None:
    """Do what `watch` does with an `IntegerStudent`."""
    with torch.no_grad():
        IntegerStudent(student, see).run(images.to(next(student.parameters()).device))


def _grid(proxy: Any) -> kernels.Grid:
    scale, zero, (low, high), _ = activation_parameters(proxy)
    return kernels.Grid(scale=scale.reshape(()), zero=zero, low=low, high=high)


def _weighted(layer: Any, grid: kernels.Grid, out: kernels.Grid | None) -> kernels.Kernel:
    codes, scale = weight_codes(layer)
    bias = bias_codes(layer.bias.detach(), grid.scale * scale)
    return kernels.weighted(layer.inner_forward_impl, codes, scale, bias, grid, out)
