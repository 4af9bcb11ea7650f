"""Operators that move values: reshapes, slices, joins, and the arithmetic of shapes.

What belongs here: what keeps images of a batch apart where a file was written for one image. A constant shape becomes
one that follows the batch: the number that stands where the batch's axis stood grows with it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from dfqkit.teacher.onnx_graph.building import TRIED, Building, Size, Value, known, refuse, size_of
from dfqkit.teacher.onnx_graph.reading import Operator
from dfqkit.teacher.onnx_graph.table import Given, axes_of, fixed, needed, numbers, sizes_in, translates, whole_batch

_MIXES = "Images of a batch must stay apart. Export the network with a free batch size, or give the torch module."


@translates("Identity", "Dropout")
def _identity(node: Operator, given: Given, to: Building) -> Any:
    return needed(node, given, 0)


@translates("Shape")
def _shape(node: Operator, given: Given, to: Building) -> Value:
    start, end = node.get("start", 0), node.get("end")
    one, other = (torch.tensor(each.shape)[start:end] for each in needed(node, given, 0).examples)
    return Value((one.to(torch.int64), other.to(torch.int64)))


@translates("Size")
def _size(node: Operator, given: Given, to: Building) -> Value:
    one, other = (torch.tensor(each.numel()) for each in needed(node, given, 0).examples)
    return Value((one, other))


@translates("Reshape")
def _reshape(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    if node.opset < 5:
        wanted: list[int | Size] = list(node.get("shape", ()))
    else:
        wanted = sizes_in(node, needed(node, given, 1))
    return reshaped(node, x, wanted, to)


@translates("Flatten")
def _flatten(node: Operator, given: Given, to: Building) -> Value:
    x, axis = needed(node, given, 0), int(node.get("axis", 1))
    axis = axis + x.rank if axis < 0 else axis
    if axis == 1:
        return to.call(torch.flatten, x, 1)
    return reshaped(node, x, [math.prod(x.at(to.batch)[:axis]), -1], to)


def reshaped(node: Operator, x: Value, wanted: Sequence[int | Size], to: Building) -> Value:
    """Return a value in another shape, each image's numbers its own.

    Args:
        node: Which node asks, for messages.
        x: The value.
        wanted: As ONNX has it: 0 for the size that is there, -1 for what is left.
        to: The graph.
    """
    keeps_zeros = bool(node.get("allowzero", 0))
    entries = [
        x.sizes()[place] if size == 0 and not keeps_zeros and place < x.rank else size
        for place, size in enumerate(wanted)
    ]
    if x.moving and all(isinstance(size, int) for size in wanted):
        entries = _following(node, x, [int(size) for size in wanted if isinstance(size, int)], to, keeps_zeros)
    moving = [place for place, size in enumerate(entries) if isinstance(size, Size)]
    if len(moving) == 1 and -1 not in entries:
        entries[moving[0]] = -1
    if entries == [-1, *x.sizes()[1:]] and x.moving == (0,):
        return x
    return to.call(torch.reshape, x, tuple(entries))


def _following(node: Operator, x: Value, wanted: list[int], to: Building, keeps_zeros: bool) -> list[int | Size]:
    """Return a constant shape as one that follows the batch, where the batch's axis was: behind as many numbers."""
    have = x.at(to.batch)
    shape = [have[i] if size == 0 and not keeps_zeros else size for i, size in enumerate(wanted)]
    if -1 in shape:
        shape[shape.index(-1)] = math.prod(have) // max(1, -math.prod(shape))
    axis = x.moving[0]
    before = math.prod(have[:axis])
    found: list[int | Size] = list(shape)
    for place, size in enumerate(shape):
        if math.prod(shape[:place]) == before and size % to.batch == 0:
            found[place] = Size(*(size // to.batch * count for count in TRIED))
            return found
    message = f"turns {have} into {shape}, which mixes the images of a batch"
    raise refuse(node, message, _MIXES)


@translates("Transpose")
def _transpose(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    order = [int(axis) for axis in node.get("perm", range(x.rank - 1, -1, -1))]
    return x if order == list(range(x.rank)) else to.call(torch.permute, x, tuple(order))


@translates("Squeeze")
def _squeeze(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    axes = axes_of(node, given)
    if axes is None:
        axes = [axis for axis, size in enumerate(x.at(to.batch)) if size == 1]
    whole_batch(node, x, axes)
    for axis in sorted(axes, reverse=True):
        x = to.call(torch.squeeze, x, axis)
    return x


@translates("Unsqueeze")
def _unsqueeze(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    axes = numbers(node, given, 1, "axes") or []
    for axis in sorted(axis % (x.rank + len(axes)) for axis in axes):
        x = to.call(torch.unsqueeze, x, axis)
    return x


@translates("Concat")
def _concat(node: Operator, given: Given, to: Building) -> Value:
    parts = [needed(node, given, index) for index in range(len(given))]
    axis = int(node.get("axis", 1)) % parts[0].rank
    follow = {place for part in parts for place in part.moving if place != axis}
    parts = [_repeated(part, follow, to) for part in parts]
    if axis in {place for part in parts if part.node is not None for place in part.moving}:
        whole_batch(node, next(part for part in parts if axis in part.moving), [axis])
    return parts[0] if len(parts) == 1 else to.call(torch.cat, parts, axis)


def _repeated(value: Value, axes: set[int], to: Building) -> Value:
    """Repeat what a file for one image holds once, as a class token, for every image of a batch."""
    still = [axis for axis in axes if axis not in value.moving and value.examples[0].shape[axis] == to.batch == 1]
    if not still:
        return value
    sizes = [Size(*TRIED) if axis in still else size for axis, size in enumerate(value.sizes())]
    return to.call(torch.broadcast_to, value, sizes)


@translates("Split")
def _split(node: Operator, given: Given, to: Building) -> Any:
    x = needed(node, given, 0)
    axis = int(node.get("axis", 0)) % x.rank
    whole_batch(node, x, [axis])
    sizes, length = numbers(node, given, 1, "split"), x.examples[0].shape[axis]
    if sizes is None:
        each = -(-length // len(node.outputs))
        sizes = [min(each, length - start) for start in range(0, length, each)]
    return to.several(torch.split, x, tuple(sizes), axis)


@translates("Slice")
def _slice(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    if node.opset < 10:
        starts, ends = list(node.get("starts")), list(node.get("ends"))
        axes, steps = node.get("axes"), None
    else:
        starts, ends = (sizes_in(node, needed(node, given, index)) for index in (1, 2))
        axes, steps = numbers(node, given, 3), numbers(node, given, 4)
    axes = [axis % x.rank for axis in (range(len(starts)) if axes is None else axes)]
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(axes), strict=True):
        x = _sliced(node, x, axis, (start, end, step), to)
    return x


def _sliced(node: Operator, x: Value, axis: int, span: tuple[Any, Any, int], to: Building) -> Value:
    start, end, step = span
    sizes = [each.shape[axis] for each in x.examples]
    if axis in x.moving and x.node is not None:
        if (start, step) == (0, 1) and (isinstance(end, Size) or end >= to.batch):
            return x
        whole_batch(node, x, [axis])
    ends = [[each.at(n) if isinstance(each, Size) else int(each) for n in TRIED] for each in (start, end)]
    spans = [slice(a, b, step).indices(size) for a, b, size in zip(*ends, sizes, strict=True)]
    if step < 0:
        index = [torch.arange(*span) for span in spans]
        return to.call(torch.index_select, x, axis, Value((index[0], index[1])))
    if all(span == (0, size, 1) for span, size in zip(spans, sizes, strict=True)):
        return x
    place = slice(size_of(spans[0][0], spans[1][0]), size_of(spans[0][1], spans[1][1]), step)
    return to.call(operator.getitem, x, (*[slice(None)] * axis, place))


@translates("Gather")
def _gather(node: Operator, given: Given, to: Building) -> Value:
    x, index = needed(node, given, 0), needed(node, given, 1)
    axis = int(node.get("axis", 0)) % x.rank
    length = x.examples[0].shape[axis]
    if x.node is not None:
        whole_batch(node, x, [axis])
    chosen = index.constant
    if chosen is None:
        if index.node is not None and x.constant is not None and axis == 0 and x.rank == 2:
            return to.call(F.embedding, index, x)
        raise refuse(node, "picks by numbers that are computed from the image", "Give the torch module.")
    chosen = torch.where(chosen < 0, chosen + length, chosen)
    if chosen.dim() == 0:
        return to.call(torch.select, x, axis, int(chosen))
    flat = chosen.flatten().tolist()
    if chosen.dim() == 1 and flat == list(range(flat[0], flat[0] + len(flat))):
        return _sliced(node, x, axis, (flat[0], flat[0] + len(flat), 1), to)
    picked = to.call(torch.index_select, x, axis, known(chosen.flatten(), index.name))
    return picked if chosen.dim() == 1 else to.call(torch.unflatten, picked, axis, tuple(chosen.shape))


@translates("GatherElements")
def _gather_elements(node: Operator, given: Given, to: Building) -> Value:
    x, index = needed(node, given, 0), needed(node, given, 1)
    axis = int(node.get("axis", 0)) % x.rank
    whole_batch(node, x, [axis])
    return to.call(torch.gather, x, axis, _repeated(index, set(x.moving), to))


@translates("GatherND")
def _gather_places(node: Operator, given: Given, to: Building) -> Value:
    x, index = needed(node, given, 0), needed(node, given, 1).constant
    if index is None or node.get("batch_dims", 0):
        raise refuse(node, "picks by numbers that the image decides", "Give the torch module.")
    if x.node is not None:
        whole_batch(node, x, range(index.shape[-1]))
    return to.call(operator.getitem, x, tuple(known(each.contiguous()) for each in index.unbind(-1)))


@translates("Expand")
def _expand(node: Operator, given: Given, to: Building) -> Value:
    x, wanted = needed(node, given, 0), sizes_in(node, needed(node, given, 1))
    have = x.sizes()
    length = max(len(have), len(wanted))
    have, wanted = [*[1] * (length - len(have)), *have], [*[1] * (length - len(wanted)), *wanted]
    sizes = [b if a == 1 else a for a, b in zip(have, wanted, strict=True)]
    return x if sizes == x.sizes() else to.call(torch.broadcast_to, x, sizes)


@translates("Tile")
def _tile(node: Operator, given: Given, to: Building) -> Value:
    x = needed(node, given, 0)
    times = sizes_in(node, needed(node, given, 1))
    if any(times[axis] != 1 for axis in x.moving):
        whole_batch(node, x, x.moving)
    return to.call(torch.tile, x, tuple(times))


@translates("Constant")
def _constant(node: Operator, given: Given, to: Building) -> Value:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if name in node.attributes:
            kind = torch.float32 if "float" in name else torch.int64 if "int" in name else None
            return known(torch.as_tensor(node.attributes[name], dtype=kind), node.outputs[0])
    raise refuse(node, "holds neither numbers nor a tensor", "Export the file again.")


@translates("ConstantOfShape")
def _constant_of_shape(node: Operator, given: Given, to: Building) -> Value:
    fill = node.get("value", torch.zeros(1)).flatten()[0]
    return to.call(torch.full, sizes_in(node, needed(node, given, 0)), fill.item(), dtype=fill.dtype)


@translates("Range")
def _range(node: Operator, given: Given, to: Building) -> Value:
    ends = [fixed(node, given, index) for index in range(3)]
    assert all(each is not None for each in ends)
    kind = needed(node, given, 0).examples[0].dtype
    return known(torch.arange(*(each.item() for each in ends if each is not None), dtype=kind))


@translates("Pad")
def _pad(node: Operator, given: Given, to: Building) -> Value:
    x, mode = needed(node, given, 0), node.get("mode", "constant")
    pads = numbers(node, given, 1, "pads") or []
    axes = numbers(node, given, 3)
    axes = list(range(x.rank)) if axes is None else [axis % x.rank for axis in axes]
    fill = fixed(node, given, 2, "value") if node.opset < 11 else fixed(node, given, 2)
    before, behind = (dict(zip(axes, part, strict=True)) for part in (pads[: len(axes)], pads[len(axes) :]))
    whole_batch(node, x, [axis for axis in axes if before[axis] or behind[axis]])
    flat = [side.get(axis, 0) for axis in reversed(range(x.rank)) for side in (before, behind)]
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    kinds = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in kinds:
        raise refuse(node, f"pads by '{mode}'", f"Known are {', '.join(kinds)}.")
    if not any(flat):
        return x
    if mode == "constant":
        return to.call(F.pad, x, flat, "constant", 0.0 if fill is None else fill.item())
    flat += [0] * (2 * (x.rank - 2) - len(flat))  # these take the axes behind the channels
    return to.call(F.pad, x, flat, kinds[mode])


@translates("DepthToSpace")
def _depth_to_space(node: Operator, given: Given, to: Building) -> Value:
    x, block = needed(node, given, 0), int(node.get("blocksize"))
    if node.get("mode", "DCR") == "DCR":
        _, channels, height, width = x.examples[0].shape
        kept = channels // block**2
        x = to.call(torch.reshape, x, (-1, block**2, kept, height, width))
        x = to.call(torch.reshape, to.call(torch.transpose, x, 1, 2), (-1, channels, height, width))
    return to.call(F.pixel_shuffle, x, block)


@translates("SpaceToDepth")
def _space_to_depth(node: Operator, given: Given, to: Building) -> Value:
    x, block = needed(node, given, 0), int(node.get("blocksize"))
    _, channels, height, width = x.examples[0].shape
    height, width = height // block, width // block
    x = to.call(torch.reshape, x, (-1, channels, height, block, width, block))
    x = to.call(torch.permute, x, (0, 3, 5, 1, 2, 4))
    return to.call(torch.reshape, x, (-1, channels * block**2, height, width))


@translates("ScatterND")
def _scatter(node: Operator, given: Given, to: Building) -> Value:
    """Write into a part that a constant names: what exporters make of ``x[..., a:b] = y``."""
    x, places, update = (needed(node, given, index) for index in range(3))
    x, update = _repeated(x, set(update.moving), to), _repeated(update, set(x.moving), to)
    index, other = places.constant, node.get("reduction", "none") != "none" or x.moving not in ((), (0,))
    if index is None or other or index.shape[-1] != x.rank:
        raise refuse(node, "writes to places that are no constant block", "Give the torch module, or export again.")
    columns = [sorted(set(index[..., axis].flatten().tolist())) for axis in range(x.rank)]
    box = [(each[0], each[-1] + 1) for each in columns]
    grid = torch.stack(torch.meshgrid(*(torch.arange(*ends) for ends in box), indexing="ij"), -1)
    block = tuple(index.shape) == tuple(grid.shape) and torch.equal(index, grid)
    if not block or any(box[axis] != (0, to.batch) for axis in x.moving):
        raise refuse(node, "writes to places that are no block", "Give the torch module, or export again.")
    part = [slice(None) if axis in x.moving else slice(*ends) for axis, ends in enumerate(box)]
    return to.call(_written, x, tuple(part), update)


def _written(x: Tensor, part: tuple[Any, ...], update: Tensor) -> Tensor:
    """Return a tensor with other values in a part of it."""
    x = x.clone()
    x[part] = update
    return x


@translates("Trilu")
def _triangle(node: Operator, given: Given, to: Building) -> Value:
    diagonal = fixed(node, given, 1)
    function = torch.triu if node.get("upper", 1) else torch.tril
    return to.call(function, needed(node, given, 0), 0 if diagonal is None else int(diagonal))
