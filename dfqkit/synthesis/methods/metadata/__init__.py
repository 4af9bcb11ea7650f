"""Metadata: images that bring back recorded activations.

Source: Lopes, Fenu, Starner, "Data-Free Knowledge Distillation for Deep Neural Networks", 2017 (arXiv 1710.07535). Not
free of data altogether: when the teacher is released, its owner records per class the mean and covariance of its
layers' outputs (`dfqkit record`); no image leaves. From then on targets are drawn, for an image of class c,

    a_l ~ N(mean_lc, covariance_lc)    layer by layer, of its pre-activation outputs T_l

the top layer T_L being the logits over the recording's temperature, and images x minimise one of

    top       mean (relu(a_L) - relu(T_L(x)))^2
    all       sum over layers of (1/d_l) mean (relu(a_l) - relu(T_l(x)))^2
    spectral  mean over images, sum over pairs of (1/k) ||V_k^T [T_l(x); T_l+1(x)] - b||^2,  b ~ N of the recorded same

where V_k are the lowest frequencies of the graph that the weights between two layers make (`recording`).

Needs the records file; of the teacher only that it is the recorded one.

Differs from the paper and from the authors' code (iRapha/replayed_distillation) in that

- convolutional layers are recorded and matched as averages over positions (`records`), which says nothing of where in
  the image something is;
- the spectral form is our definition: the code has the name, but computes `all`;
- targets use the Cholesky factor of the covariance, where the code multiplies by the covariance itself;
- a batch holds all classes alike, and starts from N(mean, std) of the teacher's normalisation (code: constants for each
  data set).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, Self

from pydantic import Field

from dfqkit.config.pools import PixelConfig
from dfqkit_export.errors import RecipeError


class MetadataConfig(PixelConfig):
    """Pixels optimised for activations drawn from what was recorded of real images."""

    implementation: ClassVar[str] = "dfqkit.synthesis.methods.metadata.method:Metadata"
    needs: ClassVar[frozenset[str]] = frozenset({"classes", "records"})

    method: Literal["metadata"] = "metadata"
    records: str = Field(description="File that `dfqkit record` wrote for this teacher.")
    loss: Literal["top", "all", "spectral"] = Field("all", description="Which records are matched.")
    batch: int = Field(64, ge=2, description="Images that are optimised together (author code).")
    steps: int = Field(1000, ge=1, description="Optimiser steps a batch (author code).")
    lr: float = Field(
        0.1, gt=0, description="Adam on the pixels, in normalised units (author code: 0.07 on those of MNIST)."
    )

    def resolved(self, find: Callable[[str], str]) -> Self:
        """Return the same, with ``records`` found; where there is no such file, say what makes one."""
        try:
            found = find(self.records)
        except RecipeError as error:
            message = f"{error} `dfqkit record RECIPE --data IMAGES --out FILE` makes it from labelled training images."
            raise RecipeError(message) from error
        return super().resolved(find).model_copy(update={"records": found})

    def real_data(self) -> str:
        """Return the records, and images to start from where it has them."""
        start = super().real_data()
        return "records of real activations" + (f" and {start}" if start else "")
