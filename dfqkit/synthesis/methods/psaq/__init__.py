"""PSAQ-ViT: pixels whose tokens are of many similarities, for transformers, which have no BatchNorm.

Source: Li, Ma, Chen, Xiao, Gu, "Patch Similarity Aware Data-Free Quantization for Vision Transformers", ECCV 2022
(arXiv 2203.02250), and the authors' code. LayerNorm keeps no statistics of the data, but a trained transformer tells
noise from images: the outputs of its self-attention are alike on noise, and of many similarities where there are
foreground and background. For every batch, from noise, Adam on the pixels minimises

    L = entropy * sum over attentions of -H(density of cosine similarities between tokens, by a Gaussian kernel)
        + one_hot * CE(t(x), y) + tv * | TV(x) - a natural amount |

with labels y dealt evenly. The sum over attentions, the weights 1, 1 and 0.05 and the learning rate with its rise and
cosine are the paper's and the code's, shift and mirror those of DeepInversion.

Needs: attention between tokens with a softmax, found by its operators (`dfqkit.teacher.attention`); with one_hot above
0 also classes.

Differs from the authors' code: the density's integral has enough points to be one (`losses.similarity_entropy`); heads
are beside each other as in the paper, not averaged; all tokens count, a class token too, because telling it needs the
architecture; of many tokens some are drawn in every step; windows have a density each, since tokens in different
windows have not met. TV is told by pixel, so that it holds for any size: the code's norm of 2500
to 3000 of 32 images of 224 pixels is 1.14 to 1.37, its weight 0.05 is 110. One round instead of two that only differ in
the shift. The best batch is tracked as `pixels` says.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dfqkit.config.pools import PixelConfig
from dfqkit.config.synthesis import StatisticsWeights


class PSAQWeights(StatisticsWeights):
    """Weights of the loss terms."""

    of_classes: ClassVar[frozenset[str]] = frozenset({"one_hot"})

    entropy: float = Field(1.0, ge=0, description="Of each attention's similarities (authors' code).")
    one_hot: float = Field(1.0, ge=0, description="Cross entropy with the assigned labels (authors' code).")
    tv: float = Field(110.0, ge=0, description="Distance from the natural amount (authors' code, by pixel: 0.05).")


class PSAQConfig(PixelConfig):
    """Batches of pixels on the similarity of a transformer's tokens: for teachers without BatchNorm."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.psaq.method:PSAQ"
    needs: ClassVar[frozenset[str]] = frozenset({"classes", "tokens"})

    method: Literal["psaq"] = "psaq"
    batch: int = Field(32, ge=2, description="Images that are optimised together (authors' code).")
    steps: int = Field(500, ge=1, description="Steps a batch (authors' code: twice that).")
    lr: float = Field(0.2, gt=0, description="Adam (authors' code; Swin 0.25).")
    decay: Literal["constant", "cosine", "plateau"] = Field("cosine", description="Authors' code.")
    warmup: int = Field(100, ge=0, description="Steps over which the rate first rises; at most a tenth (code: 100).")
    jitter: int = Field(15, ge=0, description="Largest circular shift (authors' code; 30 in its second round).")
    flip: bool = Field(True, description="Mirror the whole batch in half of the steps (authors' code).")
    bandwidth: float = Field(
        0.05, gt=0, description="Of the density's kernel. Ours; the code's is 0.01, at ten points."
    )
    tokens: int = Field(64, ge=2, description="Most tokens of a row that are compared, drawn in every step. Ours: 64.")
    roughness: float = Field(
        1.25,
        ge=0,
        description="The natural amount of TV, the root mean square difference of neighbours over four ways.",
    )
    weights: PSAQWeights = PSAQWeights()
