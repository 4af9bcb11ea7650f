"""The algorithm of GENIE-D; its source, formula and deviations are told in the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dfqkit import losses
from dfqkit.synthesis.base import Losses, weighted_sum
from dfqkit.synthesis.generator import Generator
from dfqkit.synthesis.methods.genie import GENIEConfig
from dfqkit.synthesis.methods.genie.swing import SwingConvolutions
from dfqkit.synthesis.optimizers import optimizer_tensors, prefixed, restore_optimizer, under
from dfqkit.synthesis.pool import PoolSynthesizer
from dfqkit.teacher.taps import BatchNormTap

_DECAY = 0.95
_SHARE = 40  # 100 of the published 4000 steps


class GENIE(PoolSynthesizer):
    """A generator and its latents for every batch, against a teacher's statistics alone."""

    config: GENIEConfig

    def _set_up(self) -> None:
        super()._set_up()
        config = self.config
        self.tap = BatchNormTap(self.teacher.model)
        # Without hooks on anything, it is the context that does nothing.
        self.swing = SwingConvolutions(self.teacher.model if config.swing else nn.Identity(), self.rng)
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
            outputs = self.teacher.model(images)
        variance, mean = torch.var_mean(images, (0, 2, 3), correction=0)
        terms = {
            "bn": torch.stack(tap.deviations(losses.bn_std)).sum(),
            "image": losses.bn_std(mean, variance, torch.zeros_like(mean), torch.ones_like(mean)),
            **self._objects(outputs),
        }
        loss = weighted_sum(terms, self.weights)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_generator * _DECAY ** (step // self.decay_every)
        self.optimizer.zero_grad(set_to_none=True)
        self.latent_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss, inputs=[self.z, *self.member.parameters()])
        self.optimizer.step()
        self.latent_optimizer.step()
        self.plateau.step(float(loss.detach()))
        return {name: float(term.detach()) for name, term in terms.items()}

    def _finish(self) -> Tensor:
        with torch.no_grad():
            images: Tensor = self.member(self.z)
        return images

    def _tensors(self) -> dict[str, Tensor]:
        if not self.at:
            return {}
        plateau = (self.plateau.best, float(self.plateau.num_bad_epochs), self.latent_optimizer.param_groups[0]["lr"])
        state = prefixed(
            generator=self.member.state_dict(),
            optimizer=optimizer_tensors(self.optimizer),
            latent_optimizer=optimizer_tensors(self.latent_optimizer),
        )
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
