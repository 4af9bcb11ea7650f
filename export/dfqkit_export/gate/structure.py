"""The whole graph of a file, small enough for a baseline, and the smallest part in which two of them differ.

What belongs here: a row for each operator of the canonical form (`onnxfile.canonical`), their text, and comparison.
Numbers of layers and quantizers, which every calibration moves, are the signature's; here are all others.

An operator is the same in two files where all that leads to it is the same, or all that follows from it: what is
neither has changed. Two digests for each operator say both.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper

from dfqkit_export.errors import ArtefactError
from dfqkit_export.gate.change import Change
from dfqkit_export.onnxfile.canonical import CanonicalGraph
from dfqkit_export.onnxfile.graph import type_name
from dfqkit_export.onnxfile.skeleton import values_of
from dfqkit_export.words import some

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Equal"})
#: Numbers of a constant that are written out, and letters of a hash.
_WRITTEN, _HASH, _SHOWN = 16, 12, 4
_AGAIN = "Record it again with --update."


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator.

    Attributes:
        label: Operator and attributes: "MaxPool kernel_shape=[2, 2]".
        inputs: What each input is: "#3" or "#3.1" for an output of an operator, "@0" for an input of the graph, else
            the constant: its type and size, and its numbers where no calibration moves them.
        name: In the file; may be empty.
        values: Hashes of the float constants among the inputs that are not written out; none of quantizers and layers.
    """

    label: str
    inputs: tuple[str, ...]
    name: str
    values: tuple[str, ...] = ()

    @property
    def op(self) -> str:
        """The operator's type."""
        return self.label.partition(" ")[0]

    @property
    def sources(self) -> list[int]:
        """Places of the operators that it reads."""
        return [int(text[1:].partition(".")[0]) for text in self.inputs if text.startswith("#")]


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What is kept of a graph.

    Attributes:
        operators: Each after those it reads.
        outputs: What each output is, as an `Operator`'s inputs, by the file's name of it.
        inputs: Type and size of each input, by its name, "N" for a batch of any size.
        function: Tells a graph with all its numbers from others; equal where both compute the same.
    """

    operators: tuple[Operator, ...]
    outputs: Mapping[str, str]
    inputs: Mapping[str, str]
    function: str

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, an operator a line."""
        rows = {f"{k:05d}": [o.label, " ".join(o.inputs), o.name, *o.values] for k, o in enumerate(self.operators)}
        return {
            "operators": rows,
            "outputs": dict(self.outputs),
            "inputs": dict(self.inputs),
            "function": self.function,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Structure:
        """Rebuild what `to_dict` wrote."""
        try:
            rows = [values["operators"][key] for key in sorted(values["operators"])]
            operators = tuple(
                Operator(
                    label=str(label), inputs=tuple(inputs.split(" ")) if inputs else (), name=str(name), values=(*rest,)
                )
                for label, inputs, name, *rest in rows
            )
            outputs, inputs = ({str(k): str(v) for k, v in values[key].items()} for key in ("outputs", "inputs"))
            whole = all(source < k for k, operator in enumerate(operators) for source in operator.sources)
            ends = [Operator(label="", inputs=(text,), name="") for text in outputs.values()]
            if not whole or not all(source < len(operators) for end in ends for source in end.sources):
                message = "an operator reads one that is not before it"
                raise ValueError(message)
            return cls(operators=operators, outputs=outputs, inputs=inputs, function=str(values["function"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            message = f"The baseline's facts of the graph are damaged ({error!r:.200}). {_AGAIN}"
            raise ArtefactError(message) from None

    @cached_property
    def above(self) -> tuple[str, ...]:
        """Digest of each operator with all that leads to it."""
        found: list[str] = []
        for operator in self.operators:
            texts = [_with_digest(text, found) for text in operator.inputs]
            found.append(_hashed(operator.label, *(sorted(texts) if operator.op in _COMMUTATIVE else texts)))
        return tuple(found)

    @cached_property
    def below(self) -> tuple[str, ...]:
        """Digest of each operator with all that follows from it."""
        readers: list[set[str]] = [set() for _ in self.operators]
        for place, text in enumerate(self.outputs.values()):
            if text.startswith("#"):
                readers[int(text[1:].partition(".")[0])].add(f"output {place} {text.partition('.')[2]}")
        found = [""] * len(self.operators)
        for k in range(len(self.operators) - 1, -1, -1):
            operator = self.operators[k]
            constants = [text for text in operator.inputs if not text.startswith("#")]
            found[k] = _hashed(operator.label, *constants, "|", *sorted(readers[k]))
            for slot, text in enumerate(operator.inputs):
                if text.startswith("#"):
                    number, _, out = text[1:].partition(".")
                    readers[int(number)].add(f"{found[k]} {0 if operator.op in _COMMUTATIVE else slot} {out}")
        return tuple(found)

    @property
    def shape(self) -> str:
        """Digest of the graph without the numbers that calibrations move."""
        return _hashed(*(_with_digest(text, self.above) for text in self.outputs.values()))


def read_structure(graph: CanonicalGraph, outputs: Sequence[str]) -> Structure:
    """Return what is kept of a graph whose outputs have these names."""
    places = {name: f"@{k}" for k, value in enumerate(graph.input) for name in [value.name]}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    exact: dict[str, str] = dict(places)
    operators = []
    for k, node in enumerate(graph.node):
        texts = [_described(node, slot, name, places, constants, graph) for slot, name in enumerate(node.input)]
        label = _label(node, graph)
        operators.append(
            Operator(label=label, inputs=tuple(texts), name=node.name, values=_values(node, constants, graph))
        )
        read = [exact.get(name, graph.digests.get(name, "")) for name in node.input]
        own = _hashed(label, *(sorted(read) if node.op_type in _COMMUTATIVE else read))
        for index, name in enumerate(node.output):
            places[name] = f"#{k}" + (f".{index}" if index else "")
            exact[name] = f"{own}.{index}"
    ends = dict(zip(outputs, graph.outputs, strict=True))
    return Structure(
        operators=tuple(operators),
        outputs={name: places.get(end, f"={graph.digests.get(end, '')[:_HASH]}") for name, end in ends.items()},
        inputs={value.name: _sizes(value) for value in graph.input},
        function=_hashed(*(exact.get(end, graph.digests.get(end, "")) for end in graph.outputs)),
    )


def _described(
    node: onnx.NodeProto,
    slot: int,
    name: str,
    places: Mapping[str, str],
    constants: Mapping[str, Any],
    graph: CanonicalGraph,
) -> str:
    if name in places or name not in constants:
        return places.get(name, "-")
    tensor = constants[name]
    kind = f"{type_name(tensor.data_type)}{list(tensor.dims)}".replace(" ", "")
    if node.op_type in _QUANTIZERS or (node.op_type in _LAYERS and slot in (1, 2)):
        return f"={kind}"
    return f"={kind}{_written(tensor, graph.digests[name])}"


def _written(tensor: onnx.TensorProto, digest: str) -> str:
    """Numbers of a constant that no training moves: whole ones, and single ones."""
    count = math.prod(tensor.dims)
    floats = tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    if floats and count != 1:
        return ""
    if count > _WRITTEN or tensor.data_type == onnx.TensorProto.STRING:
        return f":{digest[:_HASH]}"
    return ":" + ",".join(f"{value:.6g}" for value in values_of(tensor).reshape(-1).tolist())


def _values(node: onnx.NodeProto, constants: Mapping[str, Any], graph: CanonicalGraph) -> tuple[str, ...]:
    """Hashes of float constants that neither a layer's signature nor the description has."""
    if node.op_type in _QUANTIZERS or node.op_type in _LAYERS:
        return ()
    named = [name for name in node.input if name in constants]
    return tuple(graph.digests[n][:_HASH] for n in named if not _written(constants[n], graph.digests[n]))


def _label(node: onnx.NodeProto, graph: CanonicalGraph) -> str:
    """Operator with the attributes that are not ONNX's defaults; sizes with "N" for the batch."""
    defaults = {}
    if onnx.defs.has(node.op_type, graph.opset, node.domain):
        schema = onnx.defs.get_schema(node.op_type, graph.opset, node.domain)
        defaults = {name: each.default_value for name, each in schema.attributes.items()}
    found = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    axis: onnx.AttributeProto | None = defaults.get("axis")
    if axis is not None and axis.name and "axis" not in found and node.op_type not in _QUANTIZERS:
        found["axis"] = helper.get_attribute_value(axis)
    texts = []
    for name, value in sorted(found.items()):
        default = defaults.get(name)
        known = default is not None and bool(default.name)
        if (
            default is not None
            and known
            and name != "axis"
            and _text(helper.get_attribute_value(default)) == _text(value)
        ):
            continue
        rank = len(graph.shapes.get(node.input[0], ())) if node.input else 0
        if name == "axis" and rank and isinstance(value, int):
            value = value % rank
        if name == "to" and node.op_type == "Reshape":
            value = ["N" if not place and size == graph.batch else size for place, size in enumerate(value)]
        texts.append(f"{name}={_text(value)}")
    domain = f"{node.domain}." if node.domain else ""
    return " ".join([f"{domain}{node.op_type}", *texts])


def _text(value: Any) -> str:
    """Return an attribute's value, short and the same everywhere."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace") if len(value) <= 80 else _hashed(value.hex())
    if isinstance(value, onnx.GraphProto):
        plain = onnx.GraphProto()
        plain.CopyFrom(value)
        plain.ClearField("doc_string")
        return _hashed(plain.SerializeToString(deterministic=True).hex())
    if isinstance(value, onnx.TensorProto):
        array = values_of(value)
        return _hashed(str(array.dtype), str(array.shape), array.tobytes().hex())
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return str(value)


def _sizes(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = [str(size.dim_value) if size.dim_value > 0 else "N" for size in tensor.shape.dim]
    return f"{type_name(tensor.elem_type)} ({', '.join(sizes)})"


def _with_digest(text: str, digests: Sequence[str]) -> str:
    if not text.startswith("#"):
        return text
    number, _, out = text[1:].partition(".")
    return f"{digests[int(number)]}.{out}"


def _hashed(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[: 2 * _HASH]


def compare_structures(base: Structure, now: Structure) -> Iterator[Change]:
    """Yield where two graphs differ, and what of that is wrong; nothing of two that compute the same."""
    yield from _interface(base, now)
    if base.function == now.function:
        return
    gone, new = _apart(base, now)
    if gone or new:
        kind = "quantizers" if all(o.op in {*_QUANTIZERS, "Clip"} for o in (*gone, *new)) else "graph"
        named = next((o.name for o in (*new, *gone) if o.op not in _QUANTIZERS and o.name), "")
        layers = frozenset(o.name for o in (*gone, *new) if o.op not in _QUANTIZERS)
        yield Change(layer=named, kind=kind, text=_told(gone, new), wrong=True, also=layers)
    elif base.shape == now.shape:
        for before, after in _paired(base, now):
            if before.values != after.values:
                yield Change(layer=after.name, kind="constants", text=f"numbers that {_one(after)} reads are others")


def _interface(base: Structure, now: Structure) -> Iterator[Change]:
    """Yield what whoever runs the file must do otherwise."""
    sides = ((list(base.inputs), list(now.inputs), "input"), (list(base.outputs), list(now.outputs), "output"))
    for old, new, which in sides:
        if len(old) != len(new):
            yield Change(
                layer="", kind="interface", text=f"the file had {len(old)} {which}s and has {len(new)}", wrong=True
            )
        elif sorted(old) != sorted(new):
            yield Change(
                layer="", kind="names", text=f"the {which} is called {', '.join(new)} and was {', '.join(old)}"
            )
    for before, after in zip(base.inputs.values(), now.inputs.values(), strict=False):
        if before != after:
            yield Change(layer="", kind="interface", text=f"the input was {before} and is {after}", wrong=True)


def _apart(base: Structure, now: Structure) -> tuple[list[Operator], list[Operator]]:
    """Return the operators that are gone and those that are new: no others lie between what both have."""
    if base.shape == now.shape:
        return [], []
    gone, new = (
        [
            operator
            for operator, above, below in zip(one.operators, one.above, one.below, strict=True)
            if above not in ups and below not in downs
        ]
        for one, ups, downs in (
            (base, frozenset(now.above), frozenset(now.below)),
            (now, frozenset(base.above), frozenset(base.below)),
        )
    )
    for key in (lambda o: (o.name, o.label, _constants(o)), lambda o: (o.label, _constants(o))):
        both = Counter(map(key, gone)) & Counter(map(key, new))
        left = [
            [o for o in side if not _counted_down(counts, key(o))]
            for side, counts in ((gone, both.copy()), (new, both.copy()))
        ]
        if any(left):  # else the same operators in another order, and all of them are told
            gone, new = left
    if not gone and not new:  # two parts that are each in the other graph, put together otherwise
        new = [o for o, above in zip(now.operators, now.above, strict=True) if above not in base.above][:1]
    return gone, new


def _constants(operator: Operator) -> tuple[str, ...]:
    return tuple(text for text in operator.inputs if not text.startswith("#"))


def _counted_down(counts: Counter[Any], key: Any) -> bool:
    counts[key] -= 1
    return counts[key] >= 0


def _told(gone: Sequence[Operator], new: Sequence[Operator]) -> str:
    if len(gone) == len(new) == 1 and gone[0].op == new[0].op:
        was, has = (dict(_parts(o)) for o in (gone[0], new[0]))
        differs = [
            f"{name} was {was.get(name, 'left out')} and is {has.get(name, 'left out')}"
            for name in dict.fromkeys([*was, *has])
            if was.get(name) != has.get(name)
        ]
        return f"{_one(new[0])}: {some(differs, _SHOWN, '; ') or 'it reads other tensors'}"
    parts = [
        f"{_many(side)} {'is' if len(side) == 1 else 'are'} {what}"
        for side, what in ((new, "new"), (gone, "gone"))
        if side
    ]
    return " and ".join(parts)


def _parts(operator: Operator) -> Iterator[tuple[str, str]]:
    """Yield what an operator is told by: its attributes and the constants it reads."""
    for name, _, value in (text.partition("=") for text in operator.label.replace(", ", ",").split(" ")[1:]):
        yield name, value
    for slot, text in enumerate(operator.inputs):
        yield f"input {slot}", "computed" if text.startswith("#") else text.lstrip("=").rpartition(":")[2] or text


def _one(operator: Operator) -> str:
    return f"{operator.op} {operator.name}".rstrip()


def _many(operators: Sequence[Operator]) -> str:
    counts = Counter(o.op for o in operators)
    if len(operators) <= _SHOWN:
        return some([_one(o) for o in operators], _SHOWN)
    kinds = some([f"{n} {op}" if n > 1 else op for op, n in counts.most_common()], 2 * _SHOWN)
    names = [o.name for o in operators if o.name]
    at = f", from {names[0]} to {names[-1]}" if names else ""
    return f"{len(operators)} operators ({kinds}{at})"


def _paired(base: Structure, now: Structure) -> Iterator[tuple[Operator, Operator]]:
    """Yield operators of two graphs of one shape."""
    places: dict[str, list[Operator]] = {}
    for operator, above in zip(base.operators, base.above, strict=True):
        places.setdefault(above, []).append(operator)
    for operator, above in zip(now.operators, now.above, strict=True):
        if places.get(above):
            yield places[above].pop(0), operator
