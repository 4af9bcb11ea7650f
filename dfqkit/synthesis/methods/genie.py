"""GENIE-D: a generator and latents for every batch, fitted to BatchNorm statistics through swinging convolutions.

Source: Jeon, Lee, Kim, Park, "Genie: Show Me the Data for Quantization", CVPR 2023, the distilling half, and the
authors' code. A new generator g and new latents z minimise, for every batch,

    L = bn * sum over layers of ( mean_c (mean - running mean)^2 + mean_c (std - running std)^2 )
        + image * ( mean_c mean^2 + mean_c (std - 1)^2 ) of the normalised images g(z),

while strided convolutions of the teacher see their maps moved by a random pixel (`swing`). There is no term for labels
and none for students: the images are for calibration and block-wise reconstruction, and in a game nothing is made.

Two learning rates: z starts at 0.1 and falls when the loss stands still, the generator at 0.01 and falls by 5 percent
every 100 steps. (The authors' code calls the two optimizers by each other's names; these are the rates in effect.)

Differs from the authors' code: the generator is ours, sigmoid at the end (see `generator`); patience and decay are
shares of the steps, the published numbers at the published 4000 steps, so that a short run has a schedule too; Adam's
betas and the factor of a plateau (ten) are torch's, because no source that we know names others; the roots of both
variances have the same small constant (`losses.bn_std`).

Needs BatchNorm layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dfqkit import losses
from dfqkit.synthesis.base import NO_DEMAND, Demand, Losses, LossWeights
from dfqkit.synthesis.generator import Generator
from dfqkit.synthesis.optimizers import optimizer_tensors, restore_optimizer, under
from dfqkit.synthesis.pool import PoolConfig, PoolSynthesizer
from dfqkit.synthesis.swing import SwingConvolutions
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.taps import BatchNormTap

_DECAY = 0.95
_SHARE = 40  # 100 of the published 4000 steps


class GENIEWeights(LossWeights):
    """Weights of the loss terms."""

    bn: float = Field(1.0, ge=0, description="GENIE code.")
    image: float = Field(1.0, ge=0, description="GENIE code: the input's statistics count as one more layer.")


class GENIEConfig(PoolConfig):
    """The ``synthesis`` section of a recipe with ``method: genie``."""

    method: Literal["genie"] = "genie"
    batch: int = Field(128, ge=2, description="Images that are optimised together (GENIE code).")
    steps: int = Field(4000, ge=1, description="Steps a batch (GENIE code).")
    latent: int = Field(256, ge=1, description="Dimension of z (GENIE code).")
    width: int = Field(64, ge=4, description="Channels of the generator's last hidden map (GENIE code).")
    lr_latent: float = Field(0.1, gt=0, description="Adam on z, a tenth of it after each plateau (GENIE code).")
    lr_latent_floor: float = Field(1e-4, ge=0, description="What it does not fall below (GENIE code).")
    patience: int | None = Field(
        None, ge=1, description="Steps without progress that make a plateau; null: a fortieth (GENIE: 100 of 4000)."
    )
    lr_generator: float = Field(0.01, gt=0, description="Adam on the generator (GENIE code).")
    decay_every: int | None = Field(
        None, ge=1, description="Steps after which it loses 5 percent; null: a fortieth (GENIE: 100 of 4000)."
    )
    swing: bool = Field(True, description="Move the inputs of strided convolutions at random (GENIE code).")
    weights: GENIEWeights = GENIEWeights()


class GENIE(PoolSynthesizer):
    """A generator and its latents for every batch, against a teacher's statistics alone."""

    Config = GENIEConfig
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm"})

    def __init__(
        self, config: GENIEConfig, teacher: Teacher, generator: torch.Generator, demand: Demand = NO_DEMAND
    ) -> None:
        super().__init__(config, teacher, generator, demand)
        self.config = config
        self.weights: dict[str, float] = config.weights.model_dump()
        self.tap = BatchNormTap(teacher.model)
        # Without hooks on anything, it is the context that does nothing.
        self.swing = SwingConvolutions(teacher.model if config.swing else nn.Identity(), generator)
        share = max(1, config.steps // _SHARE)
        self.patience, self.decay_every = config.patience or share, config.decay_every or share

    def _begin(self) -> None:
        config = self.config
        self.member = Generator(self.teacher.image, config.latent, config.width, self.rng).to(self.device)
        self.z = torch.randn((config.batch, config.latent), generator=self.rng, device=self.device, requires_grad=True)
        self.latent_optimizer = torch.optim.Adam([self.z], lr=config.lr_latent)
        self.plateau = ReduceLROnPlateau(self.latent_optimizer, patience=self.patience, min_lr=config.lr_latent_floor)
        self.optimizer = torch.optim.Adam(self.member.parameters(), lr=config.lr_generator)

    def _step(self, students: Sequence[nn.Module], step: int, steps: int) -> Losses:
        images = self.member(self.z)
        with self.tap as tap, self.swing:
            self.teacher.model(images)
        variance, mean = torch.var_mean(images, (0, 2, 3), correction=0)
        terms = {
            "bn": torch.stack(tap.deviations(losses.bn_std)).sum(),
            "image": losses.bn_std(mean, variance, torch.zeros_like(mean), torch.ones_like(mean)),
        }
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_generator * _DECAY ** (step // self.decay_every)
        self.optimizer.zero_grad(set_to_none=True)
        self.latent_optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=[self.z, *self.member.parameters()])  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.latent_optimizer.step()
        self.plateau.step(float(loss.detach()))
        return {name: float(term.detach()) for name, term in terms.items()}

    def _finish(self) -> Tensor:
        with torch.no_grad():
            return self.member(self.z)  # type: ignore[no-any-return]

    def _tensors(self) -> dict[str, Tensor]:
        if not self.at:
            return {}
        plateau = (self.plateau.best, float(self.plateau.num_bad_epochs), self.latent_optimizer.param_groups[0]["lr"])
        parts = {
            "generator": self.member.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "latent_optimizer": optimizer_tensors(self.latent_optimizer),
        }
        state = {f"{part}.{name}": value for part, held in parts.items() for name, value in held.items()}
        return state | {"z": self.z, "plateau": torch.tensor(plateau, dtype=torch.float64)}

    def _load_tensors(self, state: dict[str, Tensor]) -> None:
        if not self.at:
            return
        self.z.data.copy_(state["z"])
        self.member.load_state_dict(under(state, "generator."))
        restore_optimizer(self.optimizer, under(state, "optimizer."))
        restore_optimizer(self.latent_optimizer, under(state, "latent_optimizer."))
        best, bad, lr = state["plateau"].tolist()
        self.plateau.best, self.plateau.num_bad_epochs = best, int(bad)
        self.latent_optimizer.param_groups[0]["lr"] = lr
