"""Where quantizers go on a float graph, as a target wants them.

What belongs here: the plan of all quantizers, and the construction of the fake-quantized graph from Brevitas layers,
whose own placement leaves layers in float on every target. The rules are `placement_rules`; which quantizer a tensor
gets is `quantizers`; how its range is found is `calibration`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import brevitas.nn as qnn
import torch
from torch import fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.folding import add_submodule
from dfqkit.students.inputs import is_input
from dfqkit.students.naming import layer_names
from dfqkit.students.nodes import call_behind, called, tensor_at
from dfqkit.students.placement_rules import Rules
from dfqkit.students.quantizers import activation_quantizer, weight_quantizer
from dfqkit_export.backends.target import Target
from dfqkit_export.errors import RecipeError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.words import did_you_mean


@dataclass(frozen=True, kw_only=True)
class ActivationPlan:
    """One activation quantizer; ``shares`` names the node whose quantizer is used again (same scale).

    ``answers`` says that the graph gives the tensor on the grid too, where it is one of its outputs.
    """

    bits: int
    signed: bool
    shares: str | None = None
    answers: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All quantizers of a student: activations by node name, weight bits by layer name.

    Of tensors that the target could compute in integers, ``floats`` says why rules leave them in float, ``kept`` why
    others stay there: what was asked for, and an input whose grid would be too coarse (`coarse_input`).
    """

    activations: dict[str, ActivationPlan]
    weights: dict[str, int]
    floats: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def plan(
    graph: fx.GraphModule, config: QuantConfig, target: Target, image: ImageSpec, kept: Mapping[str, str] | None = None
) -> Plan:
    """Decide every quantizer of a float graph in normal form, as a scheme and a target want it.

    An activation that an inner convolution or linear layer multiplies gets the scheme's activation bits, the input of
    the first and the last layer gets ``first_last`` bits, all others ``elementwise`` bits. What 8 bits cannot hold
    (`islands`) stays in float until a layer reads it, and so do the nodes named in ``kept``, each with its reason.

    Raises:
        RecipeError: When the scheme names what the graph does not have.
    """
    nodes = [node for node in graph.graph.nodes if node.op in ("call_module", "call_function")]
    names = {name: node.name for node in nodes for name in (str(node.target), node.name)}
    if unknown := [name for name in config.in_float if name not in names]:
        message = (
            f"quant.in_float names '{unknown[0]}', which the network does not have.{did_you_mean(unknown[0], names)} "
            "Names are those of layers and additions in a report."
        )
        raise RecipeError(message)
    asked = {names[name]: "`quant.in_float` names it" for name in config.in_float}
    rules = Rules(graph, config, target, image, asked | dict(kept or {}))
    activations: dict[str, ActivationPlan] = {}
    for node in graph.graph.nodes:
        shared = rules.shared_source(node)
        if shared is not None or rules.wants_quantizer(node):
            origin = node if shared is None else shared
            activations[node.name] = ActivationPlan(
                bits=rules.bits(origin),
                signed=not rules.nonnegative(origin),
                shares=shared.name if shared else None,
                answers=node in rules.raw,
            )
    whole = {name: item for name, item in activations.items() if item.shares is None or item.shares in activations}
    weights: dict[str, int] = {}
    for node in rules.weighted_nodes:  # one layer's calls share its weights: the most bits that any asks for
        weights[str(node.target)] = max(rules.weight_bits(node), weights.get(str(node.target), 0))
    reasons = {node.name: reason for node, reason in rules.kept.items()}
    return Plan(activations=whole, weights=weights, floats=rules.floats(), kept=reasons)


def quantized_graph(graph: fx.GraphModule, config: QuantConfig, target: Target, image: ImageSpec) -> fx.GraphModule:
    """Return a fake-quantized copy of a float graph, made of Brevitas layers, not yet calibrated.

    Node and layer names stay those of ``graph``; the quantizer of node ``n`` is the module ``quant.n``. A layer that is
    called again is a layer of its own there (`layer_names`), with the same weights and a bias for that call's input.
    The plan's tensors in float, with their reasons, are ``meta["floats"]`` and ``meta["kept"]``.

    Raises:
        TargetError: When the target cannot run the scheme.
    """
    config.check(target)
    decided = plan(graph, config, target, image)
    student = copy.deepcopy(graph)
    student.meta |= {"floats": decided.floats, "kept": decided.kept}
    student.meta |= {"additions_agree": target.additions_agree, "sums_fit": target.sums_fit}
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
            exact = not is_input(nodes[name]) and not isinstance(called(nodes[name], modules), nn.ReLU6)
            kind = activation_quantizer(config, item.bits, target, signed=item.signed, exact_scale=exact)
            quantizers.add_module(name, qnn.QuantIdentity(act_quant=kind, return_quant_tensor=False))
    for name, item in decided.activations.items():
        call_behind(nodes[name], f"quant.{item.shares or name}", outputs=item.answers)
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
        elif isinstance(layer, nn.ConvTranspose2d):
            twin = qnn.QuantConvTranspose2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride, padding=layer.padding,
                output_padding=layer.output_padding, dilation=layer.dilation, **options,
            )  # fmt: skip
        else:
            twin = qnn.QuantLinear(layer.in_features, layer.out_features, **options)
    with torch.no_grad():
        for name in ("weight", "bias"):
            tensor_at(twin, name).copy_(tensor_at(layer, name))
    if first is not None:
        twin.weight, twin.weight_quant = first.weight, first.weight_quant
    return twin
