"""Images of an unconditional diffusion model that lies in a local folder, as they are or guided by the teacher.

What belongs here: its options. The folder is that of a `diffusers` pipeline with a UNet2DModel and the schedule of DDPM
or DDIM; its weights are read as safetensors, nothing is fetched and no code of the folder runs.

Sources: sampling is Song et al., "Denoising Diffusion Implicit Models", ICLR 2021, equations 12 and 16, as the
package's scheduler has it (``eta`` 1: Ho et al., 2020). Guidance is He et al., "Manifold Preserving Guided Diffusion",
ICLR 2024, without projection: the estimate x0 of the finished image, not the noisy one, goes down the gradient of

    L = bn * mean over layers of KL(N(batch) || N(running)), a channel + instance_entropy * E[H(softmax T(x0))]
        - batch_entropy * H(E[softmax T(x0)])

so that none has to pass through the diffusion model. Differs from it: the step has a fixed length, `guidance`, whatever
the scale of L, since networks' gradients differ by orders of magnitude.

Images are stretched to the teacher's size; grey ones are repeated for colours, and colours are averaged to grey as luma
(ITU-R BT.601). Costs: a step of the diffusion model is counted as one pass of the teacher, guided or not.

Needs: what the weights ask for where it is guided, else nothing.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field

from dfqkit.config.pools import PoolConfig
from dfqkit.config.synthesis import UNKNOWN, Demand, LossWeights


class DiffusionWeights(LossWeights):
    """What guides, relative to each other."""

    bn: float = Field(1.0, ge=0, description="Distance of BatchNorm statistics, as those of `dfqkit bank rank`.")
    instance_entropy: float = Field(0.0, ge=0, description="The teacher is to be sure of every image.")
    batch_entropy: float = Field(0.0, ge=0, description="Classes are to be even within a batch.")


class DiffusionConfig(PoolConfig):
    """Images of a diffusion model in a local folder (`diffusers`), guided by the teacher where wanted."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.diffusion.method:Diffusion"
    needs: ClassVar[frozenset[str]] = frozenset({"pipeline"})
    file_keys: ClassVar[tuple[str, ...]] = ("path",)
    origin: ClassVar[str] = "a given diffusion model"

    method: Literal["diffusion"] = "diffusion"
    path: str = Field(min_length=1, description="Folder of a pipeline: model_index.json, scheduler/, unet/.")
    steps: int = Field(50, ge=1, description="Denoising steps a batch, at most as many as it was trained with.")
    eta: float = Field(0.0, ge=0, le=1, description="Noise that is added in every step: 0 is DDIM, 1 is DDPM.")
    guidance: float = Field(
        0.0,
        ge=0,
        description="Root mean square of what guidance changes of the estimated image in a step, in pixels from -1 to "
        "1. Ours; 0: the teacher does not guide.",
    )
    weights: DiffusionWeights = DiffusionWeights()

    @property
    def needed(self) -> frozenset[str]:
        """What the weights ask for, where the teacher guides."""
        weights, guided = self.weights, self.guidance > 0
        asked = {"batchnorm": weights.bn, "classes": weights.instance_entropy or weights.batch_entropy}
        return self.needs | {name for name, weight in asked.items() if guided and weight}

    def real_data(self) -> str:
        """Return that it is unknown: the model was trained on something."""
        return UNKNOWN

    def at_cost(self, passes: int, demand: Demand) -> Self:
        """Return fewer steps where the budget asks for that; never more, which the model may not have."""
        return self.model_copy(update={"steps": min(self.steps, super().at_cost(passes, demand).steps)})
