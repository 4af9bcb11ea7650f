"""The algorithm of DFQ; its source, formula and deviations are told in the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.methods.dfq import DFQConfig
from dfqkit.synthesis.online import OnlineSynthesizer
from dfqkit.teacher.taps import BatchNormTap


class DFQ(OnlineSynthesizer):
    """An ensemble of generators trained on a teacher's BatchNorm statistics and against quantized students."""

    config: DFQConfig

    def _set_up(self) -> None:
        self.tap = BatchNormTap(self.teacher.model)
        super()._set_up()
        if self.config.weights.batch_entropy is None:
            self.weights["batch_entropy"] = 1.0 if self.teacher.image.classes <= 10 else 10.0

    def _terms(self, images: Tensor, students: Sequence[nn.Module]) -> dict[str, Tensor]:
        with self.tap as tap:
            logits = self.teacher.model(images)
            terms = {"bn": torch.stack(tap.deviations(losses.bn_kl)).sum(), **self._objects(logits)}
        of_classes = {"instance_entropy": losses.instance_entropy, "batch_entropy": losses.class_balance}
        terms |= {name: term(logits) for name, term in of_classes.items() if self.weights[name]}
        if students and self.weights["adversarial"]:
            terms["adversarial"] = -self._apart(students, losses.kd_kl, images, logits)
        return terms
