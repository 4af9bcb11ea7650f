"""The whole graph of a file, small enough for a baseline.

What belongs here: a row for each operator of the canonical form (`onnxfile.canonical`), and their text. Numbers of
layers and quantizers, which every calibration moves, are the signature's; here are all others. Where two graphs differ
is `regions`' question.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper

from dfqkit_export.errors import ArtefactError
from dfqkit_export.onnxfile.canonical import COMMUTATIVE, MOVES, CanonicalGraph
from dfqkit_export.onnxfile.graph import type_name
from dfqkit_export.onnxfile.skeleton import values_of

#: What the label of a DequantizeLinear says whose grid is not that of the codes.
_MISREAD = " reads_codes_on=another_grid"
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
#: Numbers of a constant that are written out, and letters of a hash.
_WRITTEN, _HASH = 16, 12
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
            found.append(_hashed(operator.label, *(sorted(texts) if operator.op in COMMUTATIVE else texts)))
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
                    readers[int(number)].add(f"{found[k]} {0 if operator.op in COMMUTATIVE else slot} {out}")
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
    makers = {name: node for node in graph.node for name in node.output}
    for k, node in enumerate(graph.node):
        texts = [_described(node, slot, name, places, constants, graph) for slot, name in enumerate(node.input)]
        label = _label(node, graph) + (_MISREAD if _misread(node, makers, graph) else "")
        operators.append(
            Operator(label=label, inputs=tuple(texts), name=node.name, values=_values(node, constants, graph))
        )
        read = [exact.get(name, graph.digests.get(name, "")) for name in node.input]
        own = _hashed(label, *(sorted(read) if node.op_type in COMMUTATIVE else read))
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


def _misread(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], graph: CanonicalGraph) -> bool:
    """Whether codes are read on another grid than they were written on."""
    maker = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    while maker is not None and maker.op_type in MOVES:
        maker = makers.get(maker.input[0])
    if maker is None or maker.op_type != "QuantizeLinear":
        return False
    grids = [[graph.digests.get(name, name) for name in each.input[1:3]] for each in (maker, node)]
    return grids[0] != grids[1]


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
    if node.op_type in QUANTIZERS or (node.op_type in _LAYERS and slot in (1, 2)):
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
    if node.op_type in QUANTIZERS or node.op_type in _LAYERS:
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
    if axis is not None and axis.name and "axis" not in found and node.op_type not in QUANTIZERS:
        found["axis"] = helper.get_attribute_value(axis)
    texts = []
    for name, value in sorted(found.items()):
        default = defaults.get(name)
        usual = _text(helper.get_attribute_value(default)) if default is not None and default.name else None
        if name != "axis" and usual == _text(value):
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
