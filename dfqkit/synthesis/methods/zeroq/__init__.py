"""ZeroQ: pixels whose BatchNorm statistics are the teacher's; also the source of the hard-sample methods.

Source: Cai, Yao, Dong, Gholami, Mahoney, Keutzer, "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020 (arXiv
2001.00281). From noise and without labels, Adam on the pixels minimises

    L = bn * sum_l [ mean_c (mean_l - running_mean_l)^2 + mean_c (std_l - running_std_l)^2 ]
        + input * [ mean_c mean(x)^2 + mean_c (std(x) - 1)^2 ]

Terms of weight 0 make it the source of IntraQ (Zhong et al., "IntraQ: Learning Synthetic Images with Intra-Class
Heterogeneity for Zero-Shot Network Quantization", CVPR 2022) and HAST (Li et al., "Hard Sample Matters a Lot in
Zero-Shot Quantization", CVPR 2023), with labels y dealt evenly and p the teacher's probability of y:

    + ce * CE + hard_sample * mean (1 - p)^gamma CE
    + soft_label_error * mean over half of the images of (p - u)^2, u ~ U(soft_from, 1) drawn once an image
    + margin * hinges on the cosine distance d of the penultimate feature to its class's mean over earlier images,
      mean max(0, lower - d) + mean max(0, d - upper)

and ``crop``, IntraQ's local object reinforcement: in that share of the steps the teacher sees a random part of the
batch, enlarged. IntraQ is ``bn: mse``, ``input: 0``, ``crop: 0.5``, ``flip: true``, soft_label_error and margin 1; HAST
with CIFAR-10 is ``bn: mse``, ``input: 0``, ``hard_sample: 10``, ``gamma: 2``.

Needs: BatchNorm with running statistics, unless ``bn`` has weight 0 and other terms shape the images (``objects``, of
which a detector's procedural images have too few); with labels also classes, with the margin features in front of the
last layer.

Differs from ZeroQ's code: statistics are the batch's, because per-image ones (``statistics: image``) force every image
to the average and cost diversity; BatchNorm inputs are read where they enter the layer, not paired with convolutions
by order; one variance floor stands under both roots; the learning rate falls when the loss has not for a share of the
steps, not for a number of them, so that budgets scale. From IntraQ's: earlier images of a class are those of finished
batches, and a class without any is free of the margin.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from dfqkit.config.pools import PixelConfig
from dfqkit.config.synthesis import StatisticsWeights


class ZeroQWeights(StatisticsWeights):
    """Weights of the loss terms; those of labels are off in ZeroQ."""

    bn: float = Field(1.0, ge=0, description="BatchNorm statistics; 1 in all of these methods' codes.")
    input: float = Field(1.0, ge=0, description="The same form on the image, mean 0 and deviation 1 (ZeroQ, GENIE).")
    ce: float = Field(0.0, ge=0, description="Plain cross entropy with the labels.")
    hard_sample: float = Field(0.0, ge=0, description="HAST's beta: 10 for CIFAR, 0.1 for ImageNet.")
    soft_label_error: float = Field(0.0, ge=0, description="IntraQ's soft inception loss: 1.")
    margin: float = Field(0.0, ge=0, description="IntraQ's marginal distance constraint: 1.")


class ZeroQConfig(PixelConfig):
    """Batches of pixels on BatchNorm statistics, with label terms where they are asked for."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.zeroq.method:ZeroQ"
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm"})

    method: Literal["zeroq"] = "zeroq"
    lr: float = Field(0.5, gt=0, description="Adam (IntraQ's script).")
    decay: Literal["constant", "cosine", "plateau"] = Field(
        "plateau", description="A tenth when the loss has stopped falling, down to 1e-4 (ZeroQ's and IntraQ's scripts)."
    )
    statistics: Literal["batch", "image"] = Field(
        "batch", description="Whose mean and deviation are matched; image: every single one's (ZeroQ's code)."
    )
    bn: Literal["std", "mse", "l2", "normals"] = Field(
        "std",
        description="std: ZeroQ, GENIE, sum over layers; mse: IntraQ, HAST, mean; l2: DeepInversion, sum; "
        "normals: KL of normal distributions as in DFQ, mean over channels and layers, a thousandth of a layer's mean "
        "running variance added to both, against dead channels (ours).",
    )
    gamma: float = Field(2.0, ge=0, description="HAST's exponent: 2 for CIFAR, 0.5 for ImageNet.")
    soft_from: float = Field(0.95, ge=0, le=1, description="IntraQ's epsilon: 0.95 for CIFAR-10, 0.6 for CIFAR-100.")
    lower: float = Field(0.05, ge=0, le=2, description="Smallest cosine distance to the class mean (IntraQ, CIFAR-10).")
    upper: float = Field(0.8, ge=0, le=2, description="Largest one (IntraQ, CIFAR-10).")
    crop: float = Field(0.0, ge=0, le=1, description="Share of steps on a random part of the batch; IntraQ 0.5.")
    crop_area: float = Field(0.5, gt=0, le=1, description="Smallest part of the image's area (IntraQ).")
    weights: ZeroQWeights = ZeroQWeights()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lower > self.upper:
            message = f"lower ({self.lower}) must not be above upper ({self.upper})"
            raise ValueError(message)
        if self.statistics == "image" and self.bn == "l2":
            message = "statistics: image goes with bn: std, mse or normals; l2 is a norm over the channels of a batch's"
            raise ValueError(message)
        return self

    @property
    def needed(self) -> frozenset[str]:
        """With the margin, also features; BatchNorm only where it counts."""
        weights = self.weights
        found = set(super().needed) - (set() if weights.bn else {"batchnorm"})
        if weights.ce or weights.hard_sample or weights.soft_label_error or weights.margin:
            found.add("classes")
        if weights.margin:
            found.add("features")
        return frozenset(found)
