"""The types that a target table is made of. Data only: nothing here knows a runtime or a framework."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Generic, Literal, TypeVar

from dfqkit_export.errors import TargetError

Granularity = Literal["per_tensor", "per_channel"]
Bias = Literal["int32", "float"]
#: Where Q/DQ pairs go: `around` on every input and behind the output; `inputs` on the inputs alone; `through` nowhere,
#: the operator moves codes and a pair in front or behind serves it; `float` nowhere, it always computes in float.
Placement = Literal["around", "inputs", "through", "float"]

_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class Cell(Generic[_Value]):
    """One fact of a table and where it is from.

    Attributes:
        value: The fact.
        source: Begins with ``measured:`` (and in which version) where this project saw it happen, with ``read:`` (and
            on which page, in which header or file) where a vendor says so and nobody here could try, with
            ``unknown:`` where the value is only the absence of knowledge.
    """

    value: _Value
    source: str


@dataclass(frozen=True, kw_only=True)
class QuantSpace:
    """The quantized types one kind of tensor may have.

    Attributes:
        bits: Allowed bit widths. Below 8, the codes are stored in 8-bit types and clipped to the smaller range.
        signed: Whether the stored codes are signed (int8) or not (uint8).
        symmetric: True where the zero point must be 0, False where it may lie anywhere in the range.
        granularity: One scale a tensor, or one an output channel.
        narrow_range: True where the lowest code is left unused ([-127, 127] at 8 bits).
        reduce_range: True where codes must fill no more than 7 bits, whatever the scheme's width (ONNX Runtime's word).
    """

    bits: tuple[int, ...]
    signed: bool
    symmetric: bool
    granularity: Granularity
    narrow_range: bool = False
    reduce_range: bool = False

    @property
    def dtype(self) -> Literal["int8", "uint8"]:
        """The ONNX type that stores the codes."""
        return "int8" if self.signed else "uint8"

    def width(self, bits: int) -> int:
        """Return the bits that the codes of a ``bits``-wide scheme really fill."""
        return min(bits, 7) if self.reduce_range else bits

    def holds(self, other: QuantSpace) -> bool:
        """Return whether everything ``other`` allows is allowed here; narrow ranges lie inside full ones."""
        return (
            self.signed == other.signed
            and self.granularity == other.granularity
            and (other.symmetric or not self.symmetric)
            and (other.narrow_range or not self.narrow_range)
            and (other.reduce_range or not self.reduce_range or max(other.bits) < 8)
            and set(other.bits) <= set(self.bits)
        )


@dataclass(frozen=True, kw_only=True)
class OperatorRule:
    """What a runtime needs so that it computes one kind of operator with integers.

    A rule with no `activations` says that the operator is known to compute in float, whatever is around it; an
    operator without any rule (`Target.rule` returns None) is one that nobody has established anything about.

    Attributes:
        operators: ONNX operator types the row is about.
        placement: Where Q/DQ pairs go.
        activations: Alternatives for the tensors it computes with, the best first; all pairs around one operator must
            take the same alternative's type.
        weights: Alternatives for its constant second input; nothing where it has none.
        bias: Forms its bias may have, the best first; nothing where it has none.
        opsets: First and last opset in which the row holds, or None for all of the target's.
    """

    operators: tuple[str, ...]
    placement: Cell[Placement]
    activations: Cell[tuple[QuantSpace, ...]]
    weights: Cell[tuple[QuantSpace, ...]] | None = None
    bias: Cell[tuple[Bias, ...]] | None = None
    opsets: Cell[tuple[int, int]] | None = None

    @property
    def integer(self) -> bool:
        """Whether the runtime has integer kernels for it."""
        return bool(self.activations.value)

    def cells(self) -> tuple[tuple[str, Cell[object]], ...]:
        """Return every fact of the row by its column's name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return tuple((name, cell) for name, cell in named if isinstance(cell, Cell))


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime's quantization rules.

    The student's fields (`weights` to `clip_before_quantize`) say what this project writes for the target; the table
    (`operators`) says what the runtime takes. The first must lie within the second.

    Attributes:
        name: Key in recipes and on the command line.
        title: Name for people.
        backend: Name of the backend that executes it.
        opset: ONNX opset of the exported file.
        weights: Types of convolution and linear weights.
        unsigned_activations: Types of tensors that cannot be negative (after ReLU, Sigmoid).
        signed_activations: Types of all other activations.
        bias: ``int32`` with scale input x weight, or ``float``.
        quantize_outputs: True where Q/DQ is wanted behind every operator that computes (Conv, Add, pooling...), False
            where only the inputs of weighted operators and the residual branch of an addition are quantized.
        clip_before_quantize: True where a sub-8-bit range is cut by a float Clip in front of QuantizeLinear, False
            where an integer Clip behind it is better.
        quirks: Behaviour a reader must know, each with its source.
        opsets: First and last opset the runtime reads.
        dtypes: Types that codes of weights and activations may have anywhere in a file.
        zero_point_zero: Whether every zero point must be 0 (True) or may be anything (False).
        relu_zero_point: Zero point behind a ReLU with which the ReLU costs nothing: ``lowest`` code, or ``any``.
        operators: The table, one row per kind of operator.
        unsupported: Operator types that the runtime refuses; those of other domains than ONNX's as "domain.Type".
        domains: Domains beside ONNX's own whose operators come with the runtime.
        pairs_only: What is said of operators that compute on codes by themselves, where it takes Q/DQ pairs alone.
        constant_scales: Why even a scale that nodes compute must be a constant, where it must.
        additions_agree: Whether scales around additions are such that kernels of all processors give the same codes.
        sums_fit: Whether no sum of two products of codes may leave 16 bits, so that none saturates without VNNI.
        floats: What a file has around its codes: biases, scales, layers in float. Its ends are float32.
    """

    name: str
    title: str
    backend: str
    opset: int
    weights: QuantSpace
    unsigned_activations: QuantSpace
    signed_activations: QuantSpace
    bias: Bias
    quantize_outputs: bool
    clip_before_quantize: bool
    quirks: tuple[str, ...] = ()
    opsets: Cell[tuple[int, int]] = Cell(value=(13, 25), source="read: ONNX, QuantizeLinear has an axis since opset 13")
    dtypes: Cell[tuple[str, ...]] = Cell(value=("uint8", "int8"), source="read: ONNX, QuantizeLinear")
    zero_point_zero: Cell[bool] = Cell(value=False, source="read: ONNX, QuantizeLinear")
    relu_zero_point: Cell[Literal["lowest", "any"]] = Cell(value="any", source="unknown: not looked into")
    operators: tuple[OperatorRule, ...] = ()
    unsupported: Cell[frozenset[str]] = Cell(value=frozenset(), source="unknown: not looked into")
    domains: frozenset[str] = frozenset()
    pairs_only: str = ""
    constant_scales: str = ""
    additions_agree: bool = False
    sums_fit: bool = False
    floats: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        """Refuse a table whose student's types are not among those it says the runtime takes."""
        rule = self.rule("Conv")
        if rule is None:
            return
        for field, space, cell in (
            ("weights", self.weights, rule.weights),
            ("signed_activations", self.signed_activations, rule.activations),
            ("unsigned_activations", self.unsigned_activations, rule.activations),
        ):
            if cell is None or not any(known.holds(space) for known in cell.value):
                message = (
                    f"Target '{self.name}': {field} {space} is not among the types that its row for Conv allows. "
                    "Correct the field or the row."
                )
                raise TargetError(message)
        if rule.bias is not None and self.bias not in rule.bias.value:
            message = f"Target '{self.name}': bias '{self.bias}' is not in its row for Conv: {rule.bias.value}."
            raise TargetError(message)
        if self.quantize_outputs != (rule.placement.value == "around"):
            message = (
                f"Target '{self.name}': quantize_outputs is {self.quantize_outputs}, but its row for Conv says that "
                f"Q/DQ go '{rule.placement.value}'. Correct one of them."
            )
            raise TargetError(message)

    def rule(self, op_type: str) -> OperatorRule | None:
        """Return the row about an ONNX operator, or None where the table says nothing about it."""
        return next((row for row in self.operators if op_type in row.operators), None)

    def reads_opset(self, opset: int) -> bool:
        """Return whether the runtime reads files of this opset of ONNX's own domain."""
        first, last = self.opsets.value
        return first <= opset <= last

    def refuses(self, op_types: Iterable[str]) -> tuple[str, ...]:
        """Return those of ``op_types`` that the runtime refuses, each once, in order."""
        return tuple(op for op in dict.fromkeys(op_types) if op in self.unsupported.value)

    def require(self, *, weight_bits: int, activation_bits: int) -> None:
        """Refuse bit widths the target cannot run."""
        for field, bits, space in (
            ("weights", weight_bits, self.weights),
            ("activations", activation_bits, self.signed_activations),
        ):
            if bits not in space.bits:
                message = (
                    f"Target '{self.name}' cannot run {bits}-bit {field}; it takes {', '.join(map(str, space.bits))} "
                    f"bits. Set quant.bits to one of these (w8a8, w4a8, w4a4, ...) or choose another target."
                )
                raise TargetError(message)
