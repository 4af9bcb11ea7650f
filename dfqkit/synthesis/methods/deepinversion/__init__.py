"""DeepInversion: pixels that the teacher is sure of, with its BatchNorm statistics and smooth.

Source: Yin, Molchanov, Alvarez, Li, Mallya, Hoiem, Jha, Kautz, "Dreaming to Distill: Data-free Knowledge Transfer via
DeepInversion", CVPR 2020 (arXiv 1912.08795). For every batch, from noise, Adam on the pixels minimises

    L = ce * CE(t(x'), y) + tv_l2 * TV_2(x') + tv_l1 * TV_1(x') + l2 * ||x'||
        + bn * sum_l w_l ( ||mean_l(x') - running_mean_l||_2 + ||variance_l(x') - running_variance_l||_2 )

where x' is the batch as the teacher sees it (averaged down, shifted, mirrored), y labels that are assigned to the
images, and w_l is 1 but for the first BatchNorm. TV_2 and TV_1 take the four differences to neighbours of the whole
batch; all signs are plus. The schedules are those of the authors' scripts, CIFAR-10 with the parameters that their
README calls the paper's, ImageNet with its three settings.

Needs: BatchNorm with running statistics. The low-resolution stage of ``imagenet0`` needs a teacher that takes images of
half the size.

Differs from the scripts: labels are dealt evenly over the classes in random order (scripts: fixed, or drawn at random),
so that small sets hold every class; the best batch is tracked as `pixels` says; a budget other than the schedule's own
keeps its proportions (two thirds of ``imagenet0`` at low resolution, warm-up at most a tenth of a stage); shifts at low
resolution are half of the given ones (15 and 30 in the script). Without clamping (``imagenet2``), the stored 8 bits cut
off what lies outside of [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from dfqkit.config.pools import PixelConfig
from dfqkit.config.synthesis import StatisticsWeights

_IMAGENET: dict[str, Any] = {
    "batch": 84,
    "lr": 0.25,
    "decay": "cosine",
    "warmup": 100,
    "jitter": 30,
    "flip": True,
    "first_bn": 10.0,
    "l2_over": "image",
    "weights": {"bn": 0.01, "tv_l2": 1e-4, "l2": 1e-5},
}


#: What a schedule sets where a recipe does not: the README's commands for ImageNet; CIFAR-10 is the fields' defaults.
SCHEDULES: dict[str, dict[str, Any]] = {
    "cifar": {},
    "imagenet0": _IMAGENET | {"steps": 3000, "half_size": 2 / 3},
    "imagenet1": _IMAGENET | {"steps": 2000},
    "imagenet2": _IMAGENET | {"steps": 20000, "clamp": False},
}


class DeepInversionWeights(StatisticsWeights):
    """Weights of the loss terms; the defaults are for CIFAR-10 and its schedule."""

    of_classes: ClassVar[frozenset[str]] = frozenset({"ce"})

    ce: float = Field(1.0, ge=0, description="Cross entropy with the assigned labels (authors' scripts).")
    bn: float = Field(10.0, ge=0, description="bn_l2, summed over layers (authors' README; 0.01 for ImageNet).")
    tv_l2: float = Field(
        2.5e-5, ge=0, description="Norm over the whole batch, grows with its size (README; 1e-4 for ImageNet)."
    )
    tv_l1: float = Field(0.0, ge=0, description="Off in all schedules (authors' scripts).")
    l2: float = Field(0.0, ge=0, description="Norm of the image (README; 1e-5 for ImageNet).")


class DeepInversionFields(PixelConfig):
    """What this method and its adaptive form have in a recipe."""

    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm", "classes"})

    schedule: Literal["cifar", "imagenet0", "imagenet1", "imagenet2"] = Field(
        "cifar",
        description="The defaults of everything else, and Adam's momenta. imagenet0: two thirds of the steps averaged "
        "down by two, then full size; 1: full size; 2: the same, longer, unclamped (the scripts' settings 0 to 2).",
    )
    batch: int = Field(256, ge=2, description="Images that are optimised together (README; 84 for ImageNet).")
    steps: int = Field(2000, ge=1, description="README; 3000, 2000 and 20000 for ImageNet.")
    lr: float = Field(0.05, gt=0, description="Adam (README; 0.25 for ImageNet).")
    jitter: int = Field(2, ge=0, description="Largest circular shift (scripts; 30 for ImageNet's 224 pixels).")
    first_bn: float = Field(1.0, ge=0, description="w of the first BatchNorm (10 in the ImageNet script).")
    l2_over: Literal["batch", "image"] = Field(
        "batch", description="Norm of the batch (CIFAR script), or the mean of every image's (ImageNet script)."
    )
    weights: DeepInversionWeights = DeepInversionWeights()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Write the schedule's own values where none are given, so that a resolved recipe shows them."""
        preset = SCHEDULES.get(values.get("schedule", "cifar")) if isinstance(values, Mapping) else None
        if not preset:
            return values
        weights = values.get("weights", {})
        if isinstance(weights, Mapping):
            values = {**values, "weights": {**preset["weights"], **weights}}
        return {**preset, **values}


class DeepInversionConfig(DeepInversionFields):
    """Batches of pixels with assigned labels, BatchNorm statistics and image priors."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.deepinversion.method:DeepInversion"

    method: Literal["deepinversion"] = "deepinversion"
