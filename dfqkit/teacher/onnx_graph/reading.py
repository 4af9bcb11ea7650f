"""An ONNX file as a list of operators: constants set apart, axes given sizes, what is no float network refused.

What belongs here: everything that is known before an operator is translated. That the file is sane at all is
`onnxfile.model`'s business, what an operator computes that of the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from dfqkit.students.naming import FileNames
from dfqkit_export.errors import ArtefactError, TeacherError
from dfqkit_export.images.entries import entries_of
from dfqkit_export.images.pixels import FLOAT, LAST, LAYOUT, PIXELS
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.onnxfile.graph import OWN_DOMAINS, opset_of, parameter_inputs, type_name
from dfqkit_export.onnxfile.model import load_onnx, require_images
from dfqkit_export.onnxfile.shapes import image_inputs, told_sizes
from dfqkit_export.words import some

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_QUANTIZED_PREFIXES = ("QLinear", "ConvInteger", "MatMulInteger", "QAttention", "QGemm")


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One node of a file.

    Attributes:
        kind: Its ``op_type``, after the domain where that is not ONNX's own.
        name: Its own name, or its kind and place where it has none.
        inputs: Names of the tensors it reads; "" for one that is left out.
        outputs: Names of those it makes; "" for one that nobody wants.
        attributes: Numbers, lists, text, tensors and graphs, by name.
        opset: The version of ONNX's operators that the file is written in.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 18

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or the default where the file leaves it out."""
        return self.attributes.get(name, default)

    @property
    def told(self) -> str:
        """What it is called in messages."""
        return f"node '{self.name}' ({self.kind}, opset {self.opset})"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that is read.

    Attributes:
        model: The file, its image input with the sizes of ``image.shape``.
        operators: In order.
        constants: Initializers by name.
        names: What it calls its input and outputs.
        batch: How many images it takes at once; None for any number.
        taken: What images it takes, as it takes them: by which names, in which layout and type.
    """

    model: onnx.ModelProto
    operators: Sequence[Operator]
    constants: Mapping[str, Tensor]
    names: FileNames
    batch: int | None
    taken: ImageSpec

    @property
    def channels_last(self) -> bool:
        """Whether its images are (N, H, W, C)."""
        return self.taken.layout != LAYOUT


def read(path: str | Path, image: ImageSpec) -> Source:
    """Read a float network that takes images.

    Raises:
        TeacherError: It is quantized, takes something other than one batch of images, or other images than ``image``
            says; tells what was found and what to do.
    """
    try:
        model = load_onnx(path)
        where = Path(path).name
        _require_float(model, where)
        names = file_names(model)
        batch, taken = _taken(model, image, path)
    except ArtefactError as error:
        raise TeacherError(str(error)) from error
    constants = {tensor.name: as_tensor(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    if bad := [name for name, tensor in constants.items() if tensor.isnan().any()]:
        message = f"'{where}' holds NaN in {some(bad, 3)}. Use the file of a checkpoint from before training diverged."
        raise TeacherError(message)
    return Source(
        model=model,
        operators=operators_of(model.graph, names.opset),
        constants=constants,
        names=names,
        batch=batch,
        taken=taken,
    )


def _taken(model: onnx.ModelProto, image: ImageSpec, path: str | Path) -> tuple[int | None, ImageSpec]:
    """Give the inputs of a file their sizes; return its batch, and what it takes: in which layout and type."""
    values, where = {value.name: value for value in image_inputs(model)}, Path(path).name
    entries = {entry.name: entry for entry in image.inputs or entries_of({next(iter(values)): image.shape[0]})}
    if set(values) != set(entries) and (image.inputs or len(values) > 1 + len(parameter_inputs(model.graph))):
        named = ", ".join(f"{name} {told_sizes(value)}" for name, value in values.items())
        message = (
            f"'{where}' has {len(values)} inputs: {named}; image.inputs names {', '.join(entries)}. Say what each "
            "takes, its channels or that it is no image: {left: 3, right: 3}, or {image: 3, x: {shape: [2], value: 1}}."
        )
        raise ArtefactError(message)
    kinds = {name: type_name(value.type.tensor_type.elem_type) for name, value in values.items()}
    pixels = {name: image.of(entry) for name, entry in entries.items() if entry.shape is None}
    last = all(_channels_last(values[name], of) for name, of in pixels.items())
    (batch, *_) = [_give_sizes(values[name], of, where, last=last) for name, of in pixels.items()]
    dtype = PIXELS if {kinds[name] for name in pixels} == {PIXELS} else FLOAT
    if dtype == PIXELS and (any(image.mean) or any(abs(std * 255 - image.pixel_range) > 0.01 for std in image.std)):
        message = (
            f"'{where}' takes {PIXELS} as they are: what is done to them stands in the file, and is not to be done "
            f"before; found mean {image.mean} and std {image.std}. Give mean 0, std 1 and pixel_range 255."
        )
        raise ArtefactError(message)
    if not image.inputs and dtype == FLOAT and (batch is None or batch >= 1):
        require_images(model, path)
    for name, entry in entries.items() if image.inputs else ():
        found = [size.dim_value for size in values[name].type.tensor_type.shape.dim]
        wanted = found if entry.shape is None else [0] * entry.per_image + list(entry.shape)
        kind = dtype if entry.shape is None else entry.dtype
        pairs = zip(wanted, found, strict=False)
        fits = len(found) == len(wanted) and all(w in (0, f) or f < 1 for w, f in pairs)
        if not fits or kinds[name] != kind.replace(FLOAT, "float"):
            message = (
                f"'{where}' takes {kinds[name]} {told_sizes(values[name])} in '{name}', and image.inputs says "
                f"{entry.told}. Say what it takes; images are all {FLOAT} or all {PIXELS}."
            )
            raise ArtefactError(message)
    return batch, replace(image, layout=LAST if last else LAYOUT, dtype=dtype)


def operators_of(graph: onnx.GraphProto, opset: int) -> list[Operator]:
    """Return a graph's nodes as operators."""
    found = []
    for index, node in enumerate(graph.node):
        own = node.domain in OWN_DOMAINS
        found.append(
            Operator(
                kind=node.op_type if own else f"{node.domain}.{node.op_type}",
                name=node.name or f"{node.op_type}[{index}]",
                inputs=tuple(node.input),
                outputs=tuple(node.output),
                attributes={item.name: _attribute(item) for item in node.attribute},
                opset=opset,
            )
        )
    return found


def read_by(node: Operator) -> set[str]:
    """Return the names of the tensors that an operator reads, those of its branches and loops too."""
    names = {name for name in node.inputs if name}
    for value in node.attributes.values():
        if isinstance(value, onnx.GraphProto):
            for each in operators_of(value, node.opset):
                names |= read_by(each)
            names |= {each.name for each in value.output}
    return names


def file_names(model: onnx.ModelProto) -> FileNames:
    """Return what a file calls its inputs and its outputs, in order, and their open axes."""
    inputs = image_inputs(model)
    axes: dict[str, Mapping[int, str]] = {}
    for each in (*inputs, *model.graph.output):
        sizes = each.type.tensor_type.shape.dim
        axes[each.name] = {
            place: size.dim_param or f"{each.name}_{place}"
            for place, size in enumerate(sizes)
            if not size.dim_value > 0
        }
    outputs = tuple(each.name for each in model.graph.output)
    return FileNames(inputs=tuple(each.name for each in inputs), outputs=outputs, axes=axes, opset=opset_of(model) or 0)


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Return an array of a file as a tensor of its own."""
    return torch.from_numpy(np.array(array, copy=True))


def _attribute(item: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(item)
    if isinstance(value, onnx.TensorProto):
        return as_tensor(numpy_helper.to_array(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.GraphProto | int | float):
        return value
    return [each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in value]


def _require_float(model: onnx.ModelProto, where: str) -> None:
    kinds = {node.op_type for node in model.graph.node}
    found = sorted(kind for kind in kinds if kind in _QUANTIZED or kind.startswith(_QUANTIZED_PREFIXES))
    if found:
        message = (
            f"'{where}' is quantized already: it has {', '.join(found)} nodes. A teacher is a float network; give the "
            "file from before it was quantized."
        )
        raise TeacherError(message)


def _channels_last(value: onnx.ValueInfoProto, image: ImageSpec) -> bool:
    sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
    if len(sizes) != 4:
        return False
    wanted = (image.shape[0], *image.shape[1:])
    fits = [all(have in (0, want) for have, want in zip(sizes[1:], order, strict=True)) for order in _orders(wanted)]
    return not fits[0] and fits[1]


def _orders(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    channels, height, width = shape
    return (channels, height, width), (height, width, channels)


def _give_sizes(value: onnx.ValueInfoProto, image: ImageSpec, where: str, *, last: bool) -> int | None:
    """Give the input's open axes the sizes of the image, in place; return its batch size, None for any."""
    sizes = value.type.tensor_type.shape.dim
    if len(sizes) != 4:
        return None  # `require_images` says it
    wanted = _orders(image.shape)[last]
    found = [size.dim_value for size in sizes]
    if any(have > 0 and have != want for have, want in zip(found[1:], wanted, strict=True)):
        message = (
            f"'{where}' takes images {told_sizes(value)} in '{value.name}', and image.shape is {list(image.shape)} "
            "(channels, height, width). Set image.shape to what the file takes; only axes that it leaves open can be "
            "chosen."
        )
        raise TeacherError(message)
    for size, want in zip(list(sizes)[1:], wanted, strict=True):
        size.ClearField("dim_param")
        size.dim_value = want
    if found[0] > 0:
        return int(found[0])
    if not sizes[0].dim_param:  # Paddle writes -1
        sizes[0].dim_param = "N"
    return None
