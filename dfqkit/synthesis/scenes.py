"""Images that are drawn by rules, with no network and no photograph: what natural and printed images have in common.

What belongs here: one image as layers of simple things. The ground and every leaf have a colour, where chance wants it
a gradient, and a texture whose amplitude falls with frequency as 1/f^a, as that of natural images does (Field,
"Relations between the statistics of natural images and the response properties of cortical cells", 1987). Leaves are
ellipses, rectangles and polygons that hide each other, with radii from a power law: dead leaves (Lee, Mumford and
Huang, "Occlusion models for natural images", IJCV 2001; Baradad et al., "Learning to see by looking at noise", NeurIPS
2021, train networks on them). On some images lies the attractor of a random iterated function system (Kataoka et al.,
"Pre-training without natural images", ACCV 2020), on some lie lines of glyphs that are made of strokes.

Ours: all numbers; every image mixes the kinds, so that few images hold much. Sizes are shares of the shorter side, so
that an image of 16 pixels is a small picture, not a corner of a large one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_POWER = (0.8, 2.0)  # of radii, drawn for each image: few large leaves, or many small ones
_ROUND, _SQUARE, _SIDES = 0.4, 0.3, 7  # shares of ellipses and of rectangles; most sides of a polygon
_SMALLEST = 3 / 224  # radius as a share of the shorter side, and 1 to 3 pixels
_PLANES = 4  # textures of an image, of which each leaf takes two, shifted
_POINTS, _STEPS, _SETTLED = 4096, 16, 6
_GLYPHS, _STROKES, _PIECES = 12, 3, 4


@dataclass(frozen=True, kw_only=True)
class Scenery:
    """What images are drawn of.

    Attributes:
        leaves: Fewest and most of an image; fewer on images too small for the smallest leaves.
        amplitude: Standard deviation of a texture, from and to, as a share of the range of pixels.
        spectrum: Exponent a of a texture's amplitude spectrum 1/f^a, from and to.
        gradients: Share of leaves whose colour changes across them.
        strokes: Share of images with lines of glyphs.
        fractals: Share of images with an attractor.
    """

    leaves: tuple[int, int] = (20, 120)
    amplitude: tuple[float, float] = (0.02, 0.18)
    spectrum: tuple[float, float] = (0.8, 1.6)
    gradients: float = 0.3
    strokes: float = 0.3
    fractals: float = 0.2


def draw_scenes(n: int, shape: tuple[int, int, int], rng: torch.Generator, scenery: Scenery) -> Tensor:
    """Return ``n`` images (n, C, H, W) of a ``shape`` (C, H, W), float32 in [0, 1], on the generator's device."""
    images = [_Scene(shape, rng, scenery).image() for _ in range(n)]
    return torch.stack(images) if images else torch.zeros((0, *shape), device=rng.device)


class _Scene:
    """One image; every random number is drawn from the generator, in a fixed order."""

    def __init__(self, shape: tuple[int, int, int], rng: torch.Generator, scenery: Scenery) -> None:
        self.channels, self.height, self.width = shape
        self.rng, self.scenery, self.device = rng, scenery, rng.device
        self.rows = torch.arange(self.height, dtype=torch.float32, device=self.device)
        self.columns = torch.arange(self.width, dtype=torch.float32, device=self.device)

    def image(self) -> Tensor:
        """Return the image (C, H, W), in [0, 1]."""
        fractal, strokes = self._uniform(2).tolist()
        image = self._leaves()
        if fractal < self.scenery.fractals:
            self._add_fractal(image)
        if strokes < self.scenery.strokes:
            self._add_text(image)
        return image.clamp_(0, 1)

    def _uniform(self, *size: int) -> Tensor:
        return torch.rand(size, generator=self.rng, device=self.device)

    def _textures(self) -> Tensor:
        """Planes (n, 2H, 2W): four copies of one of mean 0 and deviation 1 that meet without a seam."""
        low, high = self.scenery.spectrum
        exponents = low + (high - low) * self._uniform(_PLANES, 1, 1)
        across = torch.fft.rfftfreq(self.width, device=self.device)
        frequency = torch.hypot(torch.fft.fftfreq(self.height, device=self.device)[:, None], across)
        frequency[0, 0] = math.inf  # no share of the mean
        # Parts of waves are uniform numbers, which cost a third of normal ones: the sum of many waves is normal anyway.
        waves = torch.view_as_complex(self._uniform(_PLANES, *frequency.shape, 2) - 0.5)
        planes: Tensor = torch.fft.irfft2(waves * (-exponents * frequency.log()).exp(), s=(self.height, self.width))
        size = planes.square().mean((1, 2), keepdim=True).sqrt()
        return (planes / size.clamp_min(1e-12)).tile(2, 2)

    def _leaves(self) -> Tensor:
        """Return ground and leaves, each with colour, gradient and texture (C, H, W)."""
        seen, placed = self._leaf_map()
        channels, count = self.channels, placed.shape[1]
        low, high = self.scenery.amplitude
        grey, rough, angle, changing, *planes = self._uniform(10, count)
        vivid, colour, lean, gain, tint = self._uniform(5, channels, count)
        colour = grey + vivid[0, 0] * (colour - grey)
        lean = (lean - 0.5) * (changing < self.scenery.gradients)
        # Of two textures the stronger one is nearly grey, the other has a colour of its own.
        gain = (low + (high - low) * rough) * (0.7 + 0.3 * gain)
        tint = gain * (tint - 0.5)
        x, y, radius = placed
        right, down = (2 * math.pi * angle).cos() / radius, (2 * math.pi * angle).sin() / radius
        table = torch.cat([colour, lean, gain, tint, torch.stack([right, down, -right * x - down * y])])
        found = table.index_select(1, seen).reshape(-1, self.height, self.width)
        colour, lean, gain, tint = found[:-3].reshape(4, channels, self.height, self.width)
        right, down, start = found[-3:]
        image: Tensor = colour + lean * (right * self.columns + down * self.rows[:, None] + start)
        textures = self._textures().flatten()
        wide = 2 * self.width
        pixel = (self.rows.long()[:, None] * wide + self.columns.long()).flatten()
        for factor, (which, top, left) in ((gain, planes[:3]), (tint, planes[3:])):
            corner = (which * _PLANES).long() * 2 * self.height * wide
            corner = corner + (top * self.height).long() * wide + (left * self.width).long()
            texture = textures.take(corner.index_select(0, seen) + pixel)
            image.addcmul_(factor, texture.reshape(self.height, self.width))
        return image

    def _leaf_map(self) -> tuple[Tensor, Tensor]:
        """Return which leaf is seen at each pixel, int64 (H * W,), 0 the ground; and x, y, radius (3, leaves + 1).

        A leaf is where ``m (p - centre)`` is in the unit circle or, for a rectangle or polygon, where none of its
        entries, one a side, is above 1.
        """
        short = min(self.height, self.width)
        smallest = min(max(_SMALLEST * short, 1.0), 3.0)
        fewest, most = (count * min(1.0, _SMALLEST * short / smallest) for count in self.scenery.leaves)
        many, steep = self._uniform(2).tolist()
        count, power = round(fewest + (most - fewest) * many), _POWER[0] + (_POWER[1] - _POWER[0]) * steep
        x, y, radius, thin, turn, kind, own = self._uniform(7, count)
        tail = 1 - (smallest / max(short / 2, smallest + 1)) ** power
        placed = torch.stack([x * self.width, y * self.height, smallest * (1 - radius * tail) ** (-1 / power)])
        x, y, radius = placed
        polygon = kind >= _ROUND + _SQUARE
        sides = torch.where(polygon, (3 + (_SIDES - 2) * own).floor(), 4)
        bent = (torch.arange(_SIDES, device=self.device) + polygon[:, None] * 0.3 * self._uniform(count, _SIDES)).T
        normal = 2 * math.pi * bent / sides
        # Along the axis of the leaf and across it, where it may be narrower: most are nearly round, some are bars.
        along, across = normal.cos() / radius, normal.sin() / (radius * 0.15 ** thin.square())
        along, across = along / torch.where(polygon, 0.65, 1), across / torch.where(polygon, 0.65, 1)
        sine, cosine = (2 * math.pi * turn).sin(), (2 * math.pi * turn).cos()
        right, down = along * cosine - across * sine, along * sine + across * cosine
        over = right.T[..., None] * (self.columns - x[:, None])[:, None]
        under = down.T[..., None] * (self.rows - y[:, None])[:, None]
        rounded = kind < _ROUND
        reach = 1.45 * radius
        bounds = torch.stack([y - reach, y + reach + 1, x - reach, x + reach + 1]).clamp_min(0).long().T.tolist()
        seen = torch.zeros((self.height, self.width), dtype=torch.int64, device=self.device)
        forms = zip(bounds, rounded.tolist(), sides.long().tolist(), strict=True)
        for leaf, ((top, bottom, left, right_end), circle, rows) in enumerate(forms):
            rows = 2 if circle else rows
            part = over[leaf, :rows, None, left:right_end] + under[leaf, :rows, top:bottom, None]
            inside = (part[0].square() + part[1].square() if circle else part.amax(0)) <= 1
            seen[top:bottom, left:right_end].masked_fill_(inside, leaf + 1)
        ground = torch.tensor([[self.width / 2], [self.height / 2], [max(self.height, self.width) / 2]])
        return seen.flatten(), torch.cat([ground.to(self.device), placed], 1)

    def _add_fractal(self, image: Tensor) -> None:
        """Lay the attractor of two to four contracting affine maps over a part of the image."""
        numbers = self._uniform(5).tolist()
        maps = 2 + int(3 * numbers[0])
        first, second = 2 * math.pi * self._uniform(2, maps)
        shrink = 0.35 + 0.5 * self._uniform(maps, 1, 2)  # singular values below 1: every map contracts
        matrix = (_rotation(first) * shrink) @ _rotation(second)
        shift = 2 * self._uniform(maps, 2) - 1
        chosen = torch.randint(maps, (_STEPS, _POINTS), generator=self.rng, device=self.device)
        points, seen = torch.zeros((_POINTS, 2), device=self.device), []
        for step in chosen:
            points = (matrix[step] @ points[..., None])[..., 0] + shift[step]
            seen.append(points)
        found = torch.cat(seen[_SETTLED:])
        low, high = found.amin(0), found.amax(0)
        (top, height), (left, width) = (
            self._span(size, share, start)
            for size, share, start in ((self.height, *numbers[1:3]), (self.width, *numbers[3:5]))
        )
        size = torch.tensor([width, height], device=self.device)
        at = ((found - low) / (high - low).clamp_min(1e-6) * (size - 1e-3)).long().minimum(size - 1)
        density = torch.bincount(at[:, 1] * width + at[:, 0], minlength=height * width).float().log1p()
        density = (density / density.amax()).reshape(height, width)
        part = image[:, top : top + height, left : left + width]
        thin, dense = self._uniform(2, self.channels, 1, 1)
        part += (3 * density).clamp(max=1) * (thin + (dense - thin) * density - part)

    def _span(self, size: int, share: float, start: float) -> tuple[int, int]:
        """Return where a part of an axis begins and how long it is, from a third to all of it."""
        length = max(1, round(size * (1 + 2 * share) / 3))
        return int(start * (size - length + 1)), length

    def _add_text(self, image: Tensor) -> None:
        """Write lines of random glyphs in one ink, where chance wants it upright or on a plate."""
        tall, weight, lines, long, plate, upright = self._uniform(6).tolist()
        if upright < 0.2:
            image = image.mT
        height, width = image.shape[1:]
        least = min(5, height)
        size = round(least * max(1.0, height / 2 / least) ** tall)
        glyphs = self._glyphs(size, weight)
        rows = 1 + int(min(3, height // size - 1) * lines)
        columns = max(1, int(width / glyphs.shape[2] * (0.3 + 0.7 * long)))
        chosen = torch.randint(_GLYPHS, (rows, columns), generator=self.rng, device=self.device)
        written = glyphs[chosen] * (self._uniform(rows, columns, 1, 1) > 0.15)
        block = written.transpose(1, 2).reshape(rows * glyphs.shape[1], -1)[:height, :width]
        down, right = self._uniform(2).tolist()
        top, left = int(down * (height - len(block) + 1)), int(right * (width - block.shape[1] + 1))
        part = image[:, top : top + len(block), left : left + block.shape[1]]
        ink, paper = self._uniform(2, self.channels, 1, 1)
        if plate < 0.5:
            part.copy_(paper.expand_as(part))
        part += block * (ink - part)

    def _glyphs(self, size: int, weight: float) -> Tensor:
        """Return the share of ink (n, size, width) of some glyphs: strokes, straight and bent, on points of a grid."""
        width = max(2, round(0.7 * size))
        ends = torch.randint(3, (_GLYPHS, _STROKES, 3, 2), generator=self.rng, device=self.device) / 2
        straight = self._uniform(_GLYPHS, _STROKES, 1) < 0.6
        first, bend, last = ends.unbind(2)
        bend = torch.where(straight, (first + last) / 2, bend)
        t = torch.linspace(0, 1, _PIECES + 1, device=self.device)[:, None]
        first, bend, last = (point[:, :, None] for point in (first, bend, last))
        curve = (1 - t) ** 2 * first + 2 * t * (1 - t) * bend + t**2 * last
        thick = max(1.0, (0.06 + 0.14 * weight) * size)
        margin = thick / 2 + 0.08 * size
        scale = torch.tensor([width - 2 * margin, size - 2 * margin], device=self.device).clamp_min(0)
        curve = margin + curve * scale
        start = curve[:, :, :-1].reshape(_GLYPHS, -1, 1, 2)
        along = curve[:, :, 1:].reshape(_GLYPHS, -1, 1, 2) - start
        y = torch.arange(size, device=self.device).repeat_interleave(width)
        x = torch.arange(width, device=self.device).repeat(size)
        apart = torch.stack([x, y], -1) + 0.5 - start
        share = ((apart * along).sum(-1) / along.square().sum(-1).clamp_min(1e-6)).clamp(0, 1)
        distance = (apart - share[..., None] * along).square().sum(-1).amin(1).sqrt()
        return (0.5 + thick / 2 - distance).clamp(0, 1).reshape(_GLYPHS, size, width)


def _rotation(angle: Tensor) -> Tensor:
    """Matrices (n, 2, 2) that turn by angles (n,), in radians."""
    sine, cosine = angle.sin(), angle.cos()
    return torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
