"""Contact sheets: what the synthetic images of a run look like, one PNG a stored set."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..imagebank import ImageBank


def contact_sheets(folder: Path, *, columns: int = 16, rows: int = 6) -> dict[str, bytes]:
    """One PNG a stored set: images in the order of the teacher's class, so that a missing class shows."""
    sheets = {}
    for file in sorted(folder.glob("*.safetensors")):
        bank = ImageBank.load(file)
        confidence, label = bank.logits.softmax(1).max(1)
        order = torch.argsort(label, stable=True)
        chosen = order[torch.linspace(0, len(order) - 1, min(len(order), columns * rows)).long()]
        caption = f"{bank.source}: {len(bank)} images, mean teacher confidence {float(confidence.mean()):.2f}"
        sheets[caption] = _png(bank.images[chosen], columns)
    return sheets


def _png(images: Tensor, columns: int) -> bytes:
    """A grid of uint8 images (N, C, H, W), small ones enlarged, as PNG."""
    from PIL import Image

    count, channels, height, width = images.shape
    scale = max(1, math.ceil(48 / width))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + 1), columns * (width + 1), 3), 255, np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image if channels == 3 else image[..., :1]
    picture = Image.fromarray(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
