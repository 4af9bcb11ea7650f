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

from typing import ClassVar, Literal

from pydantic import Field

from dfqkit.config.pools import PoolConfig
from dfqkit.config.synthesis import StatisticsWeights


class GENIEWeights(StatisticsWeights):
    """Weights of the loss terms."""

    bn: float = Field(1.0, ge=0, description="GENIE code.")
    image: float = Field(1.0, ge=0, description="GENIE code: the input's statistics count as one more layer.")


class GENIEConfig(PoolConfig):
    """A generator and its latents for every batch, against a teacher's statistics alone."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.genie.method:GENIE"
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm"})

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
