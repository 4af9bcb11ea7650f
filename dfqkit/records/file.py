"""Activation records: what a teacher's layers said of its training images, per class, as one portable file.

What belongs here: the records in memory, their file, and how a layer's output becomes one number a unit. They are made
by `recording`, where the data still is, and used by the synthesizer `metadata`, where it is not.

A layer is what a convolution or linear layer gives before its activation; where a BatchNorm reads a convolution, the
BatchNorm's output. The top layer is the logits, divided by a temperature. A convolutional layer's map is averaged over
its positions: records of whole maps would be larger than the network (ours; Lopes et al. recorded small fully connected
networks and LeNet-5).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes
from dfqkit_export.images.spec import ImageSpec

SCHEMA = 1

#: Name of the top layer: the logits over the temperature.
TOP = "logits"

_MADE = "`dfqkit record RECIPE --data IMAGES --out FILE` makes them, where the training images are."


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Mean and covariance of each class's activations in one layer of d units.

    Attributes:
        mean: (K, d), float32.
        covariance: (K, d, d), float32, unbiased; (K, d), variances alone, where the layer was too wide for all of it.
    """

    mean: Tensor
    covariance: Tensor

    def factors(self) -> Tensor:
        """Lower Cholesky factors (K, d, d), float32, or standard deviations (K, d) where there are only variances.

        A covariance of few images is singular: jitter of 1e-6 of the mean variance is added, tenfold where that is not
        enough.
        """
        covariance = self.covariance.double()
        if covariance.dim() == 2:
            return covariance.clamp_min(0).sqrt().float()
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        identity = torch.eye(covariance.shape[1], dtype=covariance.dtype)
        jitter = (1e-6 * diagonal.mean(1) + 1e-12)[:, None, None]
        for _ in range(8):
            factors, failed = torch.linalg.cholesky_ex(covariance + jitter * identity)
            if not bool(failed.any()):
                found: Tensor = factors.float()
                return found
            jitter = torch.where((failed != 0)[:, None, None], 10 * jitter, jitter)
        message = f"The records hold a matrix that is no covariance. Make them again: {_MADE}"
        raise ArtefactError(message)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Two layers joined by weights, in the lowest frequencies of the graph that the weights make; second reads first.

    Attributes:
        basis: V_k (d_first + d_second, k), float32: orthonormal columns, smoothest first.
        moments: Of V_k^T [a_first; a_second].
    """

    first: str
    second: str
    basis: Tensor
    moments: Moments


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationRecords:
    """What is remembered of the training images: no image, per class two moments of each layer.

    Attributes:
        layers: Moments by layer, in the order of calls; the last is `TOP`.
        pairs: Of consecutive layers.
        counts: (K,), images of each class that were read.
        temperature: What the logits were divided by.
        teacher: sha256 of the teacher's weights.
        source: Name of the images that were read.
    """

    layers: Mapping[str, Moments]
    pairs: tuple[Pair, ...]
    counts: Tensor
    temperature: float
    image: ImageSpec
    teacher: str
    source: str

    def save(self, path: Path) -> int:
        """Write the records, there whole or not at all; returns the file's size in bytes.

        Of each covariance the lower triangle is kept.
        """
        header = {
            "schema": SCHEMA,
            "teacher": self.teacher,
            "image": self.image.to_dict(),
            "temperature": self.temperature,
            "layers": list(self.layers),
            "pairs": [[pair.first, pair.second] for pair in self.pairs],
            "images_per_class": self.counts.tolist(),
            "source": self.source,
        }
        tensors: dict[str, Tensor] = {}
        for index, moments in enumerate(self.layers.values()):
            tensors |= _packed(moments, f"layer.{index}")
        for index, pair in enumerate(self.pairs):
            tensors |= {f"pair.{index}.basis": pair.basis.contiguous(), **_packed(pair.moments, f"pair.{index}")}
        # One entry: safetensors writes several in an order that differs from process to process.
        content = save(tensors, metadata={"records": json.dumps(header, sort_keys=True)})
        write_bytes(path, content)
        return len(content)

    @classmethod
    def load(cls, path: Path, teacher: Teacher) -> ActivationRecords:
        """Read what `save` wrote, which must be whole and of this teacher."""
        header, tensors = _read(path)
        if header.get("teacher") != teacher.sha256:
            message = (
                f"'{path}' holds activation records of another teacher (weights {str(header.get('teacher'))[:12]}, "
                f"'{teacher.name}' has {teacher.sha256[:12]}). Name the records of these weights, or make them: {_MADE}"
            )
            raise ArtefactError(message)
        try:
            records = cls(
                layers={str(name): _unpacked(tensors, f"layer.{index}") for index, name in enumerate(header["layers"])},
                pairs=tuple(
                    Pair(
                        first=str(first),
                        second=str(second),
                        basis=tensors[f"pair.{index}.basis"],
                        moments=_unpacked(tensors, f"pair.{index}"),
                    )
                    for index, (first, second) in enumerate(header["pairs"])
                ),
                counts=torch.tensor(header["images_per_class"], dtype=torch.int64),
                temperature=float(header["temperature"]),
                image=ImageSpec.from_dict(header["image"]),
                teacher=str(header["teacher"]),
                source=str(header["source"]),
            )
            records._require_consistent()
        except (KeyError, TypeError, ValueError, RuntimeError, ArtefactError) as error:
            message = f"Activation records '{path}' contradict themselves: {error}. Make them again: {_MADE}"
            raise ArtefactError(message) from error
        return records

    def _require_consistent(self) -> None:
        """Raise ValueError unless every layer has the moments of every class, and every pair those of its basis."""
        classes = len(self.counts)
        if classes != self.image.classes or [*self.layers][-1:] != [TOP]:
            message = f"{classes} classes where the image has {self.image.classes}, or no top layer"
            raise ValueError(message)
        widths = {name: _width(moments, classes, name) for name, moments in self.layers.items()}
        for pair in self.pairs:
            units, kept = pair.basis.shape
            name = f"{pair.first} and {pair.second}"
            if (units, kept) != (widths[pair.first] + widths[pair.second], _width(pair.moments, classes, name)):
                message = f"the basis of {name} is {units}x{kept}"
                raise ValueError(message)


def pooled(layer: nn.Module, output: Tensor) -> Tensor:
    """One number a unit (N, d): maps (N, d, H, W) averaged over positions, tokens (N, ..., d) of linear layers too."""
    if output.dim() <= 2:
        return output
    return output.flatten(1, -2).mean(1) if isinstance(layer, nn.Linear) else output.flatten(2).mean(2)


@contextlib.contextmanager
def reading(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Hold what layers gave in the last forward inside, pooled, with gradient; a layer's first call counts.

    Unlike `taps.LayerTap` it pools while the layer is called: an activation that works in place changes the rest.
    """
    values: dict[str, Tensor] = {}

    def reader(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def read(layer: nn.Module, inputs: object, output: Tensor) -> None:
            if name not in values:
                values[name] = pooled(layer, output) if output.dim() > 2 else output.clone()

        return read

    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(lambda *_: values.clear()))
        for name in names:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(reader(name)))
        yield values


def _width(moments: Moments, classes: int, name: str) -> int:
    units = moments.mean.shape[1]
    shapes = ((classes, units), (classes, units, units))
    if moments.mean.shape != shapes[0] or moments.covariance.shape not in shapes:
        message = f"the moments of {name} do not fit {classes} classes of {units} units"
        raise ValueError(message)
    if not bool(torch.isfinite(moments.mean).all() and torch.isfinite(moments.covariance).all()):
        message = f"the moments of {name} are not finite"
        raise ValueError(message)
    return units


def _packed(moments: Moments, prefix: str) -> dict[str, Tensor]:
    kind, kept = "variance", moments.covariance
    if kept.dim() == 3:
        row, column = torch.tril_indices(*kept.shape[1:])
        kind, kept = "covariance", kept[:, row, column]
    return {f"{prefix}.mean": moments.mean.contiguous(), f"{prefix}.{kind}": kept.contiguous()}


def _unpacked(tensors: Mapping[str, Tensor], prefix: str) -> Moments:
    mean = tensors[f"{prefix}.mean"]
    if f"{prefix}.variance" in tensors:
        return Moments(mean=mean, covariance=tensors[f"{prefix}.variance"])
    units, packed = mean.shape[1], tensors[f"{prefix}.covariance"]
    row, column = torch.tril_indices(units, units)
    covariance = packed.new_zeros((len(mean), units, units))
    covariance[:, row, column] = packed
    covariance[:, column, row] = packed
    return Moments(mean=mean, covariance=covariance)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("records", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        schema = header.get("schema")
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        message = f"Cannot read the activation records '{path}': {error}. {_MADE}"
        raise ArtefactError(message) from error
    if schema != SCHEMA:
        message = (
            f"'{path}' does not hold activation records that this version reads (schema {schema}, needed {SCHEMA}). "
            f"{_MADE}"
        )
        raise ArtefactError(message)
    return header, tensors
