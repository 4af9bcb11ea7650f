"""Which layers of a student of few weight bits get 8: those whose rounding moves the answers most for their size.

What belongs here: what the rounding of each layer does to the answers by itself, the choice within a share of the
weights, and how a layer gets more bits. Errors of layers add up nearly enough at the sizes that a good file has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as Layer
from torch import Tensor, fx, nn

from dfqkit.students.layerwise import Errors
from dfqkit.students.nodes import tensor_at
from dfqkit.students.sensitivity import Imitated
from dfqkit.students.weight_scales import MOST_BITS, largest_code, short_mantissa

#: Bits that layers get which are worth it.
WIDE = 8
#: Images that the answers are compared on, at most: one pass for each layer.
_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class LayerBits:
    """What a layer costs and what its bits do.

    Attributes:
        layer: Its name.
        weights: How many it has.
        distance: How far its rounding alone, at the few bits, moves the answers, in the task's distance.
        bits: What it got.
    """

    layer: str
    weights: int
    distance: float
    bits: int


def wider_layers(
    reference: fx.GraphModule, batches: Sequence[Tensor], imitated: Imitated, errors: Errors, bits: int, share: float
) -> list[LayerBits]:
    """Return the layers with what each costs, those first that are worth most for each weight; `WIDE` bits for some.

    Args:
        reference: The float graph that the student was built from; it is left as it was.
        batches: Normalised images (n, C, H, W) that took no part in the calibration.
        imitated: What tells how far answers are.
        errors: What rounding does to the layers that may have more bits (`round_by_layers`).
        bits: What they have.
        share: How many of their weights may get more, within [0, 1].
    """
    images = torch.cat(list(batches))[:_IMAGES]
    moved = {name: _distance(reference.get_submodule(name), error, reference, images, imitated)
             for name, error in errors.items()}  # fmt: skip
    counts = {name: error.numel() for name, (error, _) in errors.items()}
    left, found = share * sum(counts.values()), []
    for name in sorted(moved, key=lambda name: -moved[name] / counts[name]):
        worth = counts[name] <= left
        left -= counts[name] if worth else 0
        found.append(LayerBits(layer=name, weights=counts[name], distance=moved[name], bits=WIDE if worth else bits))
    return found


def _distance(
    layer: nn.Module, error: tuple[Tensor, Tensor], reference: fx.GraphModule, images: Tensor, imitated: Imitated
) -> float:
    """Return how far answers of the float graph move when one layer's weights have their errors; the mean is kept."""
    weight, bias = tensor_at(layer, "weight"), tensor_at(layer, "bias")
    before = weight.detach().clone(), bias.detach().clone()
    with torch.no_grad():
        answers = imitated.task.named(reference(images))
        try:
            weight.add_(error[0])
            bias.sub_(error[1])
            return float(imitated.task.distance(answers, imitated.task.named(reference(images))))
        finally:
            weight.copy_(before[0])
            bias.copy_(before[1])


def layer_bits(student: fx.GraphModule, name: str) -> int:
    """Return the bits of a layer's weights."""
    layer = student.get_submodule(name)
    assert isinstance(layer, Layer)
    return int(layer.weight_quant.bit_width())


def widen(student: fx.GraphModule, names: Sequence[str]) -> None:
    """Give layers `WIDE` bits for their weights, with scales that hold the largest."""
    for name in names:
        layer = student.get_submodule(name)
        assert isinstance(layer, Layer)
        before = layer.quant_weight().scale.detach().reshape(-1)
        layer.weight_quant.tensor_quant.msb_clamp_bit_width_impl = BitWidthConst(WIDE, device=layer.weight.device)
        stored = tensor_at(layer.weight_quant.tensor_quant.scaling_impl, "value")
        with torch.no_grad():
            across = layer.weight.transpose(0, layer.output_channel_dim).flatten(1).abs().amax(1)
            largest = across if stored.numel() > 1 else across.max()
            step = short_mantissa(largest / (2 ** (WIDE - 1) - 1), MOST_BITS, rounding=torch.ceil)
            # Of a channel without weights the scale is one of its bias alone, which int32 must hold.
            step = torch.where(step < before * 2.0**-MOST_BITS, before, step)
            stored.copy_((step * largest_code(layer)).reshape(stored.shape))
