"""The signature of a quantized file: what a baseline keeps of it so that a later one can be told from it.

What belongs here: reading the facts of each layer off a model, sketches of large arrays, and the short JSON form of
both, small enough for a file that people review. What a difference means is `graph_diff`'s and `diagnosis`'.

A sketch adds up an array's values with fixed pseudo-random signs in a few buckets; the squared length of the difference
of two sketches is an unbiased estimate of that of the difference of the arrays (Charikar, Chen, Farach-Colton, ICALP
2002, the count sketch).
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.gate.structure import Structure, read_structure
from dfqkit_export.onnxfile.canonical import canonical
from dfqkit_export.onnxfile.graph import SourceGraph, has_input, opset_of
from dfqkit_export.onnxfile.quantization import QuantFacts, WeightFacts
from dfqkit_export.onnxfile.summary import LayerFacts, layer_of

Floats = NDArray[np.float64]

#: Numbers in a sketch.
BUCKETS = 16
_PART = 2**20  # numbers that are summed at once, a multiple of the buckets
#: Weight codes and channel scales kept of a layer: enough to tell a shift from a permutation, 64 and 32 letters long.
CODES, SCALES = 48, 12
_THROUGH = frozenset({"Cast", "Clip", "Identity", "Reshape", "Transpose"})


@dataclass(frozen=True, kw_only=True)
class LayerSignature:
    """What is kept of one layer.

    Attributes:
        name: Name of the layer.
        op: ONNX operator.
        weight: Type, bits and granularity of the weights, and a zero point that is not 0: "int8 8 per_channel"; ""
            without weights.
        bias: "none", "int32", or the float type.
        input: Type, bits and zero point of the first input: "uint8 8 0"; "" where it is float.
        output: The same of the output.
        input_scale: Scale of the input; 0 where it is float.
        output_scale: Scale of the output; 0 where it is float.
        codes_sha256: First letters of the hash of the weight codes.
        scales_sha256: First letters of the hash of the weight scales.
        bias_sha256: First letters of the hash of the bias, as real numbers.
        codes: Weight codes at evenly spaced places.
        codes_sketch: Sketch of all weight codes.
        scales: Base-2 logarithm of the weight scales of evenly spaced channels.
        bias_rms: Root mean square of the bias, as a real number.
        bias_error: By which factor the scale of the bias codes differs from input scale times weight scale, the
            farthest from 1 of all channels; 1 where it fits or does not apply, 0 where it is no scale at all.
    """

    name: str
    op: str
    weight: str
    bias: str
    input: str
    output: str
    input_scale: float
    output_scale: float
    codes_sha256: str
    scales_sha256: str
    bias_sha256: str
    codes: NDArray[np.int32]
    codes_sketch: Floats
    scales: Floats
    bias_rms: float
    bias_error: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, short and the same on every machine."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "name"}
        return {
            **{key: _short(value) if isinstance(value, float) else value for key, value in values.items()},
            "codes": pack(np.clip(self.codes, -128, 255).astype("<i2")),
            "codes_sketch": pack(np.clip(self.codes_sketch, -65504, 65504).astype("<f2")),
            "scales": pack(self.scales.astype("<f2")),
        }

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, Any]) -> LayerSignature:
        """Rebuild what `to_dict` wrote."""
        try:
            known = {item.name: values[item.name] for item in fields(cls) if item.name != "name"}
            codes = unpack(known.pop("codes"), "<i2").astype(np.int32)
            sketched, scales = (unpack(known.pop(k), "<f2").astype(np.float64) for k in ("codes_sketch", "scales"))
            numbers: dict[str, Any] = {
                key: float(known.pop(key)) for key in ("input_scale", "output_scale", "bias_rms", "bias_error")
            }
            texts: dict[str, Any] = {key: str(value) for key, value in known.items()}
            _require_whole(codes, sketched, scales, numbers)
        except (KeyError, TypeError, ValueError) as error:
            message = f"The baseline's facts of layer {name!r} are damaged ({error!r}). Record it again with --update."
            raise ArtefactError(message) from None
        return cls(name=name, codes=codes, codes_sketch=sketched, scales=scales, **numbers, **texts)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What is kept of one file.

    Attributes:
        layers: By name, in the file's order.
        opset: Version of ONNX's own operators.
        before: Operators between the input and the first layer, without quantization: "Sub Div"; "" for none.
        graph: All operators; None in baselines of before these were kept.
    """

    layers: Mapping[str, LayerSignature]
    opset: int
    before: str
    graph: Structure | None = None


def _require_whole(codes: NDArray[np.int32], sketched: Floats, scales: Floats, numbers: Mapping[str, float]) -> None:
    """Refuse arrays of other lengths than `read_signature` makes, and numbers that no file has."""
    both = sketched.size == (BUCKETS if codes.size else 0) and bool(codes.size) == bool(scales.size)
    fits = codes.size <= CODES and scales.size <= SCALES and both
    if not fits or not all(np.isfinite(values).all() for values in (sketched, scales)):
        message = f"{codes.size} codes, {sketched.size} sums and {scales.size} scales do not fit together"
        raise ValueError(message)
    if not all(math.isfinite(value) for value in numbers.values()):
        message = f"{dict(numbers)} must be finite"
        raise ValueError(message)


def read_signature(model: onnx.ModelProto, *, block: int = 0) -> Signature:
    """Read what is to be kept of a checked model, off its canonical form (`canonical`)."""
    form = canonical(model, block=block)
    graph = SourceGraph(form)
    nodes = list(graph.layers())
    layers: dict[str, LayerSignature] = {}
    for node in nodes:
        facts = layer_of(graph, node)
        name = facts.name if facts.name not in layers else f"{facts.name} ({node.output[0]})"
        layers[name] = _layer(graph, node, replace(facts, name=name))
    return Signature(
        layers=layers,
        opset=opset_of(model) or 0,
        before=_before(graph, next(iter(nodes), None)),
        graph=read_structure(form, [value.name for value in model.graph.output]),
    )


def _layer(graph: SourceGraph, node: onnx.NodeProto, facts: LayerFacts) -> LayerSignature:
    values, step, scales = _weights(graph, node)
    bias, bias_scale = _bias(graph, node)
    stored = facts.weight
    return LayerSignature(
        name=facts.name,
        op=facts.op,
        weight=_stored(stored) if stored is not None else "",
        bias=facts.bias,
        input=_described(facts.input),
        output=_described(facts.output),
        input_scale=_scale(facts.input),
        output_scale=_scale(facts.output),
        codes_sha256=stored.codes_sha256[:12] if stored is not None else "",
        scales_sha256=stored.scales_sha256[:12] if stored is not None else "",
        bias_sha256=hashlib.sha256(bias.astype("<f4").tobytes()).hexdigest()[:12] if bias.size else "",
        codes=np.rint(_spaced(values, CODES).astype(np.float64) / step).astype(np.int32),
        codes_sketch=sketch(values) / step if values.size else np.empty(0),
        scales=np.log2(np.maximum(np.nan_to_num(_spaced(scales, SCALES)), 1e-30)),
        bias_rms=_rms(bias),
        bias_error=_bias_error(_scale(facts.input), scales, bias_scale),
    )


def _stored(weight: WeightFacts) -> str:
    kind = f"{weight.dtype} {weight.bits} {weight.granularity}".rstrip()
    return kind if weight.zero_point == 0 or not weight.granularity else f"{kind} {weight.zero_point}"


def _weights(graph: SourceGraph, node: onnx.NodeProto) -> tuple[NDArray[Any], float, Floats]:
    """Return a layer's weights as they are stored, what one code of them is, and their scales; empty without weights.

    Of codes that is 1, of float weights the step of 8-bit codes. Large weights are not copied.
    """
    name = graph.weight_initializer(node)
    values = graph.constant(name) if name is not None else None
    if name is None or values is None:
        return np.empty(0), 1.0, np.empty(0)
    reader = next(iter(graph.readers(name)), None)
    while reader is not None and reader.op_type in _THROUGH:
        reader = next(iter(graph.readers(reader.output[0])), None)
    if reader is not None and reader.op_type in ("DequantizeLinear", "QuantizeLinear"):
        scale = graph.constant(reader.input[1])
        if scale is not None and values.dtype.kind in "iu":
            return values, 1.0, scale.astype(np.float64).reshape(-1)
    top = max(float(values.max()), -float(values.min())) / 127 or 1.0
    return values, top, np.array([top])


def _bias(graph: SourceGraph, node: onnx.NodeProto) -> tuple[Floats, Floats]:
    """Return a layer's bias as real numbers, and the scale of its codes where it has such."""
    none = np.empty(0)
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or not has_input(node, 2):
        return none, none
    direct = graph.constant(node.input[2])
    if direct is not None:
        return direct.astype(np.float64).reshape(-1), none
    maker = graph.producer(node.input[2])
    if maker is None or maker.op_type != "DequantizeLinear":
        return none, none
    codes, scale = graph.constant(maker.input[0]), graph.constant(maker.input[1])
    if codes is None or scale is None:
        return none, none
    scale = scale.astype(np.float64).reshape(-1)
    return codes.astype(np.float64).reshape(-1) * scale, scale


def _bias_error(input_scale: float, scales: Floats, bias_scale: Floats) -> float:
    if bias_scale.size and not (np.isfinite(bias_scale) & (bias_scale > 0)).all():
        return 0.0
    if not input_scale or not scales.size or bias_scale.size not in (1, scales.size):
        return 1.0
    wanted = input_scale * scales
    ratios = bias_scale / np.where(wanted > 0, wanted, np.nan)
    ratios = ratios[np.isfinite(ratios)]
    return float(ratios[np.argmax(np.abs(np.log(ratios)))]) if ratios.size else 1.0


def _before(graph: SourceGraph, first: onnx.NodeProto | None) -> str:
    """Return the operators between the graph's input and its first layer that are not quantization."""
    found: list[str] = []
    node = graph.producer(first.input[0]) if first is not None else None
    while node is not None:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            found.append(node.op_type)
        source = next((name for name in node.input if name in graph.activations), None)
        node = graph.producer(source) if source is not None else None
    return " ".join(reversed(found))


def _described(facts: QuantFacts | None) -> str:
    if facts is None:
        return ""
    zero = "varies" if facts.zero_point is None else facts.zero_point
    return f"{facts.dtype} {facts.bits} {facts.granularity} {zero}"


def _scale(facts: QuantFacts | None) -> float:
    return (facts.scale or 0.0) if facts is not None else 0.0


def _spaced(values: NDArray[Any], count: int) -> NDArray[Any]:
    flat = values.reshape(-1)
    return flat if flat.size <= count else flat[np.linspace(0, flat.size - 1, count).astype(np.int64)]


def _rms(values: Floats) -> float:
    """Root mean square; 0, which is told, also where it is not finite."""
    rms = float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
    return rms if math.isfinite(rms) else 0.0


def _short(value: float) -> float:
    return float(f"{value:.6g}") if math.isfinite(value) else 0.0


def sketch(values: NDArray[Any]) -> Floats:
    """Return the sketch of an array: 16 numbers of about its root mean square. Places in C order decide the signs."""
    flat, total = values.reshape(-1), np.zeros(BUCKETS)
    for start in range(0, flat.size, _PART):  # large weights are not copied as a whole
        part = flat[start : start + _PART]
        padded = np.zeros(-(-part.size // BUCKETS) * BUCKETS)
        padded[: part.size] = part * _signs(start, part.size)
        total += padded.reshape(-1, BUCKETS).sum(axis=0)
    return np.asarray(total / np.sqrt(-(-flat.size // BUCKETS)))


def relative_distance(base: Floats, now: Floats) -> float:
    """Return |now - base|^2 / |base|^2 of two arrays, estimated from their sketches."""
    return float(np.square(now - base).sum() / max(float(np.square(base).sum()), 1e-12))


def pack(values: NDArray[Any]) -> str:
    """Write an array's bytes as text."""
    return base64.b64encode(values.tobytes()).decode("ascii")


def unpack(text: Any, dtype: str) -> NDArray[Any]:
    """Read what `pack` wrote; anything else is a ValueError or a TypeError."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype)


def distances(base: Mapping[str, Floats], now: Mapping[str, Floats]) -> dict[str, float]:
    """Return the `relative_distance` of the layers that both have, by layer in the order of `now`, from sketches."""
    return {
        name: relative_distance(base[name], values)
        for name, values in now.items()
        if name in base and base[name].shape == values.shape
    }


def pack_sketches(sketches: Mapping[str, Floats]) -> dict[str, str]:
    """Write sketches as text, 44 letters a layer."""
    return {name: pack(np.clip(values, -65504, 65504).astype("<f2")) for name, values in sketches.items()}


def unpack_sketches(texts: Mapping[str, object]) -> dict[str, Floats]:
    """Read what `pack_sketches` wrote."""
    try:
        return {name: unpack(text, "<f2").astype(np.float64) for name, text in texts.items()}
    except (TypeError, ValueError) as error:
        message = f"The baseline's fingerprints are damaged ({error}). Record it again with --update."
        raise ArtefactError(message) from None


def _signs(start: int, count: int) -> Floats:
    # Not numpy's generators: their streams may change between versions, and a baseline outlives those.
    mixed = np.arange(start, start + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.where((mixed >> np.uint64(40)) & np.uint64(1), 1.0, -1.0)
