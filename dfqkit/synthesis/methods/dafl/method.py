"""The algorithm of DAFL; its source, formula and deviations are told in the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.methods.dafl import DAFLConfig
from dfqkit.synthesis.online import OnlineSynthesizer
from dfqkit.teacher.structure import last_layer
from dfqkit.teacher.taps import LayerTap, per_image


class DAFL(OnlineSynthesizer):
    """Generators trained on a teacher's certainty, feature strength and class balance."""

    config: DAFLConfig

    def _set_up(self) -> None:
        super()._set_up()
        self.decay = self.config.balance_average
        self.last = last_layer(self.teacher)
        self.tap = LayerTap(self.teacher.model, [self.last], side="input")
        #: Mean prediction of past batches (classes,); empty before the first.
        self.mean = torch.zeros(0, device=self.device)

    def _terms(self, images: Tensor, students: Sequence[nn.Module]) -> dict[str, Tensor]:
        with self.tap as tap:
            logits = self.teacher.model(images)
            features = tap.values[self.last]
        return {
            "one_hot": losses.pseudo_label(logits),
            "activation": losses.activation_l1(per_image(features)),
            "class_balance": self._averaged_balance(logits)
            if self.config.balance_average
            else losses.class_balance(logits),
        }

    def _averaged_balance(self, logits: Tensor) -> Tensor:
        mean = torch.softmax(logits.float(), 1).mean(0)
        now = mean.detach()
        self.mean = torch.lerp(now, self.mean, self.decay) if len(self.mean) else now
        # Softmax of a distribution's logarithm is the distribution.
        return losses.class_balance(torch.log(self.mean + (mean - now) + 1e-12)[None])

    def _tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def _load_tensors(self, state: dict[str, Tensor]) -> None:
        self.mean = state["mean"].to(self.device)
