"""Making activation records: one pass over the training images, where they still are.

What belongs here: which layers are recorded, their moments per class as images stream past, and the graph that the
weights between two layers make. What comes of it is `file`.

Source: Lopes, Fenu, Starner, "Data-Free Knowledge Distillation for Deep Neural Networks", 2017 (arXiv 1710.07535),
sections 3 and 4. The authors' code records the moments but does not implement the spectral form, so the graph is our
definition: an edge between unit i of a layer and unit j of the one that reads it weighs |W_ji|, for convolutions summed
over the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfqkit.records.file import TOP, ActivationRecords, Moments, Pair, pooled, reading
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.structure import layer_calls
from dfqkit_export.errors import ArtefactError, TeacherError
from dfqkit_export.images.labelled import LabelledImages
from dfqkit_export.words import some

MEMORY = 8 * 2**30
_WIDEST_PAIR = 4096


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """How records are made.

    Attributes:
        temperature: What the logits are divided by (the authors' 8).
        spectrum: Share of a pair's frequencies that is kept (ours: 0.1).
        diagonal_above: Layers with more units keep variances alone (ours).
        batch: Images a forward pass.
    """

    temperature: float = 8.0
    spectrum: float = 0.1
    diagonal_above: int = 1024
    batch: int = 256


@dataclass(kw_only=True, eq=False)
class _Layer:
    """A layer that is recorded: where it is read, its weights, and how many units it has."""

    name: str
    weighted: nn.Conv2d | nn.Linear
    output: Tensor


def record(
    teacher: Teacher,
    images: LabelledImages,
    options: RecordOptions | None = None,
    *,
    per_class: int | None = None,
    advance: Callable[[int], object] = lambda images: None,
) -> ActivationRecords:
    """Record the moments of every layer for every class, from labelled images that the teacher was trained on.

    At most ``per_class`` images of a class are read, the first ones; every class needs two. ``advance`` is told how
    many were read.
    """
    options = options or RecordOptions()
    images, labels = _chosen(images, teacher, per_class)
    layers = _layers(teacher)
    widths = [layer.output.shape[1] for layer in layers]
    graphs = _edges(layers, widths)
    _require_memory(widths, [_kept(edges, options.spectrum) for *_, edges in graphs], teacher.image.classes, options)
    pairs = [
        (layers[first].name, layers[second].name, graph_basis(edges, options.spectrum))
        for first, second, edges in graphs
    ]
    streams = [Stream(width, teacher.image.classes, options.diagonal_above) for width in widths]
    pair_streams = [Stream(basis.shape[1], teacher.image.classes, options.diagonal_above) for *_, basis in pairs]
    inner = [layer.name for layer in layers[:-1]]
    start = 0
    for batch in images.batches(teacher.image, options.batch):
        with reading(teacher.model, inner) as read:
            logits = teacher.logits(torch.from_numpy(batch).to(teacher.device))
        read[TOP] = logits / options.temperature
        values = {name: value.cpu().double() for name, value in read.items()}
        part = labels[start : start + len(batch)]
        for layer, stream in zip(layers, streams, strict=True):
            stream.add(values[layer.name], part)
        for (first, second, basis), stream in zip(pairs, pair_streams, strict=True):
            stream.add(torch.cat([values[first], values[second]], 1) @ basis, part)
        start += len(batch)
        advance(len(batch))
    return ActivationRecords(
        layers={layer.name: stream.moments() for layer, stream in zip(layers, streams, strict=True)},
        pairs=tuple(
            Pair(first=first, second=second, basis=basis.float(), moments=stream.moments())
            for (first, second, basis), stream in zip(pairs, pair_streams, strict=True)
        ),
        counts=torch.bincount(labels, minlength=teacher.image.classes),
        temperature=options.temperature,
        image=teacher.image,
        teacher=teacher.sha256,
        source=images.name,
    )


def graph_basis(edges: Tensor, spectrum: float) -> Tensor:
    """Return the lowest-frequency Laplacian eigenvectors of the bipartite graph between two layers.

    Of edges (d_second, d_first), weights of at least 0, and the share rho of all frequencies that is kept, it is
    (d_first + d_second, k), k = ceil(rho (d_first + d_second)), float64, the first layer's units first; of each column
    the largest entry is positive.
    """
    second, first = edges.shape
    adjacency = edges.new_zeros((first + second, first + second), dtype=torch.float64)
    adjacency[first:, :first] = edges.double()
    adjacency = adjacency + adjacency.T
    _, vectors = torch.linalg.eigh(torch.diag(adjacency.sum(1)) - adjacency)
    basis = vectors[:, : _kept(edges, spectrum)]
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    oriented: Tensor = basis * torch.where(largest < 0, -1.0, 1.0)
    return oriented


def _kept(edges: Tensor, spectrum: float) -> int:
    """Frequencies of the graph between two layers that are kept."""
    return math.ceil(spectrum * sum(edges.shape))


class Stream:
    """Mean and covariance per class of rows that come in batches, in float64.

    Batches are merged as Chan, Golub and LeVeque (1979) do, which loses no digits to a large mean.
    """

    def __init__(self, units: int, classes: int, diagonal_above: int) -> None:
        self.full = units <= diagonal_above
        self.count = torch.zeros(classes, dtype=torch.int64)
        self.mean = torch.zeros((classes, units), dtype=torch.float64)
        self.squares = torch.zeros((classes, units, units) if self.full else (classes, units), dtype=torch.float64)

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Take in rows (n, d) of classes ``labels`` (n,)."""
        for label in sorted(set(labels.tolist())):
            own = rows[labels == label]
            new, old = len(own), int(self.count[label])
            mean = own.mean(0)
            centred, shift = own - mean, mean - self.mean[label]
            weight = old * new / (old + new)
            if self.full:
                self.squares[label] += centred.T @ centred + weight * torch.outer(shift, shift)
            else:
                self.squares[label] += centred.square().sum(0) + weight * shift.square()
            self.mean[label] += shift * (new / (old + new))
            self.count[label] += new

    def moments(self) -> Moments:
        """Return what came of it; unbiased."""
        degrees = (self.count - 1).double().view(-1, *[1] * (self.squares.dim() - 1))
        return Moments(mean=self.mean.float(), covariance=(self.squares / degrees).float())


def _chosen(images: LabelledImages, teacher: Teacher, per_class: int | None) -> tuple[LabelledImages, Tensor]:
    """At most ``per_class`` images of every class, in their order, and their labels; every class has two."""
    if images.labels is None:
        message = (
            f"Images '{images.name}' have no labels, and records are kept per class. Give an .npz with 'labels', a "
            ".zip with labels.csv, or a folder of class folders."
        )
        raise ArtefactError(message)
    classes = teacher.image.classes
    counts = np.bincount(images.labels, minlength=classes)
    if per_class is not None:
        positions = [np.flatnonzero(images.labels == label)[:per_class] for label in range(classes)]
        keep = np.sort(np.concatenate(positions))
        images = replace(images, images=images.images[keep], labels=images.labels[keep])
        counts = np.minimum(counts, per_class)
    few = [str(label) for label in np.flatnonzero(counts < 2)]
    if few:
        message = (
            f"A covariance needs two images of every class; '{images.name}' has fewer of {len(few)} of the teacher's "
            f"{classes} classes ({some(few, 8)}). Give images of all classes that the teacher tells apart."
        )
        raise ArtefactError(message)
    labels: Tensor = torch.from_numpy(np.asarray(images.labels, dtype=np.int64))
    return images, labels


def _layers(teacher: Teacher) -> list[_Layer]:
    """Layers in the order of their first calls, the top one last, with the shape they have for one grey image."""
    found: dict[int, _Layer] = {}
    calls, logits = layer_calls(teacher)
    for call in calls:
        if isinstance(call.layer, nn.Conv2d | nn.Linear):
            found.setdefault(id(call.layer), _Layer(name=call.name, weighted=call.layer, output=call.output))
        elif isinstance(call.layer, _BatchNorm):
            for entry in found.values():
                if entry.output is call.given:  # what a BatchNorm makes of it is what the activation gets
                    entry.name, entry.output = call.name, call.output
    layers = list(found.values())
    modules = dict(teacher.model.named_modules())
    for layer in layers:
        layer.output = pooled(modules[layer.name], layer.output)
    if not layers or layers[-1].output.shape != logits.shape or not torch.allclose(layers[-1].output, logits):
        message = (
            f"Teacher '{teacher.name}' does not end in a linear layer or a convolution that gives its logits, so "
            "that its layers cannot be told. Use a synthesizer that needs no records."
        )
        raise TeacherError(message)
    layers[-1].name = TOP
    return [layer for layer in layers[:-1] if layer.name != TOP] + layers[-1:]


def _edges(layers: list[_Layer], widths: list[int]) -> list[tuple[int, int, Tensor]]:
    """Pairs (first, second) of layers with |W| (d_second, d_first) between them.

    A layer's partner is the nearest one before it with as many units as it reads: hooks see calls, not what is added
    on the way, so that behind a shortcut it is one of the summands.
    """
    pairs = []
    for second in range(1, len(layers)):
        weights = _absolute(layers[second].weighted)
        reads = weights.shape[1]
        first = next((index for index in reversed(range(second)) if widths[index] == reads), None)
        if first is None and isinstance(layers[second].weighted, nn.Linear) and reads % widths[second - 1] == 0:
            first = second - 1  # it reads flattened maps, channel by channel
            weights = weights.view(len(weights), widths[first], -1).sum(2)
        if first is not None and max(widths[first], widths[second]) <= _WIDEST_PAIR:
            pairs.append((first, second, weights))
    return pairs


def _absolute(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """|W| (out, in), summed over a convolution's kernel, zero between its groups."""
    weight = layer.weight.detach().double().abs().cpu()
    if isinstance(layer, nn.Linear):
        return weight
    summed = weight.sum((2, 3))
    out, each = summed.shape
    full = summed.new_zeros((out, layer.in_channels))
    columns = torch.arange(out).div(out // layer.groups, rounding_mode="floor")[:, None] * each + torch.arange(each)
    return full.scatter_(1, columns, summed)


def _require_memory(widths: list[int], kept: list[int], classes: int, options: RecordOptions) -> None:
    """Count the streams of all layers and, of ``kept`` frequencies each, of all pairs."""
    sizes = (size**2 if size <= options.diagonal_above else size for size in (*widths, *kept))
    needed = 8 * classes * sum(sizes)
    if needed > MEMORY:
        message = (
            f"Covariances of {classes} classes in {len(widths)} layers of up to {max(widths)} units and {len(kept)} "
            f"pairs of layers take {needed / 2**30:.0f} GiB; the limit is {MEMORY // 2**30}. Keep variances alone for "
            "more layers with a lower --diagonal-above."
        )
        raise ArtefactError(message)
