"""The algorithm of the metadata method; its source, formula and deviations are told in the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dfqkit.records.file import TOP, ActivationRecords, Moments, reading
from dfqkit.synthesis.methods.metadata import MetadataConfig
from dfqkit.synthesis.pixels import PixelSynthesizer
from dfqkit_export.errors import ArtefactError


class Metadata(PixelSynthesizer):
    """Pixels optimised for activations drawn from what was recorded of real images."""

    config: MetadataConfig
    of_batch = ("target",)

    def _set_up(self) -> None:
        super()._set_up()
        config = self.config
        self.weights = {config.loss: 1.0}
        records = ActivationRecords.load(Path(config.records), self.teacher)
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
        # Factor of one unit's squared error: top 1/d, all 1/d^2 (a mean, and 1/d), spectral 1/k.
        power = -2 if config.loss == "all" else -1
        widths = [source.mean.shape[1] for source in self.sources]
        scales = [torch.full((width,), float(width) ** power, device=self.device) for width in widths]
        self.scales = torch.cat(scales)
        self.target = torch.zeros(0, device=self.device)

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
