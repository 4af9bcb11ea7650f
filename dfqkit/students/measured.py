"""What a measurement shows that no rule tells: tensors of a calibrated student whose 8 bits cost a collapse.

What belongs here: which quantizers do so on images that calibrated nothing, and how a student goes on without them.
Weights are in float meanwhile, as they are while ranges are calibrated: what is seen is the activations' doing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from torch import Tensor, fx, nn

from dfqkit.students.nodes import bypass, called, op_name, source, watch
from dfqkit.students.quantizers import EndingBehind, activation_proxy

#: Images that the measurement takes, at most, and passes over them: enough to find a handful of tensors among hundreds.
IMAGES, PASSES = 16, 64
#: What 8 bits of a tensor must leave of the outputs, alone and all together (dB). On digits, files at 22 dB and above
#: lost nothing, at 11 dB three points, at 8 dB five; nets that quantize well lie above 27.
COLLAPSE = 15.0
#: What leaving tensors in float must gain (dB), and the largest share of them. Where more of them are below, the
#: network amplifies any noise and no tensor is to blame: in a MobileNetV2 with random weights many lie at 5 to 12 dB.
GAIN, MOST = 6.0, 0.1
#: Fewest of the 256 codes of a joined tensor that each of its parts should fill, and what the joined tensor's 8 bits
#: alone must leave of the outputs where one fills fewer (dB): what this project asks of every output.
FILLED, ENOUGH = 16, 25.0

_PREFIX = "quant."
_JOINING = frozenset({"cat", "stack"})


def collapsing(student: fx.GraphModule, batches: Sequence[Tensor]) -> dict[str, float]:
    """Return the nodes whose 8-bit quantizers cost a collapse, each with what its own leaves of the outputs, in dB.

    Noise adds up, so that groups are measured and those that hold a culprit are halved: one pass for a network without
    any. Tensors of fewer bits are in float meanwhile: their loss was asked for.

    Args:
        student: Calibrated.
        batches: Normalised images (n, C, H, W) that took no part in the calibration; no more than `IMAGES` are used.
    """
    student.eval()
    with torch.no_grad(), _float_weights(student):
        return _collapsing(student, torch.cat(list(batches))[:IMAGES])


def _collapsing(student: fx.GraphModule, images: Tensor) -> dict[str, float]:
    modules = dict(student.named_modules())
    calls = (str(node.target) for node in student.graph.nodes if node.op == "call_module")
    names = [name for name in dict.fromkeys(calls) if name.startswith(_PREFIX) and is_eight_bits(modules[name])]
    reference = _outputs(student, images, ())

    def left(group: Sequence[str]) -> float:
        return _sqnr(reference, _outputs(student, images, group))

    before, most = left(names), max(2, round(MOST * len(names)))
    found: dict[str, float] = {}
    groups = [names] if before < COLLAPSE else []
    passes = 0
    while groups and len(found) <= most and passes < PASSES:
        group, passes = groups.pop(), passes + 1
        remaining = left(group)
        if remaining >= COLLAPSE:
            continue
        if len(group) == 1:
            found[group[0].removeprefix(_PREFIX)] = remaining
        else:
            groups += [group[: len(group) // 2], group[len(group) // 2 :]]
    others = [name for name in names if name.removeprefix(_PREFIX) not in found]
    blamed = not groups and 0 < len(found) <= most and left(others) >= before + GAIN
    return found if blamed else {}


def unlike(student: fx.GraphModule, batches: Sequence[Tensor]) -> dict[str, str]:
    """Return the joined tensors (concatenated, stacked) one grid for which is too coarse for a part, each with why.

    Args:
        student: Calibrated.
        batches: As for `collapsing`.
    """
    student.eval()
    images, found = torch.cat(list(batches))[:IMAGES], dict[str, str]()
    modules, widths = dict(student.named_modules()), dict[fx.Node, float]()

    def see(node: fx.Node, value: Tensor) -> None:
        if value.is_floating_point() and value.numel():
            widths[node] = float(value.amax() - value.amin())

    with torch.no_grad(), _float_weights(student):
        watch(student, images, see)
        for node in [n for n in student.graph.nodes if n.op == "call_function" and op_name(n.target) in _JOINING]:
            name = f"{_PREFIX}{node.name}"
            if name not in modules or not is_eight_bits(modules[name]):
                continue
            step = float(activation_proxy(modules[name]).scale().detach())
            parts = {part.name.removeprefix("quant_"): widths.get(part, 0.0) / step for part in node.args[0]}
            least = min((part for part in parts if parts[part]), key=lambda part: parts[part], default="")
            if not least or parts[least] >= FILLED:
                continue
            left = _sqnr(_outputs(student, images, ()), _outputs(student, images, [name]))
            if left < ENOUGH:
                found[node.name] = (
                    f"one grid for what it joins leaves {max(1, round(parts[least]))} of 256 codes to '{least}', whose "
                    f"range is that much smaller, and {left:.1f} dB of the outputs"
                )
    return found


def leave_in_float(student: fx.GraphModule, names: Sequence[str]) -> None:
    """Take the quantizers of some nodes out of a student, in place; what shared them goes without, too."""
    targets, modules = {f"{_PREFIX}{name}" for name in names}, dict(student.named_modules())
    for node in list(student.graph.nodes):
        if node.op == "call_module" and node.target in targets:
            behind = source(node)
            if isinstance(called(behind, modules), EndingBehind):
                student.set_submodule(str(behind.target), nn.ReLU6())
            bypass(node, behind)
    quantizers = student.get_submodule("quant")
    for name in names:
        delattr(quantizers, name)
    student.graph.lint()
    student.recompile()


def is_eight_bits(module: nn.Module) -> bool:
    """Return whether a module is an activation quantizer of 8 bits."""
    proxy = activation_proxy(module)
    return proxy is not None and int(proxy.bit_width()) == 8


@contextmanager
def _float_weights(student: fx.GraphModule) -> Iterator[None]:
    layers = [module for module in student.modules() if isinstance(module, QuantWeightBiasInputOutputLayer)]
    for layer in layers:
        layer.weight_quant.disable_quant = True
    try:
        yield
    finally:
        for layer in layers:
            layer.weight_quant.disable_quant = False


def _outputs(student: fx.GraphModule, images: Tensor, enabled: Sequence[str]) -> list[Tensor]:
    """Return the outputs of a student of whose activation quantizers only some work."""
    modules, working = dict(student.named_modules()), set(enabled)

    class Partly(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if activation_proxy(called(n, modules)) is not None and n.target not in working:
                return self.fetch_args_kwargs_from_env(n)[0][0]
            return super().run_node(n)

    found = Partly(student).run(images)
    values = found.values() if isinstance(found, Mapping) else found if isinstance(found, (tuple, list)) else [found]
    return [value.float() for value in values]


def _sqnr(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the least that is left of any output, in dB: 10 log10 of signal by error."""
    ratios = [
        float((w.double() ** 2).sum() / ((w - f).double() ** 2).sum().clamp_min(1e-300))
        for w, f in zip(wanted, found, strict=True)
    ]
    least = min(ratios)
    return float(10 * torch.log10(torch.tensor(max(least, 1e-30), dtype=torch.float64))) if least == least else -300.0
