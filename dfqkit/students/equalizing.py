"""Layers scaled against each other, so that no channel's weights or values are much larger than others.

Sources: of weights, Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019,
section 4.1, for groups of layers as Brevitas has it: all whose outputs meet in additions are scaled together, against
all that read them. Brevitas' own walk ends in a KeyError on functions that it does not know, and scales what a constant
is added to. Of values, Xiao et al., "SmoothQuant", 2023, equation 4, without its weights: each of ours has a scale for
every output channel. Through ReLU6, of which Nagel et al. make ReLU first (it costs MobileNetV1 0.75 six points), what
does not reach 6 on some images is made larger, up to 6, and the rest stays: on these images the function is the same.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn

from dfqkit.students.nodes import bypass, called, fill_of, op_name, source, tensor_at, watch

_LOG = logging.getLogger(__name__)
_LAYERS = (nn.Conv2d, nn.Linear)
# f(s x) = s f(x) for each channel and s > 0.
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Identity)
#: Gates of the value that they multiply, as in hard-swish: they read it as it was before it was scaled.
_GATES = (nn.Hardsigmoid, nn.Sigmoid)
_HOMOGENEOUS_FUNCTIONS = {"leaky_relu", "max_pool2d", "upsample_nearest2d", "slice"}
_BOUND = 6.0
#: It ends when no factor is further from 1.
_SETTLED = 0.05
_LEAST = 1e-9
#: The least share of the largest channel's values that a channel is taken to have.
_SMALLEST = 1e-3
#: The most that a channel bounded by ReLU6 is multiplied with: its bias must still fit 32 bits beside the others.
_MOST = 64.0
_OUTPUT, _PREFIX = "the output", "equalized_"


@dataclass(eq=False)
class _Channels:
    """Tensors whose channels have one scale; ``blocked`` says why it must stay 1.

    Constants (1, C, 1, 1) that are added to them are scaled too, those by which gates read them the other way.
    ``bounded`` are the tensors that end at 6; with them a channel's factors must have a product, ``whole`` (C,), of at
    least 1 and at most ``room``, so that what reached 6 still does and nothing else does.
    """

    sources: dict[str, nn.Module] = field(default_factory=dict)
    sinks: dict[str, nn.Module] = field(default_factory=dict)
    added: list[Tensor] = field(default_factory=list)
    gates: list[Tensor] = field(default_factory=list)
    bounded: list[fx.Node] = field(default_factory=list)
    room: Tensor | None = None
    whole: Tensor | float = 1.0
    blocked: str = ""


def equalize(graph: fx.GraphModule, iterations: int, batches: Sequence[Tensor] = ()) -> fx.GraphModule:
    """Return a copy of a float graph in normal form, its layers equalized; the function stays the same.

    What is between layers and is not known to pass a scale on is left as it is, with a word in the log.

    Args:
        graph: The float graph, left as it is.
        iterations: The most times that all groups of layers are gone through.
        batches: Normalised images (n, C, H, W), by which channels are told that may be scaled though ReLU6 bounds
            them; without any, ReLU6 passes nothing on.
    """
    equalized = _with_channels_of_constants(graph)
    groups = _Groups(equalized, through_bounds=bool(batches))
    groups.tell()
    bounded = {node: group for group in groups.usable for node in group.bounded}
    for node, largest in _largest(equalized, bounded, batches).items():
        room = torch.where(largest > 0, (_BOUND / largest).clamp_max(_MOST), 1.0)  # whose values are 0 gains nothing
        group = bounded[node]
        group.room = room if group.room is None else torch.minimum(room, group.room)
    with torch.no_grad():
        for _ in range(iterations):
            furthest = max((_step(group) for group in groups.usable), default=0.0)
            if furthest < _SETTLED:
                break
    return _without_ones(equalized)


def equalize_values(graph: fx.GraphModule, exponent: float, batches: Sequence[Tensor]) -> fx.GraphModule:
    """Return a copy of a float graph in normal form, its channels' values made more alike; the function stays the same.

    A channel whose largest value, of all that its group quantizes, is a share r of the tensor's largest is divided by
    r^exponent, and what reads it multiplied. A tensor has one scale for all of its channels, so that small ones would
    have a handful of codes; to depthwise layers, which have a scale for each, it costs nothing.

    Args:
        graph: The float graph, left as it is.
        exponent: Within (0, 1]; 1 makes all channels as large.
        batches: Normalised images (n, C, H, W).
    """
    equalized = _with_channels_of_constants(graph)
    groups = _Groups(equalized, through_bounds=True)
    groups.tell()
    shares: dict[_Channels, Tensor] = {}
    for node, largest in _largest(equalized, groups.shapes, batches).items():
        group = groups.of(node)
        if group in groups.usable and not all(groups.is_activation(reader) for reader in node.users):
            share = (largest / largest.max().clamp_min(_LEAST)).clamp_min(_SMALLEST)
            shares[group] = torch.maximum(shares.get(group, share), share)
    with torch.no_grad():
        for group, share in shares.items():
            _scale(group, share**-exponent)
    return _without_ones(equalized)


def _with_channels_of_constants(original: fx.GraphModule) -> fx.GraphModule:
    """Return a copy where numbers added to maps are one a channel, and gates of their value read it times ones."""
    graph = copy.deepcopy(original)
    modules, shapes = dict(graph.named_modules()), _shapes(graph)
    for node in list(graph.graph.nodes):
        if len(shapes.get(node, ())) != 4:
            continue
        before = next(iter(node.all_input_nodes), node)
        gate = isinstance(called(node, modules), _GATES) and all(
            op_name(user.target) == "mul" and set(user.args) == {before, node} for user in node.users
        )
        added = op_name(node.target) == "add" and len(node.args) == 2
        number = 1.0 if gate else node.args[1] if added else None
        if not isinstance(number, int | float):
            continue
        name = f"{_PREFIX}{node.name}"
        graph.register_buffer(name, torch.full((1, shapes[before][1], 1, 1), float(number)))
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(name)
            value = graph.graph.call_function(torch.mul, (before, constant)) if gate else constant
        node.args = (value,) if gate else (before, value)
    graph.recompile()
    return graph


def _without_ones(graph: fx.GraphModule) -> fx.GraphModule:
    """Take out what gates are multiplied with where it is 1 for all channels, in place."""
    for node in list(graph.graph.nodes):
        constant = node.args[1] if op_name(node.target) == "mul" and len(node.args) == 2 else None
        if _is_ours(constant) and bool((tensor_at(graph, constant.target) == 1).all()):
            bypass(node, source(node))
            graph.graph.erase_node(constant)
            delattr(graph, str(constant.target))
    graph.recompile()
    return graph


def _is_ours(node: object) -> TypeGuard[fx.Node]:
    return isinstance(node, fx.Node) and node.op == "get_attr" and str(node.target).startswith(_PREFIX)


def _largest(graph: fx.GraphModule, nodes: Collection[fx.Node], batches: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
    """Return the largest absolute value of each channel (axis 1), (C,), of some nodes over all images."""
    found: dict[fx.Node, Tensor] = {}

    def see(node: fx.Node, value: Tensor) -> None:
        if node in nodes and value.dim() > 1:
            largest = value.abs().transpose(0, 1).flatten(1).amax(1)
            found[node] = torch.maximum(found.get(node, largest), largest)

    for batch in batches if nodes else ():
        watch(graph, batch, see)
    return found


class _Groups:
    """The graph's channels in groups, found by walking it once from the input."""

    def __init__(self, graph: fx.GraphModule, *, through_bounds: bool) -> None:
        self.graph, self.modules, self.through_bounds = graph, dict(graph.named_modules()), through_bounds
        self.shapes = {node: shape for node, shape in _shapes(graph).items() if not _is_ours(node)}
        self._of: dict[fx.Node | tuple[str, str], _Channels] = {}
        for node in graph.graph.nodes:
            self._visit(node)
        groups = list(dict.fromkeys(self._of.values()))
        self.usable = [group for group in groups if group.sources and group.sinks and not group.blocked]
        self.skipped = [
            f"{', '.join(sorted(group.sources))} ({group.blocked})"
            for group in groups
            if group.sources and group.blocked not in ("", _OUTPUT)
        ]

    def tell(self) -> None:
        """Log which groups are left as they are."""
        if self.skipped:
            _LOG.warning(
                "%d of %d groups of layers are not equalized, since what lies between passes no scale on: %s%s.",
                len(self.skipped), len(self.skipped) + len(self.usable), "; ".join(self.skipped[:3]),
                "; ..." if self.skipped[3:] else "",
            )  # fmt: skip

    def of(self, node: fx.Node) -> _Channels:
        """Return the group of a tensor."""
        return self._of[node]

    def is_activation(self, node: fx.Node) -> bool:
        """Whether a node is an activation function that runtimes fuse: it reads no quantized values."""
        return isinstance(called(node, self.modules), (nn.ReLU, nn.ReLU6))

    def _at(self, key: fx.Node | tuple[str, str]) -> _Channels:
        return self._of.setdefault(key, _Channels())

    def _join(self, *keys: fx.Node | tuple[str, str]) -> None:
        first = self._at(keys[0])
        for key in keys[1:]:
            other = self._at(key)
            if other is not first:
                first.sources.update(other.sources)
                first.sinks.update(other.sinks)
                first.added += other.added
                first.gates += other.gates
                first.bounded += other.bounded
                first.blocked = first.blocked or other.blocked
                self._of.update({item: first for item, group in self._of.items() if group is other})

    def _visit(self, node: fx.Node) -> None:
        layer, name = called(node, self.modules), str(node.target)
        reads = [other for other in node.all_input_nodes if other in self.shapes]
        constant = node.args[1] if len(node.args) > 1 else None
        if _is_ours(constant):
            group, ours = self._at(reads[0]), tensor_at(self.graph, constant.target)
            if op_name(node.target) == "mul":
                group.gates.append(ours)
            else:
                group.added.append(ours)
                self._join(node, reads[0])
            return
        if isinstance(layer, _LAYERS):
            # Each call of one layer reads, and gives, the same channels.
            self._join((name, "output"), node)
            self._join((name, "input"), reads[0])
            self._at(node).sources[name], self._at(reads[0]).sinks[name] = layer, layer
            if isinstance(layer, nn.Linear) and len(self.shapes[node]) != 2:
                self._block("its channels come last", node, reads[0])
            elif isinstance(layer, nn.Conv2d) and layer.groups > 1 and not _is_depthwise(layer):
                self._block(f"'{name}' has groups", reads[0])
        elif self._passes(node, layer, reads):
            self._join(node, *reads)
            if isinstance(layer, nn.ReLU6):
                self._at(node).bounded.append(node)
        elif node.op != "get_attr":
            reason = _OUTPUT if node.op == "output" else f"'{node.name}'"
            self._block(reason, *([node] if node in self.shapes else []), *reads)

    def _block(self, reason: str, *nodes: fx.Node) -> None:
        for node in nodes:
            self._at(node).blocked = self._at(node).blocked or reason

    def _passes(self, node: fx.Node, layer: nn.Module | None, reads: list[fx.Node]) -> bool:
        """Whether a node gives s x for an input s x, with one s for each channel."""
        if node not in self.shapes or not reads:
            return False
        same_channels = all(self.shapes[other][:2] == self.shapes[node][:2] for other in reads)
        if not same_channels or any(other.op == "get_attr" for other in reads):
            return False
        if node.op == "call_module":
            return isinstance(layer, _HOMOGENEOUS) or (self.through_bounds and isinstance(layer, nn.ReLU6))
        function = op_name(node.target)
        if function == "mul" and len(reads) == 2 and (gate := self._own_gate(reads)) is not None:
            reads.remove(gate)
            return True
        if function == "add":
            return len(node.args) == 2 and all(isinstance(argument, fx.Node) for argument in node.args)
        if function == "mul":
            gates = [other for other in reads if self.shapes[other][2:] == (1, 1)]
            if len(reads) == 2 and len(gates) == 1:  # squeeze and excitation: the gate itself keeps its values
                self._block(f"'{node.name}'", gates[0])
                reads.remove(gates[0])
                return True
            return len(reads) == 1 and any(isinstance(argument, int | float) for argument in node.args)
        if function in ("pad", "constant_pad_nd"):
            return fill_of(node) == 0
        if function in ("flatten", "reshape", "squeeze"):
            return len(self.shapes[node]) == 2 and self.shapes[reads[0]][2:] == (1, 1)
        return function in _HOMOGENEOUS_FUNCTIONS and len(reads) == 1

    def _own_gate(self, reads: list[fx.Node]) -> fx.Node | None:
        """Return the one of two nodes that is a gate of the other, which it reads times a constant of ours."""
        for gate, other in (reads, reads[::-1]):
            scaled = gate.args[0] if isinstance(called(gate, self.modules), _GATES) else None
            if isinstance(scaled, fx.Node) and scaled.args[0] is other and _is_ours(scaled.args[-1]):
                return gate
        return None


def _shapes(graph: fx.GraphModule) -> dict[fx.Node, tuple[int, ...]]:
    """Shapes of the float tensors with a channel axis, for two images."""
    placeholder = next(n for n in graph.graph.nodes if n.op == "placeholder")
    found: dict[fx.Node, tuple[int, ...]] = {}

    def see(node: fx.Node, value: Tensor) -> None:
        if value.is_floating_point():
            found[node] = tuple(value.shape)

    watch(graph, torch.zeros((2, *placeholder.meta["example_shape"])), see)
    return found


def _step(group: _Channels) -> float:
    """Scale one group; return how far the factors are from 1."""
    outputs = torch.stack(
        [tensor_at(layer, "weight").abs().flatten(1).amax(1) for layer in group.sources.values()]
    ).amax(0)
    inputs = torch.stack([_by_input(layer).amax(1) for layer in group.sinks.values()]).amax(0)
    idle = (outputs <= _LEAST) | (inputs <= _LEAST)
    outputs, inputs = (torch.where(idle, torch.ones_like(one), one) for one in (outputs, inputs))
    factors = torch.pow(inputs, 0.5) / torch.pow(outputs, 0.5)
    if group.room is not None:
        whole = torch.minimum(group.whole * factors, group.room).clamp_min(1.0)
        factors, group.whole = whole / group.whole, whole
    _scale(group, factors)
    return float((factors - 1).abs().max())


def _scale(group: _Channels, factors: Tensor) -> None:
    """Multiply the channels of a group, (C,), and divide them again where they are read."""
    for layer in group.sources.values():
        weight = tensor_at(layer, "weight")
        weight.mul_(factors.reshape(-1, *[1] * (weight.dim() - 1)))
        tensor_at(layer, "bias").mul_(factors)
    for constant in group.added:
        constant.mul_(factors.reshape(1, -1, 1, 1))
    for constant in group.gates:
        constant.div_(factors.reshape(1, -1, 1, 1))
    for layer in group.sinks.values():
        weight = tensor_at(layer, "weight")
        axis = 0 if _is_depthwise(layer) else 1
        weight.mul_((1 / factors).reshape([-1 if place == axis else 1 for place in range(weight.dim())]))


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels


def _by_input(layer: nn.Module) -> Tensor:
    weight = tensor_at(layer, "weight").abs()
    return (weight if _is_depthwise(layer) else weight.transpose(0, 1)).flatten(1)
