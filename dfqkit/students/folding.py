"""What multiplies and shifts channels goes into the layers around it: BatchNorm, frozen or not, scales and shifts.

What belongs here: the affine maps of a float graph in normal form, the exact rules by which they are folded, and the
helpers that make and scale layers. What is computed from parameters alone is a constant already (`constants`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfqkit.students.affine import AffineMap, affine_map, axis_before, axis_behind, is_structural
from dfqkit.students.nodes import bypass, called, op_name, source, tensor_at, tensor_shapes

#: Layers whose weights take what is folded.
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class Affine(nn.Module):
    """x * scale + shift, a number a channel: what no layer around it takes, and no integer kernel runs.

    Args:
        scale: Shaped to multiply the values, all axes but the channels' 1: (C, 1, 1) or (C,).
        shift: Of the same shape.
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = nn.Buffer(scale), nn.Buffer(shift)

    def forward(self, x: Tensor) -> Tensor:
        """Return the values scaled and shifted."""
        return x * self.scale + self.shift


def with_parameters(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Give a layer made on the meta device its tensors: the global random state is never drawn from."""
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(weight.new_zeros(weight.shape[0]) if bias is None else bias)
    return layer


def _container(root: nn.Module, path: str) -> nn.Module:
    """Return the module at a dotted path, made of plain containers where it is not there."""
    for part in path.split(".") if path else ():
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    return root


def add_submodule(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path, making plain containers on the way."""
    parents, _, leaf = path.rpartition(".")
    _container(root, parents).add_module(leaf, module)


def add_buffer(root: nn.Module, owner: str, name: str, value: Tensor) -> str:
    """Store a tensor in the module at a dotted path, under a name that is free there; return the tensor's path."""
    holder, free = _container(root, owner), name
    while hasattr(holder, free):
        free += "_"
    holder.register_buffer(free, value)
    return f"{owner}.{free}" if owner else free


def scale_outputs(layer: nn.Module, scale: Tensor) -> Tensor:
    """Multiply what a layer gives by a number a channel, (C_out,) or (), in place; return its bias."""
    weight, bias = tensor_at(layer, "weight"), tensor_at(layer, "bias")
    with torch.no_grad():
        if isinstance(layer, nn.ConvTranspose2d):  # (C_in, C_out / groups, ...)
            grouped = weight.view(layer.groups, -1, *weight.shape[1:])
            grouped.mul_(scale.expand(bias.shape).reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2)))
        else:
            weight.mul_(scale.reshape(-1, *[1] * (weight.dim() - 1)))
        return bias.mul_(scale)


def map_outputs(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Let a layer give what it gave times ``scale`` plus ``shift``, numbers a channel (C_out,) or (), in place."""
    if isinstance(layer, Affine):
        scale, shift = _as_of(layer.scale, scale), _as_of(layer.scale, shift)
        layer.scale.mul_(scale)
        layer.shift.mul_(scale).add_(shift)
        return
    bias = tensor_at(layer, "bias")
    with torch.no_grad():
        scale_outputs(layer, scale.to(bias)).add_(shift.to(bias))


def map_inputs(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Let a layer compute of x what it computed of ``x * scale + shift``, numbers a channel (C_in,) or (), in place."""
    if isinstance(layer, Affine):
        layer.shift.add_(layer.scale * _as_of(layer.scale, shift))
        layer.scale.mul_(_as_of(layer.scale, scale))
        return
    weight, bias = tensor_at(layer, "weight"), tensor_at(layer, "bias")
    scale, shift, rest = scale.to(weight), shift.to(weight), [1] * (weight.dim() - 2)
    with torch.no_grad():
        if isinstance(layer, nn.ConvTranspose2d):  # its shift is 0
            weight.mul_(scale.reshape(-1, 1, *rest))
            return
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        grouped = weight.view(groups, -1, *weight.shape[1:])
        scale, shift = (each.expand(groups * weight.shape[1]).reshape(groups, 1, -1, *rest) for each in (scale, shift))
        bias.add_((grouped.double() * shift.double()).flatten(2).sum(2).flatten().to(bias.dtype))
        grouped.mul_(scale)


def _as_of(like: Tensor, numbers: Tensor) -> Tensor:
    """Numbers a channel, in the shape and type of others."""
    return numbers.to(like).expand(like.numel()).reshape(like.shape)


def _is_padded(layer: nn.Module) -> bool:
    """Whether zeros stand beside a layer's input, or only some of its weights meet a border's values."""
    if isinstance(layer, nn.Conv2d):
        padding: Any = layer.padding
        return padding not in ("valid", 0) and any(size != 0 for size in padding)
    return isinstance(layer, nn.ConvTranspose2d)


def fold_affines(graph: fx.GraphModule) -> None:
    """Take every BatchNorm and every constant scale and shift a channel that a layer can hold out of a graph, in place.

    Backwards, into the convolution or linear layer whose only reader it is, also through operators that move values;
    else forwards, into all layers that read it, where no zero padding stands between. What is left on maps becomes a
    depthwise 1x1 convolution with the attribute ``affine_norm``, which integer kernels know how to run; what is left of
    BatchNorms on vectors and tokens stays an `Affine` in float.

    Args:
        graph: In normal form; its BatchNorms are `Affine` modules.
    """
    folder = _Folder(graph)
    for node in list(graph.graph.nodes):
        folder.backwards(node)
    for node in list(reversed(graph.graph.nodes)):
        folder.forwards(node)
    folder.write_convolutions()


class _Folder:
    """One graph's affine maps, its shapes, and how often each layer is called."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph, self.modules = graph, dict(graph.named_modules())
        self.calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
        self.shapes = _shapes(graph)

    def _map(self, node: fx.Node) -> AffineMap | None:
        if isinstance(module := called(node, self.modules), Affine):
            axis = len(self.shapes[node]) - module.scale.dim()
            return AffineMap(source(node), axis, module.scale.flatten(), module.shift.flatten())
        return affine_map(node, self.graph, self.shapes) if node.op == "call_function" else None

    def _layer(self, node: fx.Node) -> nn.Module | None:
        """Return the layer that a node calls and no other node does."""
        module = called(node, self.modules)
        return module if isinstance(module, (*WEIGHTED, Affine)) and self.calls[str(node.target)] == 1 else None

    def _axis(self, node: fx.Node, layer: nn.Module) -> int:
        """Return the axis of a layer's channels, which is the same before it and behind it."""
        rank = len(self.shapes[node])
        return (
            rank - layer.scale.dim() if isinstance(layer, Affine) else rank - 1 if isinstance(layer, nn.Linear) else 1
        )

    def backwards(self, node: fx.Node) -> None:
        """Fold a node into the layer that it follows, or make it a module, which takes what follows."""
        found = self._map(node)
        if found is None:
            return
        layer = self._behind(found.before, found.axis)
        if layer is not None:
            map_outputs(layer, found.scale, found.shift)
            bypass(node, found.before)
        elif node.op == "call_function" and found.axis == 1 and len(self.shapes[node]) == 4:
            self._make_module(node, found)

    def _behind(self, node: fx.Node, axis: int | None) -> nn.Module | None:
        while len(_readers(node)) == 1 and node in self.shapes:
            layer = self._layer(node)
            if layer is not None:
                return layer if axis in (None, self._axis(node, layer)) else None
            if not is_structural(node):
                return None
            if axis is not None:
                axis = axis_before(node, self.shapes[source(node)], self.shapes[node], axis)
                if axis is None:
                    return None
            node = source(node)
        return None

    def _make_module(self, node: fx.Node, found: AffineMap) -> None:
        each = (number.expand(self.shapes[node][1]).reshape(-1, 1, 1).clone() for number in (found.scale, found.shift))
        name = next((str(n.meta["owner"]) for n in node.all_input_nodes if "owner" in n.meta), f"affine_{node.name}")
        while name in self.modules:
            name += "_affine"
        self.modules[name], self.calls[name] = Affine(*each), 1
        add_submodule(self.graph, name, self.modules[name])
        with self.graph.graph.inserting_before(node):
            call = self.graph.graph.call_module(name, (found.before,))
        self.shapes[call] = self.shapes[node]
        bypass(node, call)

    def forwards(self, node: fx.Node) -> None:
        """Fold a node into all the layers that read it."""
        found = self._map(node)
        if found is None:
            return
        ahead = list(self._ahead(node, found))
        taken = [each for each in ahead if each is not None]
        if ahead and len(taken) == len(ahead):
            for layer, scale, shift in taken:
                map_inputs(layer, scale, shift)
            bypass(node, found.before)

    def _ahead(self, node: fx.Node, found: AffineMap) -> Iterator[tuple[nn.Module, Tensor, Tensor] | None]:
        """Yield every layer that reads a node, with what it takes of the map; None for a reader that takes nothing."""
        for user in _readers(node):
            layer, module = self._layer(user), called(user, self.modules)
            if layer is not None and found.axis in (None, self._axis(node, layer)):
                fits = not (_is_padded(layer) and bool(found.shift.any()))
                yield (layer, found.scale, found.shift) if fits else None
            elif isinstance(module, nn.AdaptiveAvgPool2d) and found.axis in (None, 1):
                yield from self._ahead(user, found)
            elif is_structural(user) and (moved := self._moved(found, node, user)) is not None:
                yield from self._ahead(user, moved)
            else:
                yield None

    def _moved(self, found: AffineMap, node: fx.Node, user: fx.Node) -> AffineMap | None:
        """Return a map as it is behind an operator that moves values, with a number for each place it moves one to."""
        if found.axis is None:
            return found
        place = axis_behind(user, self.shapes[node], self.shapes[user], found.axis)
        if place is None:
            return None
        axis, channels = place
        return AffineMap(found.before, axis, found.scale[channels], found.shift[channels])

    def write_convolutions(self) -> None:
        """Write what is left on maps as depthwise convolutions."""
        for node in list(self.graph.graph.nodes):
            module = called(node, self.modules)
            if isinstance(module, Affine) and module.scale.dim() == 3 and len(self.shapes[node]) == 4:
                channels = module.scale.numel()
                convolution = nn.Conv2d(channels, channels, 1, groups=channels, device="meta")
                with_parameters(convolution, module.scale.reshape(channels, 1, 1, 1), module.shift.flatten())
                convolution.affine_norm = True  # type: ignore[assignment]  # 8 bits: its weights are one number a channel
                add_submodule(self.graph, str(node.target), convolution.eval())


def _readers(node: fx.Node) -> list[fx.Node]:
    """Return who reads the values of a node, not its size alone."""
    return [user for user in node.users if op_name(user.target) != "sym_size"]


def _shapes(graph: fx.GraphModule) -> dict[fx.Node, tuple[int, ...]]:
    """Return the shape of every tensor, of three images: few other axes have that size."""
    image = next(node for node in graph.graph.nodes if node.op == "placeholder").meta["example_shape"]
    return tensor_shapes(graph, torch.zeros((3, *image)))
