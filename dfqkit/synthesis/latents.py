"""What a batch is optimised from where a generator makes it, and its best images so far."""

from __future__ import annotations

import torch
from torch import Tensor


class LatentBatch:
    """Latents N(0, 1) and labels of one batch, drawn anew, and the images of its step of lowest loss.

    Attributes:
        best: Loss, images and what else `keep` was given in the step of lowest loss; empty before the first.
    """

    def __init__(self, n: int, latent: int, classes: int, rng: torch.Generator) -> None:
        self.z = torch.randn((n, latent), generator=rng, device=rng.device, requires_grad=True)
        self.labels = torch.randint(classes, (n,), generator=rng, device=rng.device)
        self.best: dict[str, Tensor] = {}

    def keep(self, loss: Tensor, **tensors: Tensor) -> None:
        """Remember what a step gave, if its loss is the lowest so far."""
        if not self.best or bool(loss < self.best["loss"]):
            self.best = {name: value.detach().clone() for name, value in {"loss": loss, **tensors}.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return what it was drawn as, and has become."""
        return {"z": self.z, "labels": self.labels}

    def load(self, tensors: dict[str, Tensor], best: dict[str, Tensor]) -> None:
        """Put back copies of what `tensors` and ``best`` were."""
        self.z.data.copy_(tensors["z"])
        self.labels = tensors["labels"].clone()
        self.best = {name: value.clone() for name, value in best.items()}
