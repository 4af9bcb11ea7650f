"""The algorithm of PSAQ-ViT; its source, formula and deviations are told in the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.methods.psaq import PSAQConfig
from dfqkit.synthesis.pixels import PixelSynthesizer, Stage
from dfqkit.teacher.attention import AttentionTap


class PSAQ(PixelSynthesizer):
    """Batches of pixels on the similarity of a transformer's tokens: for teachers without BatchNorm."""

    config: PSAQConfig
    of_batch = ("labels",)

    def _set_up(self) -> None:
        super()._set_up()
        self.tap = AttentionTap()
        self.labels = torch.zeros(0, dtype=torch.int64, device=self.device)

    def _draw(self) -> None:
        if self.weights["one_hot"]:
            self.labels = self._assigned_labels()

    def _terms(self, images: Tensor, students: Sequence[nn.Module]) -> dict[str, Tensor]:
        with self.tap as tap:
            outputs = self.teacher.model(images)
        terms = {}
        if self.weights["entropy"]:
            each = [losses.similarity_entropy(self._some(found), self.config.bandwidth) for found in tap.tokens]
            terms["entropy"] = torch.stack(each).sum()
        if self.weights["one_hot"]:
            terms["one_hot"] = nn.functional.cross_entropy(outputs, self.labels)
        if self.weights["tv"]:
            terms["tv"] = (losses.tv_l2(images) / images.numel() ** 0.5 - self.config.roughness).abs()
        return terms | self._objects(outputs)

    def _some(self, tokens: Tensor) -> Tensor:
        count = tokens.shape[1]
        if count <= self.config.tokens:
            return tokens
        drawn = torch.randperm(count, generator=self.rng, device=self.device)[: self.config.tokens]
        return tokens[:, drawn]

    def _stages(self, steps: int) -> tuple[Stage, ...]:
        (whole,) = super()._stages(steps)
        return (Stage(start=0, stop=steps, jitter=whole.jitter, clamp=whole.clamp, betas=(0.5, 0.9)),)
