"""ZSKD: images for soft labels that the last layer's weights make likely.

Source: Nayak, Mopuri, Shaj, Babu, Chakraborty, "Zero-Shot Knowledge Distillation in Deep Networks", ICML 2019. Classes
whose rows of the last weight matrix point the same way get confused with each other; so for class c targets are drawn
from Dirichlet(alpha_c),

    alpha_c = beta * minmax(C_c) + floor,        C_cj = cos(w_c, w_j), scaled to [0, 1] within the row

half of them with beta = 1 and half with beta = 0.1 (peaked), and the images x minimise

    L = soft_label * mean_n -sum_k y_nk ln softmax(T(x_n) / temperature)_k

Needs the weights of a linear head; no BatchNorm, no features, no student.

Where the paper and the authors' code (vcl-iisc/ZSKD) disagree, this follows the paper:

- beta scales the concentration after the row was scaled to [0, 1]; the code scales the similarities before, which the
  scaling then cancels, so that all its targets have beta = 1;
- the code's addition of a floor of 1e-4 is kept: a concentration must be above zero.

Differs from both in that a batch holds all classes alike, not one (nothing in the loss couples the images, apart from
`rescale`), and in the learning rate's default; from the code in that every batch starts from noise, where it starts a
class once and goes on from the optimum of the batch before. Distillation is `training`'s, not the paper's.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dfqkit.config.pools import PixelConfig


class ZSKDConfig(PixelConfig):
    """Pixels optimised for Dirichlet targets from the similarity of classes."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.zskd.method:ZSKD"
    needs: ClassVar[frozenset[str]] = frozenset({"classes", "linear_head"})

    method: Literal["zskd"] = "zskd"
    batch: int = Field(100, ge=2, description="Images that are optimised together (author code).")
    steps: int = Field(1500, ge=1, description="Optimiser steps a batch (author code).")
    lr: float = Field(
        0.02,
        gt=0,
        description="Adam on the pixels, in normalised units. Ours: the authors' 0.001, on pixels in [0, 1], needs "
        "their 1500 steps.",
    )
    start: Literal["normal", "uniform"] = Field("uniform", description="As in PixelConfig; author code: U(0, 1).")
    betas: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0, 0.1), min_length=1, description="Factors of the concentration, taken in turn (paper: half and half)."
    )
    floor: float = Field(1e-4, gt=0, description="Added to every concentration (author code).")
    temperature: float = Field(20.0, gt=0, description="Of the teacher's answers (author code).")
    rescale: bool = Field(
        True, description="Scale the whole batch to fill [0, 1] after every step (author code); false: clamp."
    )
