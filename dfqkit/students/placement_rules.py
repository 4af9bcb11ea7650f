"""The rules by which a tensor of a float graph gets a quantizer: what a target fuses, and what 8 bits hold.

What belongs here: who reads a tensor and who computes it, in integers or not. They follow what ONNX Runtime and
TensorRT were seen to fuse. What values a tensor holds is `islands`; the fake-quantized graph is built in `placement`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.inputs import image_of, is_input
from dfqkit.students.islands import MATMUL, Islands, nonnegative
from dfqkit.students.nodes import REGRID, STRUCTURAL, called, fill_of, op_name, source, watch
from dfqkit.students.tail import tail_of
from dfqkit_export.backends.target import Target
from dfqkit_export.images.pixels import PIXELS
from dfqkit_export.images.spec import ImageSpec

WEIGHTED = (nn.Conv2d, nn.Linear)
_RELU = (nn.ReLU, nn.ReLU6)
_POOLING = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
#: What runs in integers only where all its tensors come in codes, by the ONNX operator that a target's table names.
_OPERATORS = {"add": "Add", "mul": "Mul", "cat": "Concat", "leaky_relu": "LeakyRelu"} | dict.fromkeys(MATMUL, "MatMul")
_MODULES: dict[type[nn.Module], str] = {
    nn.Sigmoid: "Sigmoid", nn.AvgPool2d: "AveragePool", nn.AdaptiveAvgPool2d: "GlobalAveragePool", nn.ReLU: "Relu",
    nn.ReLU6: "Clip", nn.Hardtanh: "Clip", nn.Hardsigmoid: "HardSigmoid",
}  # fmt: skip
#: Fewest codes that a standard deviation of a channel may have. ImageNet's input has 53, with an error of -45 dB; with
#: 24 it is -38.6 dB, a few dB below what 8 bits cost the rest of a network, with 9 it costs more than all the rest.
LEAST_CODES = 24.0
#: What only an answer's form is made of: behind a network's last layers, decoding begins here.
_DECODING_WORDS = (
    "cat stack sigmoid hardsigmoid softmax _softmax exp split split_with_sizes chunk unbind select getitem"
)
_DECODING = frozenset(f"{_DECODING_WORDS} reshape permute transpose slice".split())
DECODED = "behind the last layers answers are decoded: tensors of different ranges (boxes, scores) would share a grid"
PARTED = "it gives two outputs (scores and distances), which would have one grid for both"
EXPECTED = "it decodes: it weighs a softmax, which gives the mean of a distribution, with numbers that must be exact"
UNTURNED = "the target has no integer kernel for this transposed convolution"


class Rules:
    """The placement rules, with what they need to know about the graph."""

    def __init__(
        self, graph: fx.GraphModule, config: QuantConfig, target: Target, image: ImageSpec, kept: Mapping[str, str]
    ) -> None:
        self.modules = dict(graph.named_modules())
        self.config, self.target = config, target
        self.nodes = list(graph.graph.nodes)
        self.tensors, unbounded, maps = _float_tensors(graph, image)
        self.kept = {node: kept[node.name] for node in self.nodes if node.name in kept}
        for node in filter(is_input, self.nodes):
            if reason := coarse_input(image_of(node, image), target):
                self.kept[node] = reason
        self.islands = Islands(graph, self.tensors, unbounded, set(self.kept))
        self.turned = set[fx.Node]()
        for node in self.nodes:  # in order: signs are told by the layers before
            self.turned |= {node} if self._turned(node) else set()
        self.weighted_nodes = [n for n in self.nodes if self.kind(n) == "weighted"]
        self.outputs = tail_of(self.nodes[-1].all_input_nodes, self.modules, self._through_structure)
        self.first = {n for n in self.weighted_nodes if not self._meets_weighted(n, lambda m: m.all_input_nodes)}
        self.last = {n for n in self.weighted_nodes if not self._meets_weighted(n, lambda m: list(m.users))}
        self.last |= self.outputs.intersection(self.weighted_nodes)  # another output may go on from there
        self.decoded = self._behind_the_last_layers()
        self.raw, self.parted = self._raw_maps(maps)

    def module(self, node: object) -> nn.Module | None:
        """Return the module that a node calls, or None."""
        return called(node, self.modules)

    def kind(self, node: fx.Node) -> str:
        """Return what a node is to placement: input, weighted, structural, regrid, compute or none."""
        module = self.module(node)
        function = op_name(node.target) if node.op == "call_function" else ""
        if is_input(node):
            return "input"
        if (isinstance(module, WEIGHTED) or node in self.turned) and not self._expects(node):
            return "weighted"
        if isinstance(module, nn.MaxPool2d):
            return self._kind_of_maximum(node)
        if function in STRUCTURAL:
            return "structural"
        if fill_of(node):
            return "structural" if self._ignored(node) else "compute"  # a constant has to lie within the range
        if function in REGRID:
            return "regrid"
        return "compute" if node.op in ("call_module", "call_function") else "none"

    def _turned(self, node: fx.Node) -> bool:
        """Whether a node is a transposed convolution that the target computes on codes as its input has them."""
        layer, rule = self.module(node), self.target.rule("ConvTranspose")
        if not isinstance(layer, nn.ConvTranspose2d) or rule is None or layer.groups > 1:
            return False  # with groups, an output channel is no slice of the weights, and has no scale of its own
        target = self.target
        space = target.unsigned_activations if self.nonnegative(source(node)) else target.signed_activations
        return space in rule.activations.value

    def _expects(self, node: fx.Node) -> bool:
        """Whether a layer weighs a softmax, as decoders do that take a distance for the mean of a distribution."""
        layer = self.module(node)
        single = isinstance(layer, WEIGHTED) and len(layer.weight) == 1
        return single and op_name(self._through_structure(source(node)).target) in ("softmax", "_softmax")

    def _kind_of_maximum(self, node: fx.Node) -> str:
        before = node.args[0]
        if fill_of(before) and self._ignored(before):  # type: ignore[arg-type]
            return "regrid"
        return "compute" if before in self.islands.filled else "structural"

    def _ignored(self, pad: fx.Node) -> bool:
        """Whether a constant pad only ever loses in maxima: it is below 0, and no window lies in it altogether."""
        fill, widths = fill_of(pad), pad.args[1]
        pools = [self.module(user) for user in pad.users]
        if not fill or fill > 0 or not isinstance(widths, Sequence) or len(widths) > 4:
            return False
        across, down = widths[:2], widths[2:]
        return all(
            isinstance(pool, nn.MaxPool2d)
            and all(isinstance(width, int) and width < _extent(pool, 1) for width in across)
            and all(isinstance(width, int) and width < _extent(pool, 0) for width in down)
            for pool in pools
        )

    def moves(self, node: fx.Node) -> bool:
        """Whether an operator only moves values."""
        return self.kind(node) in ("structural", "regrid")

    def _through_structure(self, node: fx.Node) -> fx.Node:
        while self.moves(node):
            node = source(node)
        return node

    def _raw_maps(self, maps: set[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
        """Return the convolutions that give an output its map, where integer kernels must write codes, and the others.

        Many numbers in one map are no classes of an image, of which codes make ties; what gives two outputs (scores and
        distances) would have one grid for both, and is one of the others.
        """
        if not self.target.quantize_outputs:
            return set(), set()
        ends = [tail_of([each], self.modules, self._through_structure) for each in self.nodes[-1].all_input_nodes]
        counts = Counter(node for tail in ends for node in tail & maps.intersection(self.weighted_nodes))
        raw = {node for node, count in counts.items() if count == 1}
        return raw, counts.keys() - raw

    def _behind_the_last_layers(self) -> set[fx.Node]:
        """Return what makes boxes, scores and points of raw heads: no layer and no matrix product reads it any more.

        It begins with what splits, joins or bounds a head's numbers. What only adds or averages maps is none.
        """
        layers = {n for n in self.nodes if self.kind(n) == "weighted" or op_name(n.target) in MATMUL}
        in_front, behind, found = set[fx.Node](), set[fx.Node](), set[fx.Node]()
        for node in reversed(self.nodes):
            in_front |= {node} if layers.union(in_front).intersection(node.users) else set()
        for node in self.nodes:
            behind |= {node} if layers.union(behind).intersection(node.all_input_nodes) else set()
            begins = op_name(node.target) in _DECODING or isinstance(self.module(node), (nn.Sigmoid, nn.Hardsigmoid))
            if node in behind - in_front - layers and (begins or found.intersection(node.all_input_nodes)):
                found.add(node)
        return found

    def _meets_weighted(self, node: fx.Node, step: Callable[[fx.Node], list[fx.Node]]) -> bool:
        """Whether another weighted layer lies before or behind: the first and the last one need not be end nodes."""
        seen, ahead = {node}, step(node)
        while ahead:
            other = ahead.pop()
            if other in seen:
                continue
            if self.kind(other) == "weighted":
                return True
            seen.add(other)
            ahead.extend(step(other))
        return False

    def nonnegative(self, node: object) -> bool:
        """Return whether no value of a node can be below 0."""
        return nonnegative(node, self.islands, self.moves)

    def consumers(self, node: fx.Node) -> list[fx.Node]:
        """Users that compute with the values of ``node``, looking through operators that only move them."""
        found: list[fx.Node] = []
        for user in node.users:
            found.extend(self.consumers(user) if self.moves(user) else [user])
        return found

    def weight_bits(self, node: fx.Node) -> int:
        """Return the bits of a layer's weights."""
        edge = node in self.first or node in self.last or getattr(self.module(node), "affine_norm", False)
        return (self.config.first_last if edge else None) or self.config.weight_bits

    def bits(self, node: fx.Node) -> int:
        """Bits of a node's output: the least that a consumer asks for and the target has; 8 of an answer itself."""
        asked = [8] if node in self.raw else []
        for user in self.consumers(node):
            if self.kind(user) == "weighted" and not getattr(self.module(user), "affine_norm", False):
                edge = user in self.first or user in self.last
                asked.append((self.config.first_last if edge else None) or self.config.activation_bits)
            elif user.op != "output" or node not in self.raw:
                asked.append(self.config.elementwise or self.config.activation_bits)
        return max(min(asked, default=self.config.activation_bits), min(self.target.signed_activations.bits))

    def shared_source(self, node: fx.Node) -> fx.Node | None:
        """Return the node whose quantizer serves again behind an operator that only moves values."""
        if self.kind(node) != "regrid" or node not in self.tensors:
            return None
        # Where inputs alone are quantized, an addition still wants the pair of its residual branch right before it.
        if not self.target.quantize_outputs and not any(user.target is torch.add for user in self.consumers(node)):
            return None
        origin = self._through_structure(node)
        return origin if origin in self.tensors else None

    def wants_quantizer(self, node: fx.Node) -> bool:
        """Return whether a quantizer of its own goes behind a node."""
        kind, readers = self.kind(node), self.consumers(node)
        if node not in self.tensors or self.moves(node) or kind == "none":
            return False
        if node in self.kept or node in self.islands.filled:
            return False
        if node in self.outputs and all(reader.op == "output" or reader in self.outputs for reader in readers):
            return node in self.raw  # other outputs stay float: with 8-bit logits many of 1000 classes tie
        if not readers:
            return False
        if kind == "input":
            return True
        fuses = (kind == "weighted" or node.target is torch.add) and len(node.users) == 1
        if fuses and isinstance(self.module(next(iter(node.users))), _RELU):
            return False
        if not self.target.quantize_outputs:
            return any(self._reads_quantized(reader, node) for reader in readers)
        return any(self.integer(reader) for reader in readers) or self.integer(node, writes=True)

    def integer(self, node: fx.Node, *, writes: bool = False) -> bool:
        """Whether the target computes a node on codes; with ``writes``, whether its kernel wants to write codes too."""
        if self.kind(node) == "weighted":
            return self._through_structure(source(node)) not in self.kept
        operator = self._onnx_operator(node)
        rule = self.target.rule(operator)
        if rule is None or not rule.integer or node in self.islands.precise or node in self.decoded:
            return False
        operands = [argument for argument in self._operands(node) if argument in self.tensors]
        if len(operands) < len(self._operands(node)):
            return False  # a constant operand is not quantized
        if operator == "MatMul":
            return not (writes or any(each in self.islands.filled or each in self.kept for each in operands))
        if rule.placement.value == "through":
            before = self._through_structure(source(node))
            return is_input(before) or self.integer(before)
        return self.islands.holds(node) and all(self.islands.holds(each) for each in operands)

    def _onnx_operator(self, node: fx.Node) -> str:
        """Return the operator of a target's table that a node becomes; nothing where it has none there."""
        if node.op == "call_function":
            return _OPERATORS.get(op_name(node.target), "")
        module = self.module(node)
        return "" if module is None else _MODULES.get(type(module), "")

    def _operands(self, node: fx.Node) -> list[Any]:
        """Tensors and constants that an operator computes with, its options left out."""
        name = op_name(node.target) if node.op == "call_function" else ""
        if name == "cat":
            parts: Any = node.args[0]
            return list(parts)
        return list(node.args[:2] if name in ("add", "mul") or name in MATMUL else node.args[:1])

    def floats(self) -> dict[str, str]:
        """Return why each tensor that the target could have in codes stays in float, `kept` ones left out."""
        found = {node.name: EXPECTED for node in self.nodes if self._expects(node)}
        found |= {node.name: PARTED for node in self.nodes if node in self.parted}
        turned = (node for node in self.nodes if isinstance(self.module(node), nn.ConvTranspose2d))
        found |= {node.name: UNTURNED for node in turned if node not in self.turned}
        for node in self.nodes:
            rule = self.target.rule(self._onnx_operator(node))
            reason = self.islands.reason(node) if node in self.tensors and node not in self.kept else ""
            operands = self._operands(node) if node in self.decoded else ()
            if len(operands) > 1 and all(operand in self.tensors for operand in operands):
                reason = reason or DECODED
            if rule is not None and rule.integer and reason and not self.wants_quantizer(node):
                found[node.name] = reason
        return found

    def _reads_quantized(self, reader: fx.Node, node: fx.Node) -> bool:
        """Targets that quantize inputs only: those of weighted layers, pooling, and an addition's residual branch."""
        if reader in self.decoded:
            return False
        if self.kind(reader) == "weighted":
            return True
        if isinstance(self.module(reader), _POOLING):
            return self.islands.holds(node)
        held = reader.target is torch.add and all(self.islands.holds(each) for each in reader.all_input_nodes)
        return held and node is not self._main_branch(reader)

    def _main_branch(self, addition: fx.Node) -> fx.Node | None:
        """Return the convolution that an addition fuses into: the last of its inputs that is one."""
        inputs = [a for a in addition.all_input_nodes if self.kind(a) == "weighted" and len(a.users) == 1]
        return max(inputs, key=self.nodes.index, default=None)


def _extent(pool: nn.MaxPool2d, axis: int) -> int:
    """How far a pool's window reaches along an axis (0 down, 1 across)."""
    kernel, dilation = (v[axis] if isinstance(v, tuple) else v for v in (pool.kernel_size, pool.dilation))
    return int(dilation * (kernel - 1) + 1)


def coarse_input(image: ImageSpec, target: Target) -> str:
    """Return why the input stays in float: one grid over all that [0, 1] allows is too coarse for a channel of it.

    A normalised channel has a standard deviation of 1, so that the number of codes for it is the same for all channels,
    and what a channel of low contrast may reach decides it.
    """
    low, high = image.bounds()
    width = 2 * max(-low, high) if target.signed_activations.symmetric else max(high, 0) - min(low, 0)
    codes = 255 / width
    whole = image.dtype == PIXELS and width <= image.pixel_range / max(image.std)  # every pixel has a code of its own
    if codes >= LEAST_CODES or whole:
        return ""
    channel = min(range(len(image.std)), key=image.std.__getitem__)
    return (
        f"8 bits of all that an image in [0, 1] may hold, {low:.3g} to {high:.3g} standard deviations, leave "
        f"{codes:.2g} codes for one standard deviation, of at least {LEAST_CODES:g} (channel {channel} has std "
        f"{image.std[channel]:.3g})"
    )


def _float_tensors(graph: fx.GraphModule, image: ImageSpec) -> tuple[set[fx.Node], set[fx.Node], set[fx.Node]]:
    """Nodes whose value is a float tensor, those of them that hold what is not finite, and those that are maps.

    The others are sizes, lists and constants.
    """
    found, unbounded, maps = set[fx.Node](), set[fx.Node](), set[fx.Node]()

    def see(node: fx.Node, value: Tensor) -> None:
        if value.is_floating_point() and node.op != "get_attr":
            found.add(node)
            if not bool(value.isfinite().all()):
                unbounded.add(node)
            if value.dim() == 4 and value[0, 0].numel() > 1:
                maps.add(node)

    noise = torch.rand((2, *image.shape), generator=torch.Generator().manual_seed(0))
    watch(graph, image.normalize(noise), see)
    return found, unbounded, maps
