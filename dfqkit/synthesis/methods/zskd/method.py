"""The algorithm of ZSKD; its source, formula and deviations are told in the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.base import Losses
from dfqkit.synthesis.methods.zskd import ZSKDConfig
from dfqkit.synthesis.pixels import PixelSynthesizer, Stage
from dfqkit.teacher.structure import required_head


class ZSKD(PixelSynthesizer):
    """Pixels optimised for Dirichlet targets from the similarity of classes."""

    config: ZSKDConfig
    of_batch = ("target",)

    def _set_up(self) -> None:
        super()._set_up()
        self.weights = {"soft_label": 1.0}
        _, head = required_head(self.teacher, self.config.method)
        self.similarity = scaled_similarity(head.weight).to(self.device)
        self.target = torch.zeros(0, device=self.device)

    def _draw(self) -> None:
        config = self.config
        factors = torch.tensor(config.betas, dtype=torch.float64, device=self.device)
        beta = factors[torch.arange(config.batch, device=self.device) % len(factors)]
        concentration = beta[:, None] * self.similarity[self._assigned_labels()] + config.floor
        self.target = dirichlet(concentration, self.rng).float()

    def _terms(self, images: Tensor, students: Sequence[nn.Module]) -> dict[str, Tensor]:
        logits = self.teacher.model(images)
        return {"soft_label": losses.soft_cross_entropy(logits, self.target, self.config.temperature)}

    def _stages(self, steps: int) -> tuple[Stage, ...]:
        config = self.config
        return (Stage(start=0, stop=steps, jitter=config.jitter, clamp=config.clamp and not config.rescale),)

    def _step(self, students: Sequence[nn.Module], step: int, steps: int) -> Losses:
        terms = super()._step(students, step, steps)
        if self.config.rescale:
            image = self.teacher.image
            with torch.no_grad():
                plain = image.denormalize(self.x)
                low, high = plain.aminmax()
                self.x.copy_(image.normalize((plain - low) / (high - low).clamp_min(1e-8)))
        return terms


def scaled_similarity(weight: Tensor) -> Tensor:
    """Cosine between the rows of a head's weights (K, d), each row scaled to [0, 1].

    (K, K), float64; ones on the diagonal, a zero in every row (all ones where the row is constant).
    """
    rows = nn.functional.normalize(weight.detach().double(), dim=1)
    cosine = rows @ rows.T
    low, high = cosine.aminmax(dim=1, keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (cosine - low) / spread.clamp_min(1e-300), torch.ones_like(cosine))


def dirichlet(concentration: Tensor, rng: torch.Generator) -> Tensor:
    """Draw (N, K), float64, from Dirichlet distributions, with a generator, which torch.distributions does not take."""
    # Normalised in logarithms: a gamma variable of shape 1e-4 is usually below the smallest number.
    return log_gamma_variables(concentration, rng).softmax(1)


def log_gamma_variables(shape: Tensor, rng: torch.Generator) -> Tensor:
    """Logarithms of independent Gamma(shape, 1) variables, float64, of the same size as ``shape``.

    Source: Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", ACM Transactions on Mathematical
    Software, 2000: rejection for shape + 1 (section 2), and Gamma(a) = Gamma(a + 1) U^(1/a) (section 6).
    """
    shape = shape.double()
    if not bool(((shape > 0) & shape.isfinite()).all()):
        message = "A gamma variable's shape must be a finite number above 0; found one that is not."
        raise ValueError(message)
    d = shape + 1 - 1 / 3
    c = 1 / (9 * d).sqrt()
    found, waiting = torch.zeros_like(d), torch.ones_like(d, dtype=torch.bool)
    while bool(waiting.any()):
        x = torch.randn(d.shape, generator=rng, device=d.device, dtype=d.dtype)
        v = (1 + c * x) ** 3
        log_v = v.clamp_min(1e-300).log()
        accepted = waiting & (v > 0) & (_log_uniform(d, rng) < 0.5 * x.square() + d * (1 - v + log_v))
        found = torch.where(accepted, d.log() + log_v, found)
        waiting &= ~accepted
    return found + _log_uniform(d, rng) / shape


def _log_uniform(like: Tensor, rng: torch.Generator) -> Tensor:
    uniform = torch.rand(like.shape, generator=rng, device=like.device, dtype=like.dtype)
    return (1 - uniform).log()  # rand includes 0 and excludes 1
