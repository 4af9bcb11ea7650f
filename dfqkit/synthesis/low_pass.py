"""A Gaussian low-pass over what any source draws.

Source: the filter of SynQ (Kim, Kim, Kang, "SynQ: Accurate Zero-shot Quantization by Synthesis-aware Fine-tuning", ICLR
2025) as its published code has it, and nothing else of that method. With D(u, v) the distance of a frequency from the
zero frequency in the image's 2-D Fourier transform, every channel's transform is multiplied by

    exp(-D^2 / (2 D0^2)),        D0 = low_pass * min(H, W)

and transformed back. Finished images lose the high-frequency noise that optimising pixels leaves in them; the mean of
every channel stays. Needs nothing of the teacher and costs no pass.

Differs from it: D0 is a share of the image's smaller side, so that one recipe serves several image sizes (20 to 100 of
224 pixels, which the code uses, are 0.09 to 0.45); what overshoots is cut off at the bounds of an image, because a
stored image cannot hold it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfqkit.synthesis.base import Synthesizer
from dfqkit.synthesis.finishing import Finished
from dfqkit_export.images.spec import ImageSpec


def low_pass_response(height: int, width: int, cutoff: float, device: torch.device | str = "cpu") -> Tensor:
    """Return what `torch.fft.rfft2` of an image is multiplied by, (height, width // 2 + 1), 1 at the zero frequency.

    ``cutoff`` is D0, the distance at which exp(-1/2) is left, in steps of the discrete frequency, above 0.
    """
    rows = torch.fft.fftfreq(height, 1 / height, device=device)
    columns = torch.fft.rfftfreq(width, 1 / width, device=device)
    return torch.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / (2 * cutoff**2))


def low_passed(images: Tensor, response: Tensor, image: ImageSpec) -> Tensor:
    """Filter normalised images (n, C, H, W) and cut off what lies outside of an image's bounds."""
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * response, s=images.shape[-2:])
    plain: Tensor = image.denormalize(filtered)
    return image.normalize(plain.clamp(0, 1))


class LowPassed(Finished):
    """Another synthesizer whose images are filtered when they are drawn."""

    def __init__(self, made: Synthesizer, low_pass: float) -> None:
        super().__init__(made)
        _, height, width = made.teacher.image.shape
        self.response = low_pass_response(height, width, low_pass * min(height, width), made.device)

    def _finish(self, images: Tensor) -> Tensor:
        return low_passed(images, self.response, self.teacher.image)
