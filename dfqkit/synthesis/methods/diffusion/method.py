"""Sampling from a diffusion model; sources, formula and deviations are told in the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.base import Losses, weighted_sum
from dfqkit.synthesis.methods.diffusion import DiffusionConfig
from dfqkit.synthesis.pool import PoolSynthesizer
from dfqkit.teacher.taps import BatchNormTap
from dfqkit_export.errors import ArtefactError
from dfqkit_export.lazy import imported

_SCHEDULERS = ("DDIMScheduler", "DDPMScheduler")
_LUMA = (0.299, 0.587, 0.114)


class Diffusion(PoolSynthesizer):
    """Images of a diffusion model in a local folder (`diffusers`), guided by the teacher where wanted."""

    config: DiffusionConfig

    def _set_up(self) -> None:
        super()._set_up()
        wrong = self._load(Path(self.config.path))
        if wrong:
            message = (
                f"The diffusion model in '{self.config.path}' will not do: {wrong}. Name the folder of a diffusers "
                f"pipeline: UNet2DModel in safetensors, for {self.teacher.image.shape[0]} channels (1 and 3 stand in "
                f"for each other), without classes; {' or '.join(_SCHEDULERS)}, of at least synthesis.steps "
                f"({self.config.steps}) steps."
            )
            raise ArtefactError(message)
        self.tap = BatchNormTap(self.teacher.model) if "batchnorm" in self.config.needed else None

    def _load(self, folder: Path) -> str:
        """Load network and schedule; return what is wrong with them. The global random state stays as it is."""
        diffusers = imported("diffusers", "diffusers")
        try:
            kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["scheduler"][1]
            with torch.random.fork_rng(devices=[]):
                self.unet = diffusers.UNet2DModel.from_pretrained(
                    folder, subfolder="unet", local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
                )
            self.schedule = diffusers.DDIMScheduler.from_pretrained(
                folder, subfolder="scheduler", local_files_only=True
            )
            self.schedule.set_timesteps(self.config.steps, device=self.device)
        except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
            return str(error)
        self.unet.to(self.device).eval().requires_grad_(False)
        has = self.unet.config
        size = (has.sample_size,) * 2 if isinstance(has.sample_size, int) else has.sample_size
        self.shape = (self.config.batch, has.in_channels, *size)
        channels = {has.in_channels, self.teacher.image.shape[0]}
        if kind not in _SCHEDULERS or has.num_class_embeds is not None:
            return f"it has {kind}" if kind not in _SCHEDULERS else "it wants a class for each image"
        return "" if len(channels) == 1 or channels == {1, 3} else f"it gives images of {has.in_channels} channels"

    def _begin(self) -> None:
        self.x = torch.randn(self.shape, generator=self.rng, device=self.device)

    def _step(self, students: Sequence[nn.Module], step: int, steps: int) -> Losses:
        times = self.schedule.timesteps.tolist()
        with torch.no_grad():
            noise = self.unet(self.x, times[step]).sample[:, : self.shape[1]]  # some predict a variance, too
            found = self.schedule.step(noise, times[step], self.x, eta=self.config.eta, generator=self.rng)
        self.x = found.prev_sample
        if not self.config.guidance:
            return {}
        left = self.schedule.alphas_cumprod[times[step + 1]] if step + 1 < steps else self.schedule.final_alpha_cumprod
        estimate = found.pred_original_sample.requires_grad_(True)
        terms = self._terms(self._images(estimate))
        (gradient,) = torch.autograd.grad(weighted_sum(terms, self.weights), estimate)
        length = self.config.guidance / gradient.square().mean().sqrt().clamp_min(1e-12)
        self.x = self.x - float(left) ** 0.5 * length * gradient
        return {name: float(term.detach()) for name, term in terms.items()}

    def _terms(self, images: Tensor) -> dict[str, Tensor]:
        found = {}
        if self.tap is None:
            logits = self.teacher.model(images)
        else:
            with self.tap as tap:
                logits = self.teacher.model(images)
                found["bn"] = torch.stack(tap.deviations(losses.bn_normals)).mean()
        of_classes = {"instance_entropy": losses.instance_entropy, "batch_entropy": losses.class_balance}
        return found | {name: term(logits) for name, term in of_classes.items() if self.weights[name]}

    def _images(self, x: Tensor) -> Tensor:
        """Return what the model gives, (n, C, H, W) from -1 to 1, as the teacher takes it."""
        image = self.teacher.image
        pixels = (x / 2 + 0.5).clamp(0, 1)
        if image.shape[0] < x.shape[1]:
            pixels = torch.einsum("nchw,c->nhw", pixels, pixels.new_tensor(_LUMA))[:, None]
        pixels = pixels.expand(-1, image.shape[0], -1, -1)
        return image.normalize(F.interpolate(pixels, image.shape[1:], mode="bilinear", antialias=True))

    def _finish(self) -> Tensor:
        return self._images(self.x)

    def _tensors(self) -> dict[str, Tensor]:
        return {"x": self.x} if self.at else {}

    def _load_tensors(self, state: dict[str, Tensor]) -> None:
        if self.at:
            self.x = state["x"].clone()
