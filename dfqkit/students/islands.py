"""Which tensors of a float graph 8 bits cannot hold, by the operators that compute them: rules, nothing is measured.

What belongs here: how the spread of values passes through a graph. A power, an exponential, a quotient or a mask has
values so far apart that one grid of 256 codes loses the small ones; a divisor or the argument of a root and of a
logarithm must be right where it is small. What an operator bounds (sigmoid, softmax, LayerNorm) or a layer weighs
starts anew. Which quantizers follow from it is `placement`; what only a measurement shows is `measured`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfqkit.students.inputs import is_input
from dfqkit.students.nodes import called, fill_of, op_name, tensor_at

#: Operators whose values spread over orders of magnitude.
_SPREADING_WORDS = (
    "pow float_power square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p logsumexp logcumsumexp var "
    "var_mean std std_mean norm linalg_vector_norm frobenius_norm prod cumprod cumsum where masked_fill "
    "masked_scatter sinh cosh tan acosh special_xlogy xlogy"
)
_SPREADING = frozenset(_SPREADING_WORDS.split())
#: Of these, what shrinks as its argument grows: what it multiplies is a quotient.
_INVERSE = {"rsqrt", "reciprocal"}
#: Operators whose arguments must be right where they are small.
_SENSITIVE = {"rsqrt", "reciprocal", "sqrt", "log", "log2", "log10", "logsumexp"}
#: Operators whose values lie within fixed bounds, or are of one scale, whatever comes in.
_BOUNDED_WORDS = (
    "sigmoid tanh hardsigmoid hardtanh softmax softmin _softmax erf sin cos sign atan layer_norm "
    "native_layer_norm group_norm native_group_norm instance_norm rms_norm _fused_rms_norm "
    "scaled_dot_product_attention argmax"
)
_BOUNDED = frozenset(_BOUNDED_WORDS.split())
_BOUNDED_MODULES = (nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Hardtanh)
#: What multiplies two tensors and sums: integer kernels read both.
MATMUL = {"matmul", "bmm", "mm", "baddbmm", "addmm", "einsum"}
#: A constant beyond this, added, filled in or padded, marks places that a softmax or a maximum is to leave out.
FILL = 1e4


class Spread(IntEnum):
    """How far apart the values of a tensor lie, in the order in which one passes on to what is computed of it."""

    NARROW = 0  # what 8 bits hold
    QUOTIENT = 1  # normalised: it ends where it meets another tensor
    INVERSE = 2  # a factor that makes a quotient
    WIDE = 3


class Islands:
    """What rules say of every node of a float graph in normal form.

    Args:
        graph: The graph.
        tensors: Its nodes whose values are float tensors.
        unbounded: Those of them that hold infinities.
        kept: Nodes that stay in float for another reason.
    """

    def __init__(
        self, graph: fx.GraphModule, tensors: set[fx.Node], unbounded: set[fx.Node], kept: set[fx.Node]
    ) -> None:
        self.graph, self.tensors, self.kept = graph, tensors, kept
        self.modules = dict(graph.named_modules())
        self.filled: set[fx.Node] = set()
        self.spreads: dict[fx.Node, Spread] = {}
        self.origins: dict[fx.Node, str] = {}
        for node in graph.graph.nodes:
            if node not in tensors:
                continue
            inputs = [other for other in node.all_input_nodes if other in tensors]
            if node in unbounded or self._fills(node) or (_passes_fills(node) and self.filled.intersection(inputs)):
                self.filled.add(node)
            self.spreads[node] = self._spread(node, inputs)
            if self.spreads[node]:
                widest = max(inputs, key=self.spread, default=node)
                self.origins[node] = self.origins.get(widest, op_name(node.target))
        self.precise = self._precise()

    def spread(self, node: fx.Node) -> Spread:
        """Return how far the values of a node lie apart."""
        return self.spreads.get(node, Spread.NARROW)

    def holds(self, node: fx.Node) -> bool:
        """Return whether 8 bits hold a tensor, so far as its operators tell."""
        return not (self.spread(node) or node in self.precise or node in self.filled)

    def reason(self, node: fx.Node) -> str:
        """Return why 8 bits do not hold it; empty where they do."""
        if node in self.filled:
            return "it holds values that stand for places to be left out (a mask or a fill), which no range may cover"
        if node in self.precise:
            return "it is a divisor, or the argument of a root or a logarithm, which must be right where it is small"
        return f"behind '{self.origins[node]}' its values lie too far apart for 256 codes" if self.spread(node) else ""

    def constant(self, node: object) -> Tensor | float | None:
        """Return the value of an argument that no image changes; None for any other."""
        if isinstance(node, (int, float)) and not isinstance(node, bool):
            return float(node)
        if not isinstance(node, fx.Node):
            return None
        if node.op == "get_attr":
            return tensor_at(self.graph, node.target).detach()
        position = {"scalar_tensor": 0, "full": 1, "full_like": 1}.get(op_name(node.target), -1)
        return self.constant(node.args[position]) if position >= 0 and node.op == "call_function" else None

    def _fills(self, node: fx.Node) -> bool:
        """Whether constants that mark places come in at a node: of a mask, a fill, or a pad."""
        name = op_name(node.target)
        if node.op != "call_function" or name in _BOUNDED or name.startswith(("clamp", "hardtanh")):
            return False
        fill = fill_of(node)
        if fill is not None:
            return abs(fill) >= FILL
        operands = node.args if name in ("add", "sub", "where", "masked_fill", "mul", "maximum", "minimum") else ()
        return any(_largest(self.constant(operand)) >= FILL for operand in operands)

    def _spread(self, node: fx.Node, inputs: list[fx.Node]) -> Spread:
        name = op_name(node.target) if node.op == "call_function" else ""
        module = called(node, self.modules)
        widest = max((self.spread(other) for other in inputs), default=Spread.NARROW)
        if (
            isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d, *_BOUNDED_MODULES))
            or name in _BOUNDED
            or name in MATMUL
            or (name == "clamp" and _both_ends(node))
        ):
            own = Spread.NARROW
        elif name in _SPREADING:
            own = self._of_power(node, name)
        elif name in ("div", "true_divide", "divide"):
            own = self._of_quotient(node, widest)
        elif name == "mul":
            own = self._of_product(node, inputs, widest)
        elif len(inputs) > 1:
            own = self._met(inputs, widest)
        else:
            own = widest
        return max(own, Spread.QUOTIENT) if node in self.kept else own

    def _of_power(self, node: fx.Node, name: str) -> Spread:
        exponent = self.constant(node.args[1]) if name == "pow" and len(node.args) > 1 else None
        negative = exponent is not None and _lowest(exponent) < 0
        return Spread.INVERSE if name in _INVERSE or negative else Spread.WIDE

    def _of_quotient(self, node: fx.Node, widest: Spread) -> Spread:
        if self.constant(node.args[1]) is not None:
            return widest
        return Spread.INVERSE if self.constant(node.args[0]) is not None else Spread.QUOTIENT

    def _of_product(self, node: fx.Node, inputs: list[fx.Node], widest: Spread) -> Spread:
        if node.args[0] is node.args[1]:
            return Spread.WIDE
        if widest is Spread.INVERSE and len(inputs) > 1:
            return Spread.QUOTIENT
        return self._met(inputs, widest)

    def _met(self, inputs: list[fx.Node], widest: Spread) -> Spread:
        """Where several tensors meet: a quotient is of the scale of what it meets."""
        met = widest is Spread.QUOTIENT and any(self.spread(other) is Spread.NARROW for other in inputs)
        return Spread.NARROW if met else widest

    def _precise(self) -> set[fx.Node]:
        """Nodes that are computed for nothing but a divisor, or the argument of a root or a logarithm.

        A layer's own output, with its ReLU, is none: its kernel writes codes.
        """
        found: set[fx.Node] = set()
        for node in reversed(self.graph.graph.nodes):
            if node not in self.tensors or is_input(node) or self._written_by_a_layer(node):
                continue
            readers = [user for user in node.users if user in self.tensors]
            if readers and all(user in found or self._sensitive(user, node) for user in readers):
                found.add(node)
        return found

    def _written_by_a_layer(self, node: fx.Node) -> bool:
        module = called(node, self.modules)
        if isinstance(module, (nn.ReLU, nn.ReLU6)) and isinstance(node.args[0], fx.Node):
            module = called(node.args[0], self.modules)
        return isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d))

    def _sensitive(self, user: fx.Node, node: fx.Node) -> bool:
        name = op_name(user.target) if user.op == "call_function" else ""
        if name in ("div", "true_divide", "divide"):
            return user.args[1] is node and user.args[0] is not node
        exponent = self.constant(user.args[1]) if name == "pow" and len(user.args) > 1 else None
        return name in _SENSITIVE or (exponent is not None and _lowest(exponent) < 0)


def _passes_fills(node: fx.Node) -> bool:
    """Whether filled places are still there behind an operator: a maximum and what bounds values take them out."""
    if node.op != "call_function":
        return False
    name = op_name(node.target)
    return not (name in _BOUNDED | {"amax", "max", "logsumexp", "exp"} or name.startswith("clamp"))


def _lowest(value: Tensor | float | None) -> float:
    if isinstance(value, Tensor):
        return float(value.min()) if value.numel() and value.dtype is not torch.bool else math.inf
    return math.inf if value is None else value


def _largest(value: Tensor | float | None) -> float:
    if isinstance(value, Tensor):
        return float(value.abs().max()) if value.numel() and value.is_floating_point() else 0.0
    return 0.0 if value is None else abs(value)


def _both_ends(node: fx.Node) -> bool:
    ends: list[Any] = [*node.args[1:3], *(node.kwargs.get(name) for name in ("min", "max"))]
    return sum(isinstance(end, (int, float)) for end in ends) == 2


_NONNEGATIVE_WORDS = (
    "abs square sqrt rsqrt exp exp2 softmax _softmax sigmoid hardsigmoid relu relu6 softplus var std norm "
    "linalg_vector_norm frobenius_norm"
)
_NONNEGATIVE = frozenset(_NONNEGATIVE_WORDS.split())
_KEEPS_SIGN_WORDS = "mean sum amax amin cumsum prod cumprod clamp_max clamp reciprocal leaky_relu"
_KEEPS_SIGN = frozenset(_KEEPS_SIGN_WORDS.split())
_NONNEGATIVE_MODULES = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid)
_POOLING = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d)


def nonnegative(node: object, islands: Islands, moves: Callable[[fx.Node], bool]) -> bool:
    """Return whether no value of a tensor or constant can be below 0, by the operators that compute it."""

    def all_of(values: object) -> bool:
        return all(nonnegative(value, islands, moves) for value in values)  # type: ignore[attr-defined]

    constant = islands.constant(node)
    if constant is not None:
        return _lowest(constant) >= 0
    if not isinstance(node, fx.Node) or is_input(node):
        return False
    module = called(node, islands.modules)
    if module is not None:
        return isinstance(module, _NONNEGATIVE_MODULES) or (isinstance(module, _POOLING) and all_of(node.args[:1]))
    name, fill = op_name(node.target), fill_of(node)
    if fill is not None:
        return fill >= 0 and all_of(node.args[:1])
    if name in _NONNEGATIVE or _at_least_zero(node, name):
        return True
    if moves(node) or name in _KEEPS_SIGN:
        return all_of(node.args[:1])
    return _sign_of_arithmetic(node, name, all_of)


def _sign_of_arithmetic(node: fx.Node, name: str, all_of: Callable[[object], bool]) -> bool:
    operands: Any = node.args[:2]
    if name in ("pow", "float_power"):
        return (isinstance(operands[1], (int, float)) and operands[1] % 2 == 0) or all_of(operands[:1])
    if name == "maximum":
        return any(all_of([value]) for value in operands)
    if name in ("add", "mul", "div", "minimum"):
        return (name == "mul" and operands[0] is operands[1]) or all_of(operands)
    return name in ("cat", "stack") and all_of(operands[0])


def _at_least_zero(node: fx.Node, name: str) -> bool:
    """Whether a clamp's lower end, or a hardtanh's, is 0 or above."""
    if name not in ("clamp", "clamp_min", "hardtanh"):
        return False
    key = "min_val" if name == "hardtanh" else "min"
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get(key)
    return isinstance(low, (int, float)) and low >= 0
