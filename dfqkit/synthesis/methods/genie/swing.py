"""Swing convolution: strided convolutions that see a map moved by a random pixel, for as long as a context lasts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfqkit.teacher.taps import Tap


class SwingConvolutions(Tap):
    """Moves the input of every 2d convolution with a stride by -1, 0 or 1 pixels along both axes, anew at each call.

    Source: Jeon et al., "Genie: Show Me the Data for Quantization", CVPR 2023: pad by one reflected pixel, then take a
    window of the map's size at random. A strided convolution never looks at some pixels as often as at others, and an
    image optimised through it gets a checkerboard; moved at random, all pixels count the same. The whole batch is moved
    alike. An axis of one pixel has nothing to reflect and stays. The model itself is not changed: hooks move the
    inputs, and leaving the context takes them off.

    Example:
        >>> conv = nn.Conv2d(1, 1, 1, stride=2)
        >>> with SwingConvolutions(conv, torch.Generator().manual_seed(0)):
        ...     conv(torch.zeros(1, 1, 4, 4)).shape
        torch.Size([1, 1, 2, 2])
        >>> len(conv._forward_pre_hooks)
        0
    """

    def __init__(self, model: nn.Module, rng: torch.Generator) -> None:
        super().__init__()
        self.rng = rng
        self.layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Conv2d) and any(stride != 1 for stride in layer.stride)
        }

    def __enter__(self) -> SwingConvolutions:
        for layer in self.layers.values():
            self._hooks.enter_context(layer.register_forward_pre_hook(self._move))
        return self

    def _move(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        down, right = torch.randint(-1, 2, (2,), generator=self.rng, device=self.rng.device).tolist()
        return _moved(_moved(inputs[0], 2, down), 3, right)


def _moved(x: Tensor, axis: int, by: int) -> Tensor:
    """Return the window that starts at pixel ``by`` of the map, with the pixel beyond its edge reflected.

    Put together from parts, because the gradient of reflection padding is not repeatable on a GPU.
    """
    size = x.shape[axis]
    if size < 2 or not by:
        return x
    if by > 0:
        return torch.cat([x.narrow(axis, 1, size - 1), x.narrow(axis, size - 2, 1)], axis)
    return torch.cat([x.narrow(axis, 1, 1), x.narrow(axis, 0, size - 1)], axis)
