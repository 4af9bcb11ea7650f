"""What takes a part of a tensor, or puts something around it, in one form with all its numbers said.

What belongs here: Slice, which Split and Gather of one place become, and Pad.
"""

from __future__ import annotations

import numpy as np
import onnx

from dfqkit_export.onnxfile.canonical.workgraph import Rule, WorkGraph, plain_attributes
from dfqkit_export.onnxfile.graph import attribute, has_input

_ALL = 2**31 - 1


def sliced(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Say from where to where, by axes in their order, and nothing of an axis that is kept whole."""
    shape = graph.shape(node.input[0])
    given = [graph.value(node.input[place]) if has_input(node, place) else None for place in range(1, 5)]
    if shape is None or given[0] is None or given[1] is None:
        return False
    if any(given[place - 1] is None and has_input(node, place) for place in (3, 4)):
        return False
    starts, ends = ([int(number) for number in value.reshape(-1)] for value in (given[0], given[1]))
    axes = range(len(starts)) if given[2] is None else [int(axis) % len(shape) for axis in given[2].reshape(-1)]
    steps = [1] * len(starts) if given[3] is None else [int(step) for step in given[3].reshape(-1)]
    rows = []
    for axis, start, end, step in sorted(zip(axes, starts, ends, steps, strict=True)):
        size = shape[axis]
        if graph.open_size(size):
            if start or end < _ALL or step != 1:  # what is left of any batch
                rows.append((axis, start, end, step))
            continue
        low, high = (0, size) if step > 0 else (-1, size - 1)
        start, end = (min(max(n + size if n < 0 else n, low), high) for n in (start, end))
        if (start, end, step) != (0, size, 1):
            rows.append((axis, start, end if end >= 0 else -size - 1, step))
    if not rows:
        return graph.stand_for(node.output[0], node.input[0])
    wanted = [np.array([row[k] for row in rows], np.int64) for k in (1, 2, 0, 3)]
    if all(value is not None and np.array_equal(value, new) for value, new in zip(given, wanted, strict=True)):
        return False
    inputs = [node.input[0], *map(graph.constant, wanted)]
    return graph.stand_for(node.output[0], graph.add("Slice", inputs, name=node.name, like=node.output[0]))


def split(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Take each part alone."""
    shape = graph.shape(node.input[0])
    if shape is None:
        return False
    axis = int(attribute(node, "axis", 0)) % len(shape)
    stored = graph.value(node.input[1]) if has_input(node, 1) else None
    if graph.open_size(shape[axis]) or (stored is None and has_input(node, 1)):
        return False
    each = -(-shape[axis] // len(node.output))
    sizes = [each] * len(node.output) if stored is None else [int(size) for size in stored.reshape(-1)]
    start = 0
    for out, size in zip(node.output, sizes, strict=True):
        if out:
            graph.stand_for(out, _part(graph, node, axis, start, min(start + size, shape[axis])))
        start += size
    return True


def gathered(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Take one place as a part of size 1."""
    shape, place, out = graph.shape(node.input[0]), graph.scalar(node.input[1]), graph.shape(node.output[0])
    if not shape or place is None or not out or graph.is_constant(node.input[0]):
        return False
    axis = int(attribute(node, "axis", 0)) % len(shape)
    if graph.open_size(shape[axis]):
        return False
    start = int(place) % shape[axis]
    new = _part(graph, node, axis, start, start + 1)
    if graph.shapes[new] != out:
        new = graph.add("Reshape", [new], {"to": list(out)}, like=node.output[0])
    return graph.stand_for(node.output[0], new)


def padded(graph: WorkGraph, node: onnx.NodeProto) -> bool:
    """Say the pads of all axes, and no value that is 0."""
    shape, pads = graph.shape(node.input[0]), graph.value(node.input[1])
    axes = graph.value(node.input[3]) if has_input(node, 3) else None
    if shape is None or pads is None or (axes is None and has_input(node, 3)):
        return False
    value = node.input[2] if has_input(node, 2) and graph.scalar(node.input[2]) != 0 else ""
    if axes is None and len(node.input) == (3 if value else 2):
        return False
    whole = np.zeros((2, len(shape)), np.int64)
    places = range(len(shape)) if axes is None else [int(axis) % len(shape) for axis in axes.reshape(-1)]
    whole[:, places] = pads.reshape(2, -1)
    inputs = [node.input[0], graph.constant(whole.reshape(-1)), *filter(None, [value])]
    new = graph.add("Pad", inputs, plain_attributes(node), name=node.name, like=node.output[0])
    return graph.stand_for(node.output[0], new)


def _part(graph: WorkGraph, node: onnx.NodeProto, axis: int, start: int, end: int) -> str:
    shape = graph.shape(node.input[0]) or ()
    inputs = [node.input[0], *(graph.constant(np.array([number], np.int64)) for number in (start, end, axis, 1))]
    new = graph.add("Slice", inputs, name=node.name)
    graph.shapes[new] = (*shape[:axis], end - start, *shape[axis + 1 :])
    return new


RULES: dict[str, tuple[Rule, ...]] = {"Slice": (sliced,), "Split": (split,), "Gather": (gathered,), "Pad": (padded,)}
