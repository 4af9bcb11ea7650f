"""The report's table of layers that got more bits than the others, and what each further one would cost and gain.

What belongs here: the table, made of what was noted when the bits were chosen; nothing is measured.
"""

from __future__ import annotations

from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as Layer
from torch import fx

from dfqkit.students.student import LAYER_BITS
from dfqkit.students.wider_layers import WIDE, LayerBits
from dfqkit_export.measure.breakdown import Breakdown


def layer_bits(student: fx.GraphModule) -> list[Breakdown]:
    """Return the table of a student's layers that could have more bits, those first that were worth most; or none."""
    layers: tuple[LayerBits, ...] = student.meta.get(LAYER_BITS, ())
    if not layers:
        return []
    few = min(each.bits for each in layers)
    ours = {name: module for name, module in student.named_modules() if isinstance(module, Layer)}
    packed = sum(module.weight.numel() * int(module.weight_quant.bit_width()) for module in ours.values()) / 8
    size = packed - sum(each.weights * (each.bits - few) for each in layers) / 8
    rows: list[list[str | float | None]] = []
    left = sum(each.distance for each in layers)
    for each in layers:
        size, left = size + each.weights * (WIDE - few) / 8, left - each.distance
        distances = f"{each.distance:.3g}", f"{max(left, 0.0):.3g}"
        rows.append([each.layer, each.weights, distances[0], each.bits, round(size / 1024), distances[1]])
    return [
        Breakdown(
            title="Bits of layers",
            note=f"What {few} bits of one layer alone do to the answers, on images held out; those first that do most "
            "for each weight. Then the weights of all layers as packed bits, and what is left of the sum of these "
            f"distances, if this layer and all above it have {WIDE}. Packed, the weights of this student take "
            f"{packed / 1024:.0f} KiB; its file stores 8 bits each, whatever their range.",
            subject="student",
            data="held out",
            header=["layer", "weights", "distance alone", "bits", f"KiB, to here at {WIDE}", "distance left"],
            rows=rows,
            plot=(f"KiB, to here at {WIDE}", "distance left"),
        )
    ]
