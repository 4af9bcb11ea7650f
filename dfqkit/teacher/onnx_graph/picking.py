"""What picks from what a network found (NMS), cut off a file: it stays as it is, the network before it is taken over.

What belongs here: where a file is cut, and what the cut says of the outputs in front of it. Between the last layer and
the picks, the cut lies as late as it can: at tensors of floats with the batch first, as few as possible, so that all
that scores and places boxes is part of the network. How the piece goes behind another file is `students.onnx_tail`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper, shape_inference
from torch import nn

from dfqkit.students.naming import unique
from dfqkit.students.onnx_tail import Tail
from dfqkit.tasks import named
from dfqkit.teacher.onnx_graph.building import refuse
from dfqkit.teacher.onnx_graph.proof import tried_images
from dfqkit.teacher.onnx_graph.reading import Operator, Source, operators_of, read_by
from dfqkit_export.images.spec import ImageSpec

#: Operators whose outputs have as many rows as there is something to find.
PICKS = frozenset({"NonMaxSuppression", "NonZero", "Unique", "Compress", "RoiAlign", "MaxRoiAlign"})
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "LSTM", "GRU", "RNN"})
#: In front of which no cut is looked for.
_WEIGHTED = _LAYERS | {"MatMul"}
_MOVES = frozenset({"Transpose", "Unsqueeze", "Identity"})
_BOXES, _SCORES = "raw_boxes", "raw_scores"
#: Boxes that leave the image by no more than so many of its sides are counted in these.
_OUTSIDE = 2.0
_CUT = (
    "It picks from what the network found, which no integer kernel does: cut the file in front of it with "
    "onnx.utils.extract_model, and do it behind the int8 file."
)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A file in two.

    Attributes:
        source: The network in front, whose outputs are those of the file that it still gives, and what the tail reads.
        detection: What suppression says of them, as parameters of a detector: names, form, least overlap. Empty where
            it reads other boxes and scores than these.
    """

    source: Source
    detection: Mapping[str, Any]


def without_picking(source: Source) -> Cut:
    """Return a file without what picks, which becomes the tail of its names; the same where nothing does.

    A file for a fixed number of images keeps a tail for as many: of more, it picks from the first ones.

    Raises:
        TeacherError: Layers lie behind the picks, or nothing in front of them has the batch's axis; says which node.
    """
    behind, made = set[int](), set[str]()
    for place, node in enumerate(source.operators):
        if node.kind in PICKS or made & read_by(node):
            behind.add(place)
            made.update(filter(None, node.outputs))
    if not behind:
        return Cut(source=source, detection={})
    work = _Cutting(source, behind)
    return work.cut()


class _Cutting:
    """One file under the knife: places of the nodes behind, which grow until what they read can be an output."""

    def __init__(self, source: Source, behind: set[int]) -> None:
        self.source, self.behind = source, behind
        self.nodes = source.operators
        self.maker = {name: place for place, node in enumerate(self.nodes) for name in node.outputs if name}
        self.inputs = set(source.names.inputs)
        self.pick = self.nodes[min(behind)]
        inferred = shape_inference.infer_shapes(source.model, data_prop=True).graph
        self.types = {v.name: v.type.tensor_type for v in (*inferred.value_info, *inferred.output, *inferred.input)}

    def cut(self) -> Cut:
        layers = [self.nodes[place] for place in sorted(self.behind) if self.nodes[place].kind in _LAYERS]
        foreign = [self.nodes[place] for place in sorted(self.behind) if "." in self.nodes[place].kind]
        if layers or foreign:
            what = f"is followed by {(layers or foreign)[0].told}"
            raise refuse(self.pick, what, "Behind it nothing can be quantized. " + _CUT)
        scores = [self._moved(node.inputs[1]) for node in self._suppressions()]
        reads = self._grown()
        new = self._named(reads)
        fronts, backs = self._turned(new, set(scores))
        tail = self._tail(new, backs)
        return Cut(source=self._front(new, fronts, tail), detection=self._detection(new))

    def _suppressions(self) -> list[Operator]:
        return [self.nodes[place] for place in sorted(self.behind) if self.nodes[place].kind == "NonMaxSuppression"]

    def _moved(self, name: str) -> str:
        """Let what only turns scores for the suppression be part of the tail; return where they are before."""
        place = self.maker.get(name)
        while place is not None and self.nodes[place].kind in _MOVES and self._fits(self.nodes[place].inputs[0]):
            self.behind.add(place)
            name = self.nodes[place].inputs[0]
            place = self.maker.get(name)
        return name

    def _grown(self) -> list[str]:
        while True:
            reads = [name for name in self._reads() if name not in self.inputs]
            wrong = next((name for name in reads if not self._fits(name) or self._follows(name, reads)), None)
            if wrong is None and reads:
                return reads
            place = None if wrong is None else self.maker.get(wrong)
            if place is None or self.nodes[place].kind in _WEIGHTED:
                raise refuse(self.pick, "reads nothing that has the batch's axis", _CUT)
            self.behind.add(place)

    def _reads(self) -> list[str]:
        names = [name for place in sorted(self.behind) for name in _ordered(self.nodes[place])]
        known = self.maker.keys() | self.inputs
        return [n for n in dict.fromkeys(names) if n in known and self.maker.get(n, -1) not in self.behind]

    def _fits(self, name: str) -> bool:
        """Whether a tensor is of floats, its first axis the batch's."""
        kind, first = self.types.get(name), self.types[self.source.names.inputs[0]].shape.dim[0]
        if kind is None or kind.elem_type != TensorProto.FLOAT or len(kind.shape.dim) < 2:
            return False
        batch = kind.shape.dim[0]
        return bool((batch.dim_value, batch.dim_param) == (first.dim_value, first.dim_param))

    def _follows(self, name: str, reads: Sequence[str]) -> bool:
        """Whether a tensor is computed without a layer from others that are read, too."""
        ahead, others = [name], 0
        while ahead:
            each = ahead.pop()
            if each != name and each in reads:
                others += 1
                continue
            place = self.maker.get(each)
            if each in self.inputs or (place is not None and self.nodes[place].kind in _WEIGHTED):
                return False
            ahead += [] if place is None else read_by(self.nodes[place])
        return others > 0

    def _named(self, reads: Sequence[str]) -> dict[str, str]:
        """Return what each tensor of the cut is called as an output."""
        told = {name: f"raw_{name}" for name in reads}
        for node in self._suppressions()[:1]:
            scores = self._moved(node.inputs[1])
            told |= {name: new for name, new in ((node.inputs[0], _BOXES), (scores, _SCORES)) if name in told}
        used = {*self.maker, *self.source.constants, *self.inputs}
        return {name: unique(new, used) for name, new in sorted(told.items(), key=lambda item: item[1])}

    def _turned(self, new: Mapping[str, str], scores: set[str]) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
        """Return nodes that end the network, and those that begin the tail.

        Suppression takes scores (N, classes, boxes), where all else of detectors has boxes first.
        """
        direct = {node.inputs[1] for node in self._suppressions()} & scores
        fronts, backs = [], []
        for name, out in new.items():
            turned = name in direct
            options: dict[str, Any] = {"perm": [0, 2, 1]} if turned else {}
            kind, start = "Transpose" if turned else "Identity", out
            fronts.append(helper.make_node(kind, [name], [out], name=f"{out}_front", **options))
            if self.source.batch is not None:
                start = f"{out}/first"
                bounds = [f"tail/{end}" for end in ("start", "end", "axis")]
                backs.append(helper.make_node("Slice", [out, *bounds], [start], name=f"{out}_first"))
            backs.append(helper.make_node(kind, [start], [name], name=f"{out}_back", **options))
        return fronts, backs

    def _tail(self, new: Mapping[str, str], backs: list[onnx.NodeProto]) -> Tail:
        model, places = self.source.model, sorted(self.behind)
        nodes = [*backs, *(model.graph.node[place] for place in places)]
        read = {name for place in places for name in read_by(self.nodes[place])}
        made = {name for place in places for name in self.nodes[place].outputs}
        stored = [tensor for tensor in model.graph.initializer if tensor.name in read]
        if self.source.batch is not None:
            ends = {"start": 0, "end": self.source.batch, "axis": 0}
            stored += [numpy_helper.from_array(np.array([end], np.int64), f"tail/{k}") for k, end in ends.items()]
        given = [helper.make_tensor_value_info(out, TensorProto.FLOAT, None) for out in new.values()]
        given += [value for value in model.graph.input if value.name in read & self.inputs]
        gives = [value for value in model.graph.output if value.name in made | set(new)]
        part = onnx.ModelProto()
        part.CopyFrom(model)
        del part.metadata_props[:], part.functions[:]
        part.graph.CopyFrom(helper.make_graph(nodes, "tail", given, gives, stored))
        return Tail(model=part, outputs=self.source.names.outputs, kind=self.pick.kind)

    def _front(self, new: Mapping[str, str], fronts: list[onnx.NodeProto], tail: Tail) -> Source:
        source, model = self.source, onnx.ModelProto()
        model.CopyFrom(source.model)
        behind = {name for place in self.behind for name in self.nodes[place].outputs}
        kept = [value for value in model.graph.output if value.name not in behind | set(new)]
        given = [helper.make_tensor_value_info(out, TensorProto.FLOAT, None) for out in new.values()]
        nodes, wanted = [*fronts[::-1]], {*(v.name for v in kept), *new}
        for place in range(len(self.nodes) - 1, -1, -1):
            if wanted.intersection(self.nodes[place].outputs):
                nodes.append(model.graph.node[place])
                wanted |= read_by(self.nodes[place])
        graph = helper.make_graph(nodes[::-1], "front", model.graph.input, [*kept, *given], model.graph.initializer)
        model.graph.CopyFrom(graph)
        names = replace(source.names, outputs=tuple(value.name for value in graph.output), tail=tail)
        return replace(source, model=model, operators=operators_of(model.graph, names.opset), names=names)

    def _detection(self, new: Mapping[str, str]) -> dict[str, Any]:
        """Return what the first suppression says of boxes and scores that are outputs."""
        for node in self._suppressions()[:1]:
            if {_BOXES, _SCORES} <= set(new.values()):
                overlap = self.source.constants.get(node.inputs[3]) if len(node.inputs) > 3 else None
                least = 0.0 if overlap is None else float(overlap.flatten()[0])
                known: dict[str, Any] = {"nms": least} if 0 < least <= 1 else {}
                form = "centre" if node.get("center_point_box", 0) else "corners"
                return {"boxes": (_BOXES,), "scores": (_SCORES,), "form": form, **known}
        return {}


def detector_of(cut: Cut, module: nn.Module, image: ImageSpec) -> dict[str, Any]:
    """Return the parameters of a detector that a cut and a few images tell; none where suppression tells nothing."""
    if not cut.detection:
        return {}
    with torch.no_grad():
        found = named(module(tried_images(image)), cut.source.names.outputs)
    boxes, scores = found[_BOXES], found[_SCORES]
    if boxes.dim() != 3 or boxes.shape[2] != 4 or scores.shape[:2] != boxes.shape[:2]:
        return {}
    inside = float(scores.min()) >= 0 and float(scores.max()) <= 1
    unit = "image" if float(boxes.abs().max()) <= _OUTSIDE else "pixels"
    return {**cut.detection, "unit": unit, "scores_are": "probabilities" if inside else "logits"}


def _ordered(node: Operator) -> Iterable[str]:
    inner = read_by(node)
    return [*filter(None, node.inputs), *sorted(inner.difference(node.inputs))]
