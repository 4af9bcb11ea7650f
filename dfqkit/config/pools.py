"""What families of methods have in common in a recipe: those that make a set, those on pixels, those with generators.

What belongs here: the shared fields, and how such a method is sized to a budget. What the families do with them stands
in `dfqkit.synthesis`: `pool`, `pixels`, `online`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from dfqkit.config.section import Added
from dfqkit.config.synthesis import Demand, SynthesizerConfig


class PoolConfig(SynthesizerConfig):
    """What all of these methods have in a recipe; a method gives ``steps`` its own default."""

    #: Teacher forward+backward passes an image costs in one step.
    passes_per_step: ClassVar[int] = 1

    batch: int = Field(128, ge=2, description="Images that are optimised together.")
    steps: int = Field(500, ge=1, description="Optimiser steps a batch.")
    game_steps: int | None = Field(None, ge=1, description="The same for a batch made in a game; null: steps.")
    memory: int = Field(65536, ge=1, description="Training images kept; beyond, new ones replace random old ones.")

    def batches(self, demand: Demand) -> int:
        """Batches that meet a demand."""
        return max(1, -(-demand.images // self.batch))

    def at_cost(self, passes: int, demand: Demand) -> Self:
        """As many steps a batch as the budget allows for all batches that the demand needs.

        Batches are whole: the images by which the last one exceeds the demand are made and kept like the others, and
        are paid for out of the budget, so that a demand just above a whole number of batches gets the fewest steps.
        """
        images = self.batches(demand) * self.batch * self.passes_per_step
        return self.model_copy(update={"steps": max(1, passes // images)})


class PixelConfig(PoolConfig):
    """What all of these methods have in a recipe; a method gives fields its own defaults."""

    file_keys: ClassVar[tuple[str, ...]] = ("start_from",)

    lr: float = Field(0.1, gt=0, description="Adam on the pixels, in normalised units.")
    decay: Literal["constant", "cosine", "plateau"] = Field(
        "constant", description="Learning rate over a stage: cosine to 0; plateau: a tenth when the loss stops falling."
    )
    patience: float = Field(0.05, gt=0, le=1, description="Share of a stage without a new best that is a plateau.")
    warmup: int = Field(
        0, ge=0, description="Steps over which the rate first rises linearly; at most a tenth of the stage."
    )
    jitter: int = Field(0, ge=0, description="Circular shift of the batch in every step, up to so many pixels.")
    flip: bool = Field(False, description="Mirror the whole batch in half of the steps.")
    clamp: bool = Field(True, description="Keep pixels within [0, 1] after every step.")
    start: Literal["normal", "uniform", "procedural"] = Field(
        "normal",
        description="N(0, 1) in the normalised space, clamped as above, U(0, 1) in pixels, or the images that method "
        "procedural draws (ours: nearer to natural ones than noise is, with the same steps).",
    )
    start_from: str | None = Field(
        None,
        description="Similar images (.npz, .zip, a folder, torchvision:NAME:ROOT) that batches start from instead of "
        "noise, so that the inversion enriches them. Each starts one image, so that none is in what trains and in what "
        "is fresh; copies count once. Images beyond their number, and those that grade, start from noise.",
    )
    bf16: Annotated[bool, Added("0.2.0")] = Field(
        False,
        description="Pass the teacher in bfloat16, as torch.autocast does; terms and pixels stay float32. Faster where "
        "the processor multiplies in it (GPUs, AVX-512 BF16, AMX), slower elsewhere; images differ.",
    )
    half_size: Annotated[float, Added("0.2.0")] = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of a batch's steps, the first ones, in which the teacher sees it at half its height and "
        "width, shifted half as far: a quarter of the cost (DeepInversion, Yin et al., 2020: 2/3 for imagenet0).",
    )
    classes: Annotated[Literal["even", "head_bias"], Added("0.2.0")] = Field(
        "even",
        description="How often labels are given: all alike, or as the softmax of the biases of the teacher's linear "
        "head says, which take up how often its training set had each class (the offset log prior of Menon et al., "
        "2021, equation 9; that it is read back is ours).",
    )
    start_resize: int | None = Field(None, ge=1, description="Shorter side of those, bicubic, before the crop.")
    start_crop: int | None = Field(None, ge=1, description="Centre crop of those.")

    @property
    def needed(self) -> frozenset[str]:
        """A linear head, too, where that tells how often labels are given."""
        return super().needed | ({"linear_head"} if self.classes == "head_bias" else set())

    def real_data(self) -> str | None:
        """Given images that batches start from."""
        return None if self.start_from is None else "similar images as a start"

    def grading(self) -> Self:
        """Start from noise, so that no given image is in what trains and in what grades."""
        return self.model_copy(update={"start_from": None})


class OnlineConfig(SynthesizerConfig):
    """What all of these methods have in a recipe; a method gives its own defaults."""

    generators: int = Field(1, ge=1, le=16, description="Networks, each with its own share of a batch (papers: 1).")
    batch: int = Field(128, ge=2, description="Images a generator step, over all generators (ZSKT: 128).")
    latent: int = Field(256, ge=1, description="Dimension of z (CMI scripts).")
    width: int = Field(64, ge=4, description="Channels of a generator's second block (CMI scripts); see Generator.")
    warmup: int = Field(300, ge=0, description="Generator steps before images are drawn. Ours.")
    steps: int = Field(1, ge=1, description="Steps of each generator in one round of the game (ZSKT: 1).")
    lr: float = Field(1e-3, gt=0, description="Adam, cosine, in the warm-up (ZSKT; CMI scripts).")
    lr_game: float = Field(1e-3, gt=0, description="The same in the game.")
    clip: float = Field(5.0, gt=0, description="Largest gradient norm (ZSKT).")
    memory: int = Field(
        8192, ge=0, description="Past images of the game kept; half of every training batch (CMI keeps all)."
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Images are drawn from a moving average of each generator's weights with this decay, against drift "
        "in the game (the idea of MAD, NeurIPS 2022, decay 0.95); 0 draws from the generators themselves.",
    )

    @property
    def each_batch(self) -> int:
        """Images of one generator's step; BatchNorm needs two."""
        return max(2, self.batch // self.generators)

    def grading(self) -> Self:
        """One generator with the batch of one member: as good an image as the ensemble's, at a share of the cost."""
        changed = {"generators": 1, "batch": self.each_batch, "memory": 0}
        return self.model_validate(self.model_dump() | changed)

    def at_cost(self, passes: int, demand: Demand) -> Self:
        """As many warm-up steps of all generators as the budget allows."""
        return self.model_copy(update={"warmup": max(1, passes // (self.generators * self.each_batch))})
