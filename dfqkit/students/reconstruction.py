"""Blocks of a calibrated student taught, one after the other, to give what the float network's blocks give.

What belongs here: where a network is cut, and how the rounding of weights and the scales of activations are learned.

Sources: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020 (arXiv 2004.10568),
equations 22 to 24, is how each weight learns whether it is rounded up or down. Li et al., "BRECQ", ICLR 2021 (arXiv
2102.05426), section 3.2 and algorithm 1, does so for all layers of a block together, for the block's output. Wei et
al., "QDrop", ICLR 2022 (arXiv 2203.05740), section 4, reads each value of a block's input, and of each quantizer in it,
in float with probability 1/2, and learns activation scales (Esser et al., "Learned Step Size Quantization", 2020) with
the weights' rounding.

Differs from these: weights start from the codes that they have, be they nearest or GPTQ's, and may leave them by one
code towards the float weight. The error is divided by the variance of what the float network gives there, so that
one `PULL` serves all networks. Rates are so many times larger as steps are fewer. Biases are learned too. All errors
count alike, where BRECQ weighs them by the squared gradients of the loss. A chain without branches is cut behind each
layer, as AdaRound does. A block that is no nearer afterwards, with quantized inputs, stays as it was.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as Layer
from torch import Tensor, fx, nn

from dfqkit.students.freezing import round_scales
from dfqkit.students.layerwise import IMAGES, Running
from dfqkit.students.nodes import called, op_name, source, tensor_at
from dfqkit.students.quantizers import activation_internals, activation_proxy
from dfqkit.students.weight_scales import largest_code

#: Ends of the stretched sigmoid (AdaRound, equation 23), and the regulariser's first and last exponent.
GAMMA, ZETA, SHARPEST, FLATTEST = -0.1, 1.1, 20.0, 2.0
#: Share of the steps without regulariser (AdaRound's code), and what it counts beside the relative error.
WARM, PULL = 0.2, 1e-4
#: How far from its code a weight may start: beyond one half it would be rounded to another.
_NEAR = 0.49
#: Images of a step, and the probability with which a value is the quantized one.
BATCH, QUANTIZED = 32, 0.5
#: What all steps together move at most: a weight's variable, a scale of itself, a bias of the output's deviation.
TRAVEL, SCALE_TRAVEL, BIAS_TRAVEL = 10.0, 0.2, 0.1
#: Layers that are learned together, at most: where a network is not cut for longer, each is learned alone.
MOST_LAYERS = 8
#: Pixels of all images that are looked at: 1,024 of 32 x 32.
_PIXELS = 2**20


@dataclass(frozen=True)
class Block:
    """A part of a graph that reads one value and gives one: its nodes in order, the last of which gives it."""

    entry: fx.Node
    nodes: tuple[fx.Node, ...]


def rectified(v: Tensor) -> Tensor:
    """Return how far variables round up their weights, within 0 to 1 (AdaRound, equation 23)."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def unrectified(h: Tensor) -> Tensor:
    """Return the variables that `rectified` makes ``h`` of, for values within 0 to 1."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def undecided(h: Tensor, exponent: float) -> Tensor:
    """Return how far values are from being 0 or 1, a sum (AdaRound, equation 24).

    Example:
        >>> float(undecided(torch.tensor([0.0, 0.5, 0.75, 1.0]), 2.0))
        1.75
    """
    return (1 - (2 * h - 1).abs() ** exponent).sum()


def blocks(graph: fx.GraphModule) -> list[Block]:
    """Cut a student behind each quantizer through which all goes that comes later; parts without layers are left out.

    Of parts of more than `MOST_LAYERS` layers, or that give several outputs, each layer is a block.
    """
    modules, found, part = dict(graph.named_modules()), list[Block](), list[fx.Node]()
    entry, last_uses = next(node for node in graph.graph.nodes if node.op == "placeholder"), fx.Interpreter(graph)
    result, live = next(iter(reversed(graph.graph.nodes))).args[0], {entry}
    for node in graph.graph.nodes:
        live -= set(last_uses.user_to_last_uses.get(node, ()))
        if node.op in ("placeholder", "get_attr", "output") or _batch_size(node):
            continue
        part.append(node)
        live.add(node)
        if not (live == {node} and (activation_proxy(called(node, modules)) is not None or node is result)):
            continue
        layers = [each for each in part if isinstance(called(each, modules), Layer)]
        if len(layers) <= MOST_LAYERS:
            found += [Block(entry, tuple(part))] if layers else []
        else:
            found += [_alone(layer, modules) for layer in layers]
        entry, part = node, []
    return found + [_alone(node, modules) for node in part if isinstance(called(node, modules), Layer)]


def _batch_size(node: fx.Node) -> bool:
    return op_name(node.target) == "sym_size" and node.args[1:] == (0,)


def _alone(layer: fx.Node, modules: dict[str, nn.Module]) -> Block:
    """Return the block of a layer with the activation function and the quantizer that alone read it."""
    nodes = [layer]
    while len(nodes[-1].users) == 1:
        reader = next(iter(nodes[-1].users))
        module = called(reader, modules)
        if not isinstance(module, (nn.ReLU, nn.ReLU6)) and activation_proxy(module) is None:
            break
        nodes.append(reader)
    return Block(source(layer), tuple(nodes))


def reconstruct(
    student: fx.GraphModule,
    reference: fx.GraphModule,
    batches: Sequence[Tensor],
    steps: int,
    *,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Learn codes of weights and, where they may move, scales of activations, block by block, in place.

    The same student, images and steps give the same bytes. Layers that are called several times keep their codes.

    Args:
        student: Calibrated, its weights rounded or not.
        reference: The float graph that it was built from.
        batches: Normalised images (n, C, H, W), those that calibrated it; so many are used as memory is for.
        steps: Of each block.
        advance: Called behind each layer.
    """
    student.eval()
    rng = torch.Generator().manual_seed(0)
    most = max(IMAGES, _PIXELS // batches[0][0, 0].numel())
    images = torch.split(torch.cat(list(batches))[:most], len(batches[0]))
    modules = dict(student.named_modules())
    twins: dict[str, fx.Node] = {node.name: node for node in reference.graph.nodes}
    uses = Counter(id(module.weight_quant) for module in modules.values() if isinstance(module, Layer))

    def twin(node: fx.Node) -> fx.Node:
        while node.name not in twins:  # a quantizer
            node = source(node)
        return twins[node.name]

    found = {block.nodes[0]: (block, twin(block.entry), twin(block.nodes[-1])) for block in blocks(student)}
    ends = [node for _, entry, exit_ in found.values() for node in (entry, exit_)]
    ours, theirs = Running(student, images), Running(reference, images, ends)
    for node in student.graph.nodes:
        if node in found:
            block, entry, exit_ = found[node]
            with torch.no_grad():
                values = torch.cat(ours.values(block.entry)), theirs.take(entry), theirs.take(exit_)
            learned = [
                Rounding(layer, tensor_at(reference, f"{twins[each.name].target}.weight"))
                for each in block.nodes
                if isinstance(layer := called(each, modules), Layer) and uses[id(layer.weight_quant)] == 1
            ]
            scales = [value for each in block.nodes if (value := _range(called(each, modules))) is not None]
            if learned:
                _learn(_Soft(student, block, rng), learned, scales, values, steps, rng)
                student.zero_grad()
                round_scales(student)
        if node.op != "output":
            with torch.no_grad():
                ours.run(node)
        if isinstance(called(node, modules), Layer):
            advance()


def _range(module: nn.Module | None) -> Any:
    """Return the parameter behind an activation quantizer's scale, where it may move."""
    internals = activation_internals(module)
    value = None if internals is None else internals.scaling_impl.value
    return value if value is not None and value.requires_grad else None


class Rounding:
    """Whether each weight of a layer is rounded up or down, as a variable."""

    def __init__(self, layer: Layer, exact: Tensor) -> None:
        self.layer = layer
        self.scale: Tensor = layer.quant_weight().scale.detach()
        self.low, self.high = -largest_code(layer), 2 ** (int(layer.weight_quant.bit_width()) - 1) - 1
        codes = (layer.quant_weight().value.detach() / self.scale).round()
        apart = (exact.detach() / self.scale - codes).clamp(-_NEAR, _NEAR)
        self.floor: Tensor = codes - (apart < 0).to(codes)
        self.variable = unrectified(codes + apart - self.floor).requires_grad_()

    def weight(self, up: Tensor) -> Tensor:
        """Return the weights when each is rounded up so far."""
        return (self.floor + up).clamp(self.low, self.high) * self.scale

    def decide(self) -> None:
        """Round each weight where its variable says."""
        with torch.no_grad():
            tensor_at(self.layer, "weight").copy_(self.weight((self.variable > 0).to(self.floor)))


class _Soft(fx.Interpreter):
    """Runs a block with weights on their way to a code, and with values that skip quantizers at random."""

    def __init__(self, student: fx.GraphModule, block: Block, rng: torch.Generator) -> None:
        super().__init__(student, garbage_collect_values=False)
        self._block, self._rng = block, rng
        self.weights: dict[nn.Module | None, Tensor] = {}
        nodes = student.graph.nodes
        self._constants = {node: self.run_node(node) for node in nodes if node.op == "get_attr"}
        self._sizes = [node for node in nodes if _batch_size(node)]

    def give(self, quantized: Tensor, exact: Tensor | None = None) -> Tensor:
        """Return what the block gives, with some of ``weights``; without the float input nothing skips a quantizer."""
        self._skips = exact is not None
        x = quantized if exact is None else dropped(quantized, exact, self._rng)
        self.env = {**self._constants, **dict.fromkeys(self._sizes, len(x)), self._block.entry: x}
        for node in self._block.nodes:
            self.env[node] = self.run_node(node)
        result: Tensor = self.env[self._block.nodes[-1]]
        return result

    def error(self, values: Sequence[Tensor]) -> float:
        """Return the squared error of what the block gives for all quantized inputs, as it is."""
        self.weights = {}
        with torch.no_grad():
            pairs = zip(torch.split(values[0], BATCH), torch.split(values[2], BATCH), strict=True)
            return float(sum((self.give(x) - wanted).square().sum(dtype=torch.float64) for x, wanted in pairs))

    def run_node(self, n: fx.Node) -> Any:
        """Run a node."""
        module: Any = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if module in self.weights:
            return module.inner_forward_impl(self.env[source(n)], self.weights[module], tensor_at(module, "bias"))
        value = super().run_node(n)
        if activation_proxy(module) is None or not self._skips:
            return value
        return dropped(value, self.env[source(n)], self._rng)


def dropped(quantized: Tensor, exact: Tensor, rng: torch.Generator) -> Tensor:
    """Return values of which each is the quantized one with probability `QUANTIZED` (QDrop, equation 10)."""
    return torch.where(torch.rand(exact.shape, generator=rng).to(exact.device) < QUANTIZED, quantized, exact)


def _learn(
    soft: _Soft,
    learned: Sequence[Rounding],
    scales: Sequence[Tensor],
    values: Sequence[Tensor],
    steps: int,
    rng: torch.Generator,
) -> None:
    """Learn a block's roundings and scales from what it reads, quantized and in float, and what it is to give."""
    quantized, exact, wanted = values
    unit, first = wanted.var(correction=0), soft.error(values)
    if not unit:
        return  # it gives a constant
    biases = [tensor_at(each.layer, "bias") for each in learned]
    stored = [*(tensor_at(each.layer, "weight") for each in learned), *biases, *scales]
    before = [value.detach().clone() for value in stored]
    groups = [[each.variable for each in learned], biases, *([scale] for scale in scales)]
    reach = [BIAS_TRAVEL * float(unit.sqrt()), *(SCALE_TRAVEL * float(scale.detach().abs()) for scale in scales)]
    rates = [TRAVEL / steps, *(2 * each / steps for each in reach)]  # a cosine gives half of its height on average
    optimizer = torch.optim.Adam([{"params": group, "lr": rate} for group, rate in zip(groups, rates, strict=True)])
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups[1:], rates[1:], strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        chosen = torch.randint(len(wanted), (BATCH,), generator=rng).to(wanted.device)
        ups = [rectified(each.variable) for each in learned]
        soft.weights = {each.layer: each.weight(up) for each, up in zip(learned, ups, strict=True)}
        given = soft.give(quantized[chosen], exact[chosen])
        loss = (given - wanted[chosen]).square().mean() / unit
        if step >= WARM * steps:
            exponent = SHARPEST + (FLATTEST - SHARPEST) * (step / steps - WARM) / (1 - WARM)
            loss = loss + PULL * torch.stack([undecided(up, exponent) for up in ups]).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    for each in learned:
        each.decide()
    if not soft.error(values) < first:
        with torch.no_grad():
            for value, old in zip(stored, before, strict=True):
                value.copy_(old)
