"""Random views of images, one window an image, with gradient: what CMI and FastDFKD show a teacher.

What belongs here: shifts, crops and mirrors as pairs of matrices, one for rows and one for columns. Moving a window,
stretching it and mirroring it all act on rows and columns separately, so a view is two matrix products: exact for whole
pixels, differentiable, and unlike grid sampling and reflection padding repeatable on a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dfqkit_export.images.spec import ImageSpec


def usual_shift(image: ImageSpec) -> int:
    """Largest shift in pixels, as a share of the image what 4 pixels are of CIFAR's 32; at least 1."""
    return max(1, min(image.shape[1:]) // 8)


def shifted(images: Tensor, image: ImageSpec, most: int, rng: torch.Generator, *, flip: bool) -> Tensor:
    """Move every image by up to ``most`` pixels up, down and sideways; what comes into view is black.

    The literature's "pad by 4, random crop": the offset of each axis is uniform on the whole numbers of [-most, most].
    With ``flip`` each image is mirrored sideways with probability 1/2.
    """
    n, _, height, width = images.shape
    offset = torch.randint(-most, most + 1, (2, n), generator=rng, device=rng.device).float()
    rows = _windows(offset[0], torch.full_like(offset[0], height), height)
    columns = _windows(offset[1], torch.full_like(offset[1], width), width)
    if flip:
        columns = _mirrored(columns, rng)
    inside = rows.sum(2)[:, None, :, None] * columns.sum(2)[:, None, None, :]
    black = image.normalize(torch.zeros((1, *image.shape), device=images.device))
    return _seen(images, rows, columns) + (1 - inside) * black


def cropped(images: Tensor, smallest: float, rng: torch.Generator, *, flip: bool) -> Tensor:
    """Show a random window of every image at the image's full size.

    The window's area is uniform on [smallest, 1] of the image's, its aspect ratio log-uniform on [3/4, 4/3] of the
    image's, a side that would be too long is cut to the image's, and its place is uniform. Enlarged bilinearly, edges
    repeated; with ``flip`` each window is mirrored sideways with probability 1/2.
    """
    n, _, height, width = images.shape
    draw = torch.rand((4, n), generator=rng, device=rng.device)
    area = smallest + (1 - smallest) * draw[0]
    aspect = torch.exp(math.log(4 / 3) * (2 * draw[1] - 1))
    tall = (area / aspect).sqrt().clamp(max=1) * height
    wide = (area * aspect).sqrt().clamp(max=1) * width
    rows = _windows(draw[2] * (height - tall), tall, height, repeat_edge=True)
    columns = _windows(draw[3] * (width - wide), wide, width, repeat_edge=True)
    return _seen(images, rows, _mirrored(columns, rng) if flip else columns)


def _windows(start: Tensor, extent: Tensor, size: int, *, repeat_edge: bool = False) -> Tensor:
    """Bilinear weights (N, size, size), of which source pixel each of ``size`` pixels of a window is made."""
    pixel = torch.arange(size, device=start.device, dtype=start.dtype)
    source = start[:, None] + (pixel + 0.5) * (extent / size)[:, None] - 0.5
    if repeat_edge:
        source = source.clamp(0, size - 1)
    return (1 - (source[:, :, None] - pixel).abs()).clamp(min=0)


def _mirrored(matrix: Tensor, rng: torch.Generator) -> Tensor:
    coin = torch.rand(len(matrix), generator=rng, device=rng.device) < 0.5
    return torch.where(coin[:, None, None], matrix.flip(1), matrix)


def _seen(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return rows[:, None] @ images @ columns[:, None].mT
