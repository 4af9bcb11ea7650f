"""Weights of a calibrated student rounded layer by layer, each so that it gives what the float network's layer gives.

What belongs here: which inputs a layer's codes are chosen for, and how a student and its float network are run side by
side. Every layer runs once: what others read later is kept until then, so that time grows with the number of layers and
memory does not. The mathematics, its sources and deviations are told in `gptq`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as Layer
from torch import Tensor, fx, nn

from dfqkit.students.gptq import Moments, corrected, least_error
from dfqkit.students.nodes import called, source, tensor_at
from dfqkit.students.onnx_nodes import input_codes
from dfqkit.students.weight_scales import MOST_BITS, fit_sums, largest_code, short_mantissa

_LOG = logging.getLogger(__name__)
#: Images that are looked at, at most: what lies between two layers is kept for all of them.
IMAGES = 64
#: Positions of an image's map that count, drawn at random: neighbours tell nearly the same.
POSITIONS = 512
#: Columns of the largest layer whose weights are solved for: a convolution of 5 x 5 over 200 channels has as many.
MOST_COLUMNS = 5120

#: Times that codes are chosen, each for a larger scale, until no sum of two products leaves 16 bits.
_MOST_FITS = 4

#: What rounding changed of a layer's weights, by its name, and what that moves its outputs by on average, (C_out,).
Errors = dict[str, tuple[Tensor, Tensor]]


def round_by_layers(
    student: fx.GraphModule,
    reference: fx.GraphModule,
    batches: Sequence[Tensor],
    *,
    scales: bool,
    advance: Callable[[], None] = lambda: None,
) -> Errors:
    """Put a student's weights on their grids, and its biases where its layers' outputs have the float network's means.

    Layers that are called several times, transposed ones and those with more columns than `MOST_COLUMNS` keep the
    nearest codes, and get the bias alone.

    Args:
        student: Calibrated; its activations are quantized where it quantizes them.
        reference: The float graph that it was built from.
        batches: Normalised images (n, C, H, W) that calibrated it; the first `IMAGES` are used.
        scales: Whether weight scales may change; where products must be exact they are as short as they can be.
        advance: Called after each layer.

    Returns:
        What rounding does to each layer by itself, with what came before it in float.
    """
    student.eval()
    found: Errors = {}
    uses = Counter(id(module.weight_quant) for module in student.modules() if isinstance(module, Layer))
    rng = torch.Generator().manual_seed(0)
    read = input_codes(student) if student.meta.get("sums_fit") else {}
    images = torch.split(torch.cat(list(batches))[:IMAGES], len(batches[0]))
    with torch.no_grad():
        for node, layer, twin, inputs in _side_by_side(student, reference, images):
            columns = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d) or uses[id(layer.weight_quant)] > 1 or columns > MOST_COLUMNS:
                _LOG.info("'%s' keeps the nearest codes: its bias alone is corrected.", node.target)
                _move_bias(layer, twin, inputs)
            else:
                found[str(node.target)] = _solve(layer, inputs, rng, scales=scales, read=read.get(str(node.target)))
            advance()
    return found


def _solve(
    layer: Layer,
    inputs: Sequence[tuple[Tensor, Tensor]],
    rng: torch.Generator,
    *,
    scales: bool,
    read: tuple[int, int] | None,
) -> tuple[Tensor, Tensor]:
    """Solve for one layer; ``read`` are the codes that it reads at most, where two products must fit 16 bits."""
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.double().reshape(groups, len(layer.weight) // groups, -1)
    moments = Moments.none(groups, weight.shape[2], weight.device)
    for quantized, exact in inputs:
        chosen = _drawn(layer, quantized, rng)
        moments.add(_columns(layer, quantized, chosen), _columns(layer, exact, chosen))
    second, cross = moments.covariances()
    wanted = corrected(weight, second, cross)
    high = 2 ** (int(layer.weight_quant.bit_width()) - 1) - 1
    scale = _scales_of(layer, groups)
    stored = tensor_at(layer.weight_quant.tensor_quant.scaling_impl, "value")
    free: Callable[..., Tensor] | None = partial(short_mantissa, bits=MOST_BITS) if scales else None
    one = stored.numel() == 1
    for _ in range(_MOST_FITS):
        codes, scale = least_error(wanted, second, scale, -largest_code(layer), high, free, shared=one)
        rounded = codes * scale[:, :, None]
        tensor_at(layer, "weight").copy_(rounded.reshape(layer.weight.shape))
        if not scales:
            break
        stored.copy_((scale.reshape(-1)[: stored.numel()] * largest_code(layer)).reshape(stored.shape))
        if read is None or not fit_sums(layer, *read, partial(short_mantissa, bits=MOST_BITS, rounding=torch.ceil)):
            break
        scale, free = _scales_of(layer, groups), None  # codes for the larger scale are chosen anew, not rounded
    else:  # the last codes are the nearest for the scale that came of them
        rounded = layer.quant_weight().value.double().reshape(weight.shape)
    quantized_mean, exact_mean = moments.means()
    bias = weight @ exact_mean[:, :, None] - rounded @ quantized_mean[:, :, None]
    tensor_at(layer, "bias").add_(bias.reshape(-1))
    error = rounded - wanted
    moved = (error @ quantized_mean[:, :, None]).reshape(-1)
    return error.reshape(layer.weight.shape).to(layer.weight.dtype), moved.to(layer.weight.dtype)


def _scales_of(layer: Layer, groups: int) -> Tensor:
    scale: Tensor = layer.quant_weight().scale
    return scale.double().reshape(-1).expand(len(layer.weight)).reshape(groups, -1)


def _move_bias(layer: Layer, twin: nn.Module, inputs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Let the mean of a layer's outputs be that of its float twin's."""
    axis, moved, count = (-1 if isinstance(layer, nn.Linear) else 1), torch.zeros_like(layer.bias), 0
    for quantized, exact in inputs:
        apart = (twin(exact) - layer(quantized)).movedim(axis, 0).flatten(1)
        moved, count = moved + apart.sum(1), count + apart.shape[1]
    tensor_at(layer, "bias").add_(moved / count)


def _drawn(layer: nn.Module, x: Tensor, rng: torch.Generator) -> Tensor:
    """Return places of a layer's output map, flattened over images and positions, all or some."""
    count = x.numel() // x.shape[-1] if isinstance(layer, nn.Linear) else len(x) * _height_and_width(layer, x).numel()
    places = torch.arange(count) if count <= POSITIONS * len(x) else torch.randperm(count, generator=rng)
    return places[: POSITIONS * len(x)].to(x.device)


def _height_and_width(layer: Any, x: Tensor) -> torch.Size:
    """Return the size (H', W') of a convolution's output map."""
    return torch.Size(nn.functional.conv2d(x[:1, :1], x.new_zeros((1, 1, *layer.kernel_size)), None, layer.stride,
                                           layer.padding, layer.dilation).shape[2:])  # fmt: skip


def _columns(layer: Any, x: Tensor, places: Tensor) -> Tensor:
    """Return what a layer multiplies its weights with at some places of its output: (groups, columns, places)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])[places].mT[None]
    height, width = _height_and_width(layer, x)
    padded = nn.functional.pad(x, layer._reversed_padding_repeated_twice)
    images, channels, down, across = padded.stride()
    sizes = (len(x), height, width, x.shape[1], *layer.kernel_size)
    steps = (images, down * layer.stride[0], across * layer.stride[1], channels,
             down * layer.dilation[0], across * layer.dilation[1])  # fmt: skip
    windows = padded.as_strided(sizes, steps)
    image, place = places // (height * width), places % (height * width)
    read = windows[image, place // width, place % width]
    return read.reshape(len(places), layer.groups, -1).permute(1, 2, 0)


def _side_by_side(
    student: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Tensor]
) -> Iterator[tuple[fx.Node, Layer, nn.Module, list[tuple[Tensor, Tensor]]]]:
    """Yield each quantized layer before it runs, its float twin, and what both read, batch by batch."""
    ours, theirs = Running(student, batches), Running(reference, batches)
    modules, twins = dict(student.named_modules()), {node.name: node for node in reference.graph.nodes}
    for node in student.graph.nodes:
        layer, twin = called(node, modules), twins.get(node.name)
        if twin is not None:
            theirs.until(twin)
        if isinstance(layer, Layer) and twin is not None:
            other = reference.get_submodule(str(twin.target))
            yield node, layer, other, list(zip(ours.values(source(node)), theirs.values(source(twin)), strict=True))
        if node.op != "output":
            ours.run(node)


class Running:
    """A graph that runs node by node over all batches, and keeps what is still read, or will be taken from outside."""

    def __init__(self, graph: fx.GraphModule, batches: Sequence[Tensor], taken: Iterable[fx.Node] = ()) -> None:
        self._interpreter, self._batches, self._taken = fx.Interpreter(graph), batches, Counter(taken)
        self._known: list[dict[fx.Node, Any]] = [{} for _ in batches]
        self._ahead = dict.fromkeys(graph.graph.nodes)

    def values(self, node: fx.Node) -> list[Tensor]:
        """Return what a node gave for each batch."""
        return [known[node] for known in self._known]

    def take(self, node: fx.Node) -> Tensor:
        """Return what a node gave for all images, which is kept no longer for that; the node is run where need be."""
        if node in self._ahead:
            self.until(node)
            self.run(node)
        values = torch.cat(self.values(node))
        self._taken[node] -= 1
        self._forget()
        return values

    def until(self, node: fx.Node) -> None:
        """Run what comes before a node."""
        while (first := next(iter(self._ahead))) is not node:
            self.run(first)

    def run(self, node: fx.Node) -> None:
        """Run the next node."""
        del self._ahead[node]
        for known, images in zip(self._known, self._batches, strict=True):
            self._interpreter.env = known
            known[node] = images if node.op == "placeholder" else self._interpreter.run_node(node)
        self._forget()

    def _forget(self) -> None:
        for dead in [
            node for node in self._known[0] if not self._taken[node] and self._ahead.keys().isdisjoint(node.users)
        ]:
            for known in self._known:
                del known[dead]
