"""Metadata: images that bring back recorded activations.

Source: Lopes, Fenu, Starner, "Data-Free Knowledge Distillation for Deep Neural Networks", 2017 (arXiv 1710.07535). Not
free of data altogether: when the teacher is released, its owner records per class the mean and covariance of its
layers' outputs (`dfqkit record`); no image leaves. From then on targets are drawn, for an image of class c,

    a_l ~ N(mean_lc, covariance_lc)    layer by layer, of its pre-activation outputs T_l

the top layer T_L being the logits over the recording's temperature, and images x minimise one of

    top       mean (relu(a_L) - relu(T_L(x)))^2
    all       sum over layers of (1/d_l) mean (relu(a_l) - relu(T_l(x)))^2
    spectral  mean over images, sum over pairs of (1/k) ||V_k^T [T_l(x); T_l+1(x)] - b||^2,  b ~ N of the recorded same

where V_k are the lowest frequencies of the graph that the weights between two layers make (`recording`).

Needs the records file; of the teacher only that it is the recorded one.

Differs from the paper and from the authors' code (iRapha/replayed_distillation) in that

- convolutional layers are recorded and matched as averages over positions (`records`), which says nothing of where in
  the image something is;
- the spectral form is our definition: the code has the name, but computes `all`;
- targets use the Cholesky factor of the covariance, where the code multiplies by the covariance itself;
- a batch holds all classes alike, and starts from N(mean, std) of the teacher's normalisation (code: constants for each
  data set).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import Self

from dfqkit.records.file import TOP, ActivationRecords, Moments, reading
from dfqkit.synthesis.base import NO_DEMAND, Demand, SynthesizerConfig
from dfqkit.synthesis.pixels import PixelConfig, PixelSynthesizer
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError, RecipeError


class MetadataConfig(PixelConfig):
    """The ``synthesis`` section of a recipe with ``method: metadata``."""

    method: Literal["metadata"] = "metadata"
    records: str = Field(description="File that `dfqkit record` wrote for this teacher.")
    loss: Literal["top", "all", "spectral"] = Field("all", description="Which records are matched.")
    batch: int = Field(64, ge=2, description="Images that are optimised together (author code).")
    steps: int = Field(1000, ge=1, description="Optimiser steps a batch (author code).")
    lr: float = Field(
        0.1, gt=0, description="Adam on the pixels, in normalised units (author code: 0.07 on those of MNIST)."
    )

    def resolved(self, find: Callable[[str], str]) -> Self:
        """The same, with ``records`` found.

        Raises:
            RecipeError: when there is no such file; says what makes one.
        """
        try:
            found = find(self.records)
        except RecipeError as error:
            message = f"{error} `dfqkit record RECIPE --data IMAGES --out FILE` makes it from labelled training images."
            raise RecipeError(message) from error
        return super().resolved(find).model_copy(update={"records": found})


class Metadata(PixelSynthesizer):
    """Pixels optimised for activations drawn from what was recorded of real images."""

    Config = MetadataConfig
    needs: ClassVar[frozenset[str]] = frozenset({"records"})

    def __init__(
        self, config: MetadataConfig, teacher: Teacher, generator: torch.Generator, demand: Demand = NO_DEMAND
    ) -> None:
        super().__init__(config, teacher, generator, demand)
        self.config = config
        self.weights = {config.loss: 1.0}
        records = ActivationRecords.load(Path(config.records), teacher)
        self.temperature = records.temperature
        self.pairs = [
            (pair.first, pair.second, pair.basis.to(self.device)) for pair in records.pairs if config.loss == "spectral"
        ]
        if config.loss == "spectral":
            if not self.pairs:
                message = f"'{config.records}' records no pair of layers. Use synthesis.loss all or top."
                raise ArtefactError(message)
            moments = [pair.moments for pair in records.pairs]
        else:
            chosen = {TOP: records.layers[TOP]} if config.loss == "top" else records.layers
            moments = list(chosen.values())
        named = {name for *pair, _ in self.pairs for name in pair} or set(records.layers) - {TOP}
        self.names = [] if config.loss == "top" else [name for name in records.layers if name in named - {TOP}]
        self.sources = [_Source(each, self.device) for each in moments]
        scales = [torch.full((len(s.mean[0]),), self._scale(len(s.mean[0])), device=self.device) for s in self.sources]
        self.scales = torch.cat(scales)
        self.target = torch.zeros(0, device=self.device)

    @classmethod
    def real_data_of(cls, config: SynthesizerConfig) -> str:
        """The records, and images to start from where it has them."""
        start = super().real_data_of(config)
        return "records of real activations" + (f" and {start}" if start else "")

    def _scale(self, units: int) -> float:
        """Factor of one unit's squared error: top 1/d, all 1/d^2 (a mean, and 1/d), spectral 1/k."""
        return float(units) ** -(2 if self.config.loss == "all" else 1)

    def _draw(self) -> None:
        labels = self._assigned_labels()
        drawn = torch.cat([source.draw(labels, self.rng) for source in self.sources], 1)
        self.target = drawn if self.pairs else drawn.relu()

    def _terms(self, images: Tensor, students: Sequence[nn.Module]) -> dict[str, Tensor]:
        with reading(self.teacher.model, self.names) as read:
            logits = self.teacher.model(images)
        read[TOP] = logits / self.temperature
        if self.pairs:
            found = torch.cat([torch.cat([read[a], read[b]], 1) @ basis for a, b, basis in self.pairs], 1)
        else:
            found = torch.cat([read[name] for name in (*self.names, TOP)], 1).relu()
        return {self.config.loss: ((found - self.target).square() @ self.scales).mean()}

    def _extra_tensors(self) -> dict[str, Tensor]:
        return {"target": self.target} if self.at else {}

    def _load_extra_tensors(self, state: dict[str, Tensor]) -> None:
        self.target = state.get("target", self.target)


class _Source:
    """Draws the activations of one layer, class by class."""

    def __init__(self, moments: Moments, device: torch.device) -> None:
        self.mean, self.factors = moments.mean.to(device), moments.factors().to(device)

    def draw(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """(n, d) from N(mean, covariance) of the classes ``labels`` (n,)."""
        noise = torch.randn((len(labels), self.mean.shape[1]), generator=rng, device=rng.device)
        if self.factors.dim() == 2:
            return self.mean[labels] + self.factors[labels] * noise
        drawn = self.mean[labels]
        for label in sorted(set(labels.tolist())):
            own = labels == label
            drawn[own] += noise[own] @ self.factors[label].T
        return drawn
