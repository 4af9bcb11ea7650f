"""What exporters write in several nodes, as the one operator that is meant.

What belongs here: patterns over a list of operators. Each is exact in real numbers, so that the proof against the file
holds; a node of a pattern that others read too stays, and a pattern of which one number differs is none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from dfqkit.teacher.onnx_graph.reading import Operator

_CLOSE = 1e-5


class _Patterns:
    """A file's operators with their look-ups."""

    def __init__(self, operators: Sequence[Operator], constants: Mapping[str, Tensor], outputs: Iterable[str]) -> None:
        self.operators = list(operators)
        self.constants = dict(constants)
        for node in operators:
            if node.kind == "Constant" and isinstance(value := node.get("value"), Tensor):
                self.constants[node.outputs[0]] = value
        self.producers = {name: node for node in operators for name in node.outputs}
        self.readers = Counter(name for node in operators for name in node.inputs)
        self.readers.update(outputs)

    def made_by(self, name: str, *kinds: str, shared: bool = False) -> Operator | None:
        """Return the node that makes a tensor, where it is of these kinds and, unless shared, only one reads it."""
        node = self.producers.get(name)
        alone = shared or self.readers[name] == 1
        return node if node is not None and node.kind in kinds and alone else None

    def number(self, name: str) -> float | None:
        """Return a constant of one number."""
        value = self.constants.get(name)
        return float(value.item()) if value is not None and value.numel() == 1 else None

    def split(self, node: Operator) -> tuple[str, float] | None:
        """Return the tensor and the number that a node of two inputs reads, in either order."""
        for x, other in (node.inputs[:2], node.inputs[1::-1]):
            number = self.number(other)
            if number is not None and self.number(x) is None:
                return x, number
        return None

    def with_number(self, name: str, kind: str, wanted: float) -> str | None:
        """Return what a node of this kind, alone read, does this number to."""
        node = self.made_by(name, kind)
        return None if node is None else self.beside_number(node, wanted)

    def beside_number(self, node: Operator, wanted: float) -> str | None:
        """Return what a node reads beside this number."""
        found = self.split(node)
        return found[0] if found is not None and math.isclose(found[1], wanted, rel_tol=_CLOSE) else None

    def scaled(self, name: str, factor: float) -> str | None:
        """Return what is multiplied with a number, or divided by its inverse, alone read."""
        node = self.made_by(name, "Mul", "Div")
        return None if node is None else self.scales(node, factor)

    def scales(self, node: Operator, factor: float) -> str | None:
        """Return what a node multiplies with a number, or divides by its inverse."""
        if node.kind == "Mul":
            return self.beside_number(node, factor)
        number = self.number(node.inputs[1]) if node.kind == "Div" else None
        return node.inputs[0] if number is not None and math.isclose(number * factor, 1, rel_tol=_CLOSE) else None


def recognised(
    operators: Sequence[Operator], constants: Mapping[str, Tensor], outputs: Sequence[str]
) -> list[Operator]:
    """Return the operators with every idiom in one node."""
    found = list(operators)
    for pattern in _PATTERNS:
        patterns = _Patterns(found, constants, outputs)
        found = _read([pattern(patterns, node) or node for node in found], outputs)
    return found


def _read(operators: Sequence[Operator], outputs: Sequence[str]) -> list[Operator]:
    """Return the operators without those that nobody reads any more."""
    wanted, kept = set(outputs), list[Operator]()
    for node in reversed(operators):
        if wanted.intersection(filter(None, node.outputs)):
            kept.append(node)
            wanted.update(node.inputs)
            inner = [each for value in node.attributes.values() for each in getattr(value, "node", ())]
        wanted.update(name for each in inner for name in each.input)
    return kept[::-1]


def _hard_sigmoid(p: _Patterns, node: Operator) -> Operator | None:
    """Find ``relu6(x + 3) / 6``, and ``x * relu6(x + 3) / 6`` divided last, as Paddle and torch write hard-swish."""
    product = p.scales(node, 1 / 6)
    if product is None:
        return None
    if (x := _relu6_of_shifted(p, product)) is not None:
        return replace(node, kind="HardSigmoid", inputs=(x,), attributes={"alpha": 1 / 6, "beta": 0.5})
    gated = p.made_by(product, "Mul")
    for gate, x in (gated.inputs, gated.inputs[::-1]) if gated is not None else ():
        if _relu6_of_shifted(p, gate) == x:
            return replace(node, kind="HardSwish", inputs=(x,), attributes={})
    return None


def _relu6_of_shifted(p: _Patterns, name: str) -> str | None:
    node = p.made_by(name, "Clip")
    if node is None:
        return None
    bounds = (
        (node.get("min"), node.get("max")) if node.opset < 11 else tuple(p.number(each) for each in node.inputs[1:3])
    )
    return p.with_number(node.inputs[0], "Add", 3.0) if bounds == (0, 6) else None


def _gelu(p: _Patterns, node: Operator) -> Operator | None:
    """Find ``x / 2 * (1 + erf(x / sqrt(2)))``, its factors in any order."""
    if node.kind != "Mul":
        return None
    for one, other in (node.inputs, node.inputs[::-1]):
        # (x * (1 + erf)) * 0.5, or (x * 0.5) * (1 + erf), or x * ((1 + erf) * 0.5)
        half = p.number(other)
        if half == 0.5 and (product := p.made_by(one, "Mul")) is not None:
            pairs = [product.inputs, product.inputs[::-1]]
            x = next((x for x, gate in pairs if _one_plus_erf(p, gate) == x), None)
        elif (x := p.scaled(one, 0.5)) is not None and _one_plus_erf(p, other) == x:
            pass
        elif (gate := p.scaled(other, 0.5)) is not None and _one_plus_erf(p, gate) == one:
            x = one
        else:
            x = None
        if x is not None:
            return replace(node, kind="Gelu", inputs=(x,), attributes={})
    return None


def _one_plus_erf(p: _Patterns, name: str) -> str | None:
    erf = p.with_number(name, "Add", 1.0)
    node = None if erf is None else p.made_by(erf, "Erf")
    return None if node is None else p.scaled(node.inputs[0], 1 / math.sqrt(2))


def _layer_norm(p: _Patterns, node: Operator) -> Operator | None:
    """Find ``(x - mean) / sqrt(mean((x - mean)^2) + eps)`` over the last axes, with the scale and shift behind it."""
    if node.kind != "Div":
        return None
    centred, root = p.producers.get(node.inputs[0]), p.made_by(node.inputs[1], "Sqrt")
    shifted = None if root is None else p.made_by(root.inputs[0], "Add")
    parts = None if shifted is None else p.split(shifted)
    if centred is None or centred.kind != "Sub" or parts is None:
        return None
    x, mean = centred.inputs
    first, second = p.made_by(mean, "ReduceMean", shared=True), p.made_by(parts[0], "ReduceMean")
    if first is None or second is None or first.inputs[0] != x:
        return None
    square = p.made_by(second.inputs[0], "Pow", "Mul")
    again = None if square is None else p.producers.get(square.inputs[0])
    if square is None or again is None or again.kind != "Sub" or again.inputs != centred.inputs:
        return None
    is_square = p.number(square.inputs[1]) == 2 if square.kind == "Pow" else square.inputs[0] == square.inputs[1]
    axes = [_axes(p, each) for each in (first, second)]
    kept = all(each.get("keepdims", 1) for each in (first, second))
    if not is_square or not kept or axes[0] is None or axes[0] != axes[1]:
        return None
    if axes[0] != list(range(-len(axes[0]), 0)):
        return None  # positive axes may be the last ones, too, which only ranks tell
    options = {"axis": -len(axes[0]), "epsilon": parts[1]}
    return replace(node, kind="LayerNormalization", inputs=(x,), attributes=options)


def _norm_weights(p: _Patterns, node: Operator) -> Operator | None:
    """Find the scale and shift behind a norm over the last axis."""
    if node.kind != "Add":
        return None
    for product, shift in (node.inputs, node.inputs[::-1]):
        scaling = p.made_by(product, "Mul")
        for x, scale in (scaling.inputs, scaling.inputs[::-1]) if scaling is not None else ():
            norm = p.made_by(x, "LayerNormalization")
            stored = [p.constants.get(each) for each in (scale, shift)]
            vectors = all(each is not None and each.dim() == 1 for each in stored)
            if norm is not None and len(norm.inputs) == 1 and norm.get("axis") == -1 and vectors:
                return replace(norm, inputs=(*norm.inputs, scale, shift), outputs=node.outputs)
    return None


def _axes(p: _Patterns, node: Operator) -> list[int] | None:
    given = node.get("axes")
    if given is None and len(node.inputs) > 1 and (stored := p.constants.get(node.inputs[1])) is not None:
        given = stored.flatten().tolist()
    return None if given is None else sorted(int(axis) for axis in given)


def _linear(p: _Patterns, node: Operator) -> Operator | None:
    """Find a bias added to a product with a stored matrix."""
    if node.kind != "Add":
        return None
    for x, bias in (node.inputs, node.inputs[::-1]):
        product, stored = p.made_by(x, "MatMul"), p.constants.get(bias)
        if product is None or stored is None or len(product.inputs) > 2:
            continue
        matrix = p.constants.get(product.inputs[1])
        if matrix is not None and matrix.dim() == 2 and stored.dim() == 1 and len(stored) == matrix.shape[1] > 1:
            return replace(product, inputs=(*product.inputs, bias), outputs=node.outputs)
    return None


_Pattern = Callable[[_Patterns, Operator], Operator | None]
_PATTERNS: tuple[_Pattern, ...] = (_hard_sigmoid, _gelu, _layer_norm, _norm_weights, _linear)
