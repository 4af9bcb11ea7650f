"""Where quantizers go on a float graph, as a target wants them.

What belongs here: the rules of placement and the construction of the fake-quantized graph from Brevitas layers. The
rules follow what ONNX Runtime and TensorRT were seen to fuse; Brevitas' own placement leaves layers in float on both.
Which quantizer a tensor gets is `scheme`; how its range is found is `calibration`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brevitas.nn as qnn
import torch
from torch import Tensor, fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.folding import add_submodule
from dfqkit.students.naming import layer_names
from dfqkit.students.nodes import call_behind, called, op_name, source, tensor_at
from dfqkit.students.quantizers import activation_quantizer, weight_quantizer
from dfqkit_export.backends.target import Target
from dfqkit_export.images.spec import ImageSpec

_WEIGHTED = (nn.Conv2d, nn.Linear)
_NONNEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid)
_RELU = (nn.ReLU, nn.ReLU6)
_POOLING = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_STRUCTURAL = {"max_pool2d", "flatten", "reshape", "permute", "transpose", "slice", "unsqueeze", "squeeze", "expand"}
_STRUCTURAL |= {"chunk", "split", "split_with_sizes", "unbind"}
#: Operators that move values without changing them, but behind which a runtime wants Q/DQ again: the same scale serves.
_REGRID = {"getitem", "pad", "constant_pad_nd", "select"}


@dataclass(frozen=True, kw_only=True)
class ActivationPlan:
    """One activation quantizer; ``shares`` names the node whose quantizer is used again (same scale)."""

    bits: int
    signed: bool
    shares: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All quantizers of a student: activations by node name, weight bits by layer name."""

    activations: dict[str, ActivationPlan]
    weights: dict[str, int]


def plan(graph: fx.GraphModule, config: QuantConfig, target: Target, image: ImageSpec) -> Plan:
    """Decide every quantizer of a float graph in normal form, as a scheme and a target want it.

    An activation that an inner convolution or linear layer multiplies gets the scheme's activation bits, the input of
    the first and the last layer gets ``first_last`` bits, all others ``elementwise`` bits.
    """
    rules = _Rules(graph, config, target, image)
    activations: dict[str, ActivationPlan] = {}
    for node in graph.graph.nodes:
        shared = rules.shared_source(node)
        if shared is not None or rules.wants_quantizer(node):
            origin = node if shared is None else shared
            activations[node.name] = ActivationPlan(
                bits=rules.bits(origin), signed=not rules.nonnegative(origin), shares=shared.name if shared else None
            )
    kept = {name: item for name, item in activations.items() if item.shares is None or item.shares in activations}
    weights: dict[str, int] = {}
    for node in rules.weighted_nodes:  # one layer's calls share its weights: the most bits that any asks for
        weights[str(node.target)] = max(rules.weight_bits(node), weights.get(str(node.target), 0))
    return Plan(activations=kept, weights=weights)


class _Rules:
    """The placement rules, with what they need to know about the graph."""

    def __init__(self, graph: fx.GraphModule, config: QuantConfig, target: Target, image: ImageSpec) -> None:
        self.modules = dict(graph.named_modules())
        self.config, self.target = config, target
        self.nodes = list(graph.graph.nodes)
        self.tensors = _float_tensors(graph, image)
        self.weighted_nodes = [n for n in self.nodes if isinstance(self.module(n), _WEIGHTED)]
        self.outputs = {self._through_structure(node) for node in self.nodes[-1].all_input_nodes}
        self.first = {n for n in self.weighted_nodes if not self._meets_weighted(n, lambda m: m.all_input_nodes)}
        self.last = {n for n in self.weighted_nodes if not self._meets_weighted(n, lambda m: list(m.users))}
        self.last |= self.outputs.intersection(self.weighted_nodes)  # another output may go on from there

    def module(self, node: object) -> nn.Module | None:
        return called(node, self.modules)

    def kind(self, node: fx.Node) -> str:
        module = self.module(node)
        function = op_name(node.target) if node.op == "call_function" else ""
        if node.op == "placeholder":
            return "input"
        if isinstance(module, _WEIGHTED):
            return "weighted"
        if isinstance(module, nn.MaxPool2d) or function in _STRUCTURAL:
            return "structural"
        if function in _REGRID:
            return "regrid"
        return "compute" if node.op in ("call_module", "call_function") else "none"

    def moves(self, node: fx.Node) -> bool:
        """Whether an operator only moves values."""
        return self.kind(node) in ("structural", "regrid")

    def _through_structure(self, node: fx.Node) -> fx.Node:
        while self.moves(node):
            node = source(node)
        return node

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
        if not isinstance(node, fx.Node):
            return isinstance(node, (int, float)) and node >= 0
        if isinstance(self.module(node), _NONNEGATIVE):
            return True
        if self.moves(node) or isinstance(self.module(node), _POOLING):
            return self.nonnegative(node.args[0])
        if node.target in (torch.add, torch.mul):
            return all(self.nonnegative(a) for a in node.args)
        if node.target is torch.cat:
            parts: Any = node.args[0]
            return all(self.nonnegative(part) for part in parts)
        return False

    def consumers(self, node: fx.Node) -> list[fx.Node]:
        """Users that compute with the values of ``node``, looking through operators that only move them."""
        found: list[fx.Node] = []
        for user in node.users:
            found.extend(self.consumers(user) if self.moves(user) else [user])
        return found

    def weight_bits(self, node: fx.Node) -> int:
        edge = node in self.first or node in self.last or getattr(self.module(node), "affine_norm", False)
        return (self.config.first_last if edge else None) or self.config.weight_bits

    def bits(self, node: fx.Node) -> int:
        """Bits of a node's output: the least that any of its consumers asks for."""
        asked = []
        for user in self.consumers(node):
            if self.kind(user) == "weighted" and not getattr(self.module(user), "affine_norm", False):
                edge = user in self.first or user in self.last
                asked.append((self.config.first_last if edge else None) or self.config.activation_bits)
            else:
                asked.append(self.config.elementwise or self.config.activation_bits)
        return min(asked, default=self.config.activation_bits)

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
        kind, readers = self.kind(node), self.consumers(node)
        if node not in self.tensors or self.moves(node) or kind == "none":
            return False
        if node in self.outputs and all(reader.op == "output" for reader in readers):
            return False  # outputs stay float: with 8-bit logits many of 1000 classes tie
        if not readers:
            return False
        if kind == "input":
            return True
        fuses = (kind == "weighted" or node.target is torch.add) and len(node.users) == 1
        if fuses and isinstance(self.module(next(iter(node.users))), _RELU):
            return False
        return self.target.quantize_outputs or any(self._reads_quantized(reader, node) for reader in readers)

    def _reads_quantized(self, reader: fx.Node, node: fx.Node) -> bool:
        """Targets that quantize inputs only: those of weighted layers, pooling, and an addition's residual branch."""
        if isinstance(self.module(reader), (*_WEIGHTED, *_POOLING)):
            return True
        return reader.target is torch.add and node is not self._main_branch(reader)

    def _main_branch(self, addition: fx.Node) -> fx.Node | None:
        """Return the convolution that an addition fuses into: the last of its inputs that is one."""
        inputs = [a for a in addition.all_input_nodes if self.kind(a) == "weighted" and len(a.users) == 1]
        return max(inputs, key=self.nodes.index, default=None)


def _float_tensors(graph: fx.GraphModule, image: ImageSpec) -> set[fx.Node]:
    """Nodes whose value is a float tensor; the others are sizes, lists and constants."""
    found: set[fx.Node] = set()

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and value.is_floating_point() and n.op != "get_attr":
                found.add(n)
            return value

    device = next((p.device for p in graph.parameters()), torch.device("cpu"))
    with torch.no_grad():
        Recorder(graph).run(torch.zeros((2, *image.shape), device=device))
    return found


def quantized_graph(graph: fx.GraphModule, config: QuantConfig, target: Target, image: ImageSpec) -> fx.GraphModule:
    """Return a fake-quantized copy of a float graph, made of Brevitas layers, not yet calibrated.

    Node and layer names stay those of ``graph``; the quantizer of node ``n`` is the module ``quant.n``. A layer that is
    called again is a layer of its own there (`layer_names`), with the same weights and a bias for that call's input.

    Raises:
        TargetError: When the target cannot run the scheme.
    """
    config.check(target)
    decided = plan(graph, config, target, image)
    student = copy.deepcopy(graph)
    names = layer_names(student)
    for name, bits in decided.weights.items():
        layer = student.get_submodule(name)
        student.set_submodule(name, _quant_layer(layer, config, bits, target))
        for node in [n for n in names if n.target == name and names[n] != name]:
            add_submodule(student, names[node], _quant_layer(layer, config, bits, target, student.get_submodule(name)))
            node.target = names[node]
    modules, nodes = dict(student.named_modules()), {node.name: node for node in student.graph.nodes}
    quantizers = nn.Module()
    student.add_submodule("quant", quantizers)
    for name, item in decided.activations.items():
        if item.shares is None:
            # The input's scale only ever multiplies, and ReLU6 ends at 6: other short numbers (see calibration).
            exact = nodes[name].op != "placeholder" and not isinstance(called(nodes[name], modules), nn.ReLU6)
            kind = activation_quantizer(config, item.bits, target, signed=item.signed, exact_scale=exact)
            quantizers.add_module(name, qnn.QuantIdentity(act_quant=kind, return_quant_tensor=False))
    for name, item in decided.activations.items():
        call_behind(nodes[name], f"quant.{item.shares or name}")
    student.graph.lint()
    student.recompile()
    # Brevitas makes the state of activation quantizers on the CPU, whatever the layers' device.
    return student.to(next(graph.parameters()).device)


def _quant_layer(
    layer: nn.Module, config: QuantConfig, bits: int, target: Target, first: nn.Module | None = None
) -> nn.Module:
    """Return the Brevitas twin of a float layer, with its weights: those of ``first``, its twin for another call.

    The bias stays float until export.
    """
    options = {
        "bias": True,
        "weight_quant": weight_quantizer(config, bits, target),
        "bias_quant": None,
        "return_quant_tensor": False,
        "device": layer.weight.device,
    }
    # Brevitas layers draw initial weights: keep the caller's random state as it was.
    with torch.random.fork_rng(devices=[]):
        if isinstance(layer, nn.Conv2d):
            twin: nn.Module = qnn.QuantConv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride, padding=layer.padding,
                dilation=layer.dilation, groups=layer.groups, **options,
            )  # fmt: skip
        else:
            twin = qnn.QuantLinear(layer.in_features, layer.out_features, **options)
    with torch.no_grad():
        for name in ("weight", "bias"):
            tensor_at(twin, name).copy_(tensor_at(layer, name))
    if first is not None:
        twin.weight, twin.weight_quant = first.weight, first.weight_quant
    return twin
