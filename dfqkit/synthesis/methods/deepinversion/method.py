"""The algorithm of DeepInversion; its source, formula and deviations are told in the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.methods.deepinversion import DeepInversionFields
from dfqkit.synthesis.pixels import PixelSynthesizer, Stage
from dfqkit.teacher.taps import BatchNormTap


class DeepInversion(PixelSynthesizer):
    """Batches of pixels with assigned labels, BatchNorm statistics and image priors."""

    config: DeepInversionFields
    of_batch = ("labels",)

    def _set_up(self) -> None:
        super()._set_up()
        self.tap = BatchNormTap(self.teacher.model)
        self.labels = torch.zeros(0, dtype=torch.int64, device=self.device)

    def _draw(self) -> None:
        if self.weights["ce"]:
            self.labels = self._assigned_labels()

    def _terms(self, images: Tensor, students: Sequence[nn.Module]) -> dict[str, Tensor]:
        with self.tap as tap:
            logits = self.teacher.model(images)
        layers = tap.deviations(losses.bn_l2)
        layers[0] = self.config.first_bn * layers[0]
        terms = {"ce": nn.functional.cross_entropy(logits, self.labels)} if self.weights["ce"] else {}
        terms |= {"bn": torch.stack(layers).sum(), **self._objects(logits)}
        l2 = losses.l2_batch if self.config.l2_over == "batch" else losses.l2_image
        priors = {"tv_l2": losses.tv_l2, "tv_l1": losses.tv_l1, "l2": l2}
        terms |= {name: prior(images) for name, prior in priors.items() if self.weights[name]}
        return terms | self._against(students, images, logits)

    def _against(self, students: Sequence[nn.Module], images: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Terms of a game; none here."""
        return {}

    def _stages(self, steps: int) -> tuple[Stage, ...]:
        betas = (0.5, 0.9) if self.config.schedule in ("imagenet0", "imagenet1") else (0.9, 0.999)
        return (Stage(start=0, stop=steps, jitter=self.config.jitter, clamp=self.config.clamp, betas=betas),)
