"""Tiny diffusion models, as `diffusers` saves them; tests that use one skip where the package is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

STEPS = 50


def tiny_unet(size: int = 8, channels: int = 1, **more: Any) -> Any:
    """Return a network with the same random weights in every test."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra 'diffusers')")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.UNet2DModel(
            sample_size=size, in_channels=channels, **{"out_channels": channels} | more, layers_per_block=1,
            block_out_channels=(8, 16), down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=4, add_attention=False,
        )  # fmt: skip


def save_pipeline(folder: Path, unet: Any, **schedule: Any) -> Path:
    import diffusers

    scheduler = diffusers.DDPMScheduler(num_train_timesteps=STEPS, **{"beta_end": 0.2} | schedule)
    diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)
    return folder


def train(unet: Any, images: Tensor, steps: int, batch: int = 64) -> list[float]:
    """Train on images from -1 to 1, (n, C, H, W), as Ho et al. (2020), algorithm 1; return the losses."""
    import diffusers

    scheduler = diffusers.DDPMScheduler(num_train_timesteps=STEPS, beta_end=0.2)
    rng, optimizer, found = torch.Generator().manual_seed(0), torch.optim.Adam(unet.parameters(), lr=2e-3), []
    unet.train().requires_grad_(True)
    for _ in range(steps):
        x = images[torch.randint(len(images), (batch,), generator=rng)]
        noise, times = torch.randn(x.shape, generator=rng), torch.randint(STEPS, (batch,), generator=rng)
        loss = (unet(scheduler.add_noise(x, noise, times), times).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    unet.eval()
    return found
