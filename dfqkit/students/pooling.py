"""Average pooling as files hold it: the same numbers in torch, in the ONNX file and in a runtime's integer kernels.

What belongs here: the arithmetic of windows at the borders. ONNX Runtime 1.32 computes a float AveragePool as torch
does, but its integer kernel divides the windows that ``ceil_mode`` lets hang over the border by all of their places
where ``count_include_pad`` is set, and ONNX's shape inference counts windows that torch leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class AveragePool:
    """A pooling that every runtime computes alike: zeros around the image, windows, and a factor on what they give.

    Attributes:
        zeros: As `torch.nn.functional.pad` takes them: left, right, top, bottom.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil: bool
    include: bool
    zeros: tuple[int, ...] = (0, 0, 0, 0)
    factor: float = 1.0

    def on(self, size: tuple[int, ...], divisor: int | None = None) -> AveragePool:
        """Return the same pooling of maps of (height, width), written so that every runtime computes it alike."""
        kernel, stride, padding = self.kernel, self.stride, self.padding
        axes = list(zip(size, kernel, stride, padding, strict=True))
        over = [_overhang(*axis) if self.ceil else 0 for axis in axes]  # places beyond the padding that windows cover
        if divisor is not None:
            (top, left), (below, right) = padding, over
            zeros, factor = (left, left + right, top, top + below), kernel[0] * kernel[1] / divisor
            return replace(self, padding=(0, 0), ceil=False, include=True, zeros=zeros, factor=factor)
        if not any(over):
            return replace(self, ceil=False)
        if not self.include or not any(padding):
            return replace(self, include=False)
        # The padding counts and what hangs over does not: with zeros for the padding, nothing else is left out.
        (top, below), (left, right) = (_ends(*axis, over=far) for axis, far in zip(axes, over, strict=True))
        return replace(self, padding=(0, 0), include=False, zeros=(left, right, top, below))

    def module(self) -> nn.AvgPool2d:
        """Return the windows alone."""
        kernel, stride, padding = ((a, b) for a, b in (self.kernel, self.stride, self.padding))
        return nn.AvgPool2d(kernel, stride, padding, self.ceil, self.include)


def _overhang(size: int, kernel: int, stride: int, padding: int) -> int:
    """Return how far the last window of ``ceil_mode`` reaches beyond the padding; 0 where it adds no window."""
    room = size + 2 * padding - kernel
    last = -(-room // stride) * stride  # where the last window begins
    if last >= size + padding:  # torch leaves out a window that begins in the padding on the far side
        last -= stride
    return max(0, last - room)


def _ends(size: int, kernel: int, stride: int, padding: int, *, over: int) -> tuple[int, int]:
    """Return the zeros before and behind an axis, with which ``ceil_mode`` adds a window only where torch does."""
    if over:
        return padding, padding
    return padding, (size + 2 * padding - kernel) // stride * stride + kernel - size - padding


def adaptive_matrix(size: int, wanted: int) -> Tensor:
    """Return the matrix (wanted, size) of adaptive average pooling along one axis."""
    matrix = torch.zeros(wanted, size)
    for index in range(wanted):
        start, stop = index * size // wanted, -(-(index + 1) * size // wanted)
        matrix[index, start:stop] = 1 / (stop - start)
    return matrix
