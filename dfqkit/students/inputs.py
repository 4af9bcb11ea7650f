"""Several inputs of a network as one: all images stacked by channel, side inputs beside them.

What belongs here: everything that knows a network takes more than one tensor, or its file other numbers. A teacher's
module is split for by a hook (`takes_stacked`), a captured graph has its placeholders gathered into one, and the
written file has them apart again; between the two, all code sees images (N, C, H, W). What an input takes is
`dfqkit_export.images.entries`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from dfqkit_export.errors import TeacherError
from dfqkit_export.images.entries import Entry, entries_of
from dfqkit_export.images.pixels import FLOAT, LAYOUT, PIXELS, RGB
from dfqkit_export.images.spec import ImageSpec


def part(images: Tensor, _name: str, start: int, channels: int) -> Tensor:
    """Return the images of one input."""
    return images[:, start : start + channels]


def side(
    images: Tensor, _name: str, start: int, shape: Sequence[int], value: Sequence[float], dtype: str, per_image: bool
) -> Tensor:
    """Return a side input of stacked images: held where there is a ``value``, else as it was drawn."""
    sizes = (len(images), *shape) if per_image else tuple(shape)
    if not value:
        return images[:, start].flatten(1)[:, : math.prod(shape)].reshape(sizes)
    held = torch.tensor(list(value), dtype=getattr(torch, dtype), device=images.device)
    return held.expand(math.prod(shape)).reshape(tuple(shape)).expand(sizes)


def is_part(node: fx.Node) -> bool:
    """Return whether a node gives what one of several inputs takes."""
    return node.target in (part, side)


def is_input(node: fx.Node) -> bool:
    """Return whether a node gives images as they go into the network: its placeholder, or a part of what it stacks."""
    return node.target is part or (node.op == "placeholder" and not any(map(is_part, node.users)))


def image_of(node: fx.Node, image: ImageSpec) -> ImageSpec:
    """Return the specification of what an input node gives."""
    return next((image.of(entry) for entry in image.inputs if node.args[1:2] == (entry.name,)), image)


def _call(entry: Entry) -> tuple[Any, tuple[Any, ...]]:
    """Return the function of an entry, and its arguments behind the images."""
    if entry.shape is None:
        return part, (entry.name, entry.start, entry.channels)
    return side, (entry.name, entry.start, entry.shape, entry.value or (), entry.dtype, entry.per_image)


def split(images: Tensor, image: ImageSpec) -> tuple[Tensor, ...]:
    """Return what each input takes of stacked images, in the order of the network's forward."""
    calls = map(_call, image.inputs)
    return tuple(function(images, *args) for function, args in calls) or (images,)


class _Split:
    """The hook by which a module of several inputs takes stacked images."""

    def __init__(self, image: ImageSpec) -> None:
        self.image = image

    def __call__(self, _model: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor, ...]:
        return split(given[0], self.image) if len(given) == 1 else given


def takes_stacked(model: nn.Module, image: ImageSpec) -> nn.Module:
    """Let a module whose forward takes several inputs take them stacked, in place; every other one stays as it is."""
    if image.inputs and not any(isinstance(hook, _Split) for hook in model._forward_pre_hooks.values()):
        model.register_forward_pre_hook(_Split(image))
    return model


@contextlib.contextmanager
def unstacked(model: nn.Module) -> Iterator[None]:
    """Let a module take its inputs apart."""
    hooks = dict(model._forward_pre_hooks)
    for key in [key for key, hook in hooks.items() if isinstance(hook, _Split)]:
        del model._forward_pre_hooks[key]
    try:
        yield
    finally:
        model._forward_pre_hooks.update(hooks)


class _Taken(nn.Module):
    """What a network takes of what its file takes: pixels on another scale, in another order of axes."""

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.image = replace(image, channels=RGB)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32)  # first: TensorRT turns no uint8
        x = x.permute(0, 3, 1, 2) if self.image.layout != LAYOUT else x
        return self.image.normalize(x / 255) if self.image.dtype == PIXELS else x


def of_file(image: ImageSpec, names: Sequence[str]) -> tuple[list[Tensor], list[dict[int, Any]]]:
    """Return what inputs of a file take of two black images, in the order of its ``names``, and their open axes."""
    given = image.to_file(np.zeros((2, *image.shape), np.float32))
    axes = dict(zip(given, dynamic(image), strict=True))
    order = names if image.inputs else list(given)
    return [torch.from_numpy(given[name]) for name in order], [axes[name] for name in order]


def dynamic(image: ImageSpec) -> tuple[dict[int, Any], ...]:
    """Return which axes of each input `torch.export` is to leave open: the batch's."""
    batch = torch.export.Dim("N", min=1, max=65536)
    return tuple({0: batch} if entry.per_image else {} for entry in image.inputs) or ({0: batch},)


def gathered(graph: fx.GraphModule, image: ImageSpec) -> fx.GraphModule:
    """Let a captured graph take stacked images, in place.

    Raises:
        TeacherError: It has another number of inputs than the specification.
    """
    if not image.inputs:
        return graph
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    if len(placeholders) != len(image.inputs):
        message = (
            f"The model takes {len(placeholders)} tensors, and image.inputs names {len(image.inputs)}: "
            f"{', '.join(entry.name for entry in image.inputs)}. Name each argument of its forward, in its order."
        )
        raise TeacherError(message)
    nodes = graph.graph
    with nodes.inserting_before(placeholders[0]):
        stacked = nodes.placeholder("dfqkit_stacked")
    stacked.meta["val"] = torch.empty((2, *image.shape), device="meta")
    last = placeholders[-1]
    for old, entry in zip(placeholders, image.inputs, strict=True):
        function, args = _call(entry)
        with nodes.inserting_after(last):
            last = made = nodes.call_function(function, (stacked, *args))
        made.meta.update(old.meta)
        old.replace_all_uses_with(made)
    for old in placeholders:
        nodes.erase_node(old)
    told, nodes._codegen = nodes._codegen, fx.graph.CodeGen()  # the exporter's takes the arguments that were there
    nodes._codegen.pytree_info = told.pytree_info  # type: ignore[attr-defined]  # names of the outputs
    return graph


def separated(graph: fx.GraphModule, image: ImageSpec, names: Sequence[str]) -> fx.GraphModule:
    """Let a graph of stacked images take what its file takes, in the order of ``names``, in place."""
    nodes = graph.graph
    stacked = next(node for node in nodes.nodes if node.op == "placeholder")
    parts = {str(node.args[1]): node for node in nodes.nodes if is_part(node)}
    entries = {entry.name: entry for entry in image.inputs or entries_of({names[0]: image.shape[0]})}
    with nodes.inserting_before(stacked):
        apart = {name: nodes.placeholder(f"dfqkit_input_{place}") for place, name in enumerate(names)}
    for place, (name, taken) in enumerate(list(apart.items())):
        if entries[name].shape is None and (image.layout, image.dtype) != (LAYOUT, FLOAT):
            graph.add_submodule(f"dfqkit_taken_{place}", _Taken(image.of(entries[name])))
            with nodes.inserting_before(stacked):
                apart[name] = nodes.call_module(f"dfqkit_taken_{place}", (taken,))
        if name in parts:
            parts[name].replace_all_uses_with(apart[name])
            nodes.erase_node(parts[name])
    stacked.replace_all_uses_with(next(apart[name] for name, entry in entries.items() if entry.shape is None))
    nodes.erase_node(stacked)
    graph.recompile()
    return graph
