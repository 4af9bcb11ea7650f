"""Terms that ask a detector or a segmenter to see something: objects, of all classes, small and large.

What belongs here: maths on probabilities of positions. Which outputs hold these is told by a task
(`dfqkit.tasks.TorchTask.objectness`). There is no paper: statistics of BatchNorm layers leave it open whether an image
shows anything, and on images without objects boxes and scores are never where a quantized network must be right.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dfqkit.losses._numerics import full

_SMALLEST, _OCTAVES = 1 / 32, 5
_EPS = 1e-6


def object_confidence(probabilities: Tensor, share: float = 0.01) -> Tensor:
    """-ln of the probability of the likeliest class, averaged over the most certain positions of each image.

    Ours. Only a ``share`` of the positions is asked for objects (at least one), since most of an image is background.

    Args:
        probabilities: (N, positions, classes), each within [0, 1]; what is left of 1 is background.
        share: Within (0, 1].

    Returns:
        Scalar in nats, within [0, 14]. Lower is better: every image shows something that the network is sure of.
    """
    certain = full(probabilities).amax(2)
    count = max(1, round(share * certain.shape[1]))
    return -(certain.topk(count, dim=1).values + _EPS).log().mean()


def object_balance(probabilities: Tensor) -> Tensor:
    """Return ln K - H of how the classes share what a batch shows.

    Ours, in the form of `class_balance`: a class's share is the sum of its squared probabilities over images and
    positions; squares, so that thousands of positions that are nearly background do not outweigh the objects.

    Args:
        probabilities: (N, positions, classes), each within [0, 1].

    Returns:
        Scalar in nats, within [0, ln K]. Lower is better: all classes alike.
    """
    return _unevenness(full(probabilities).square().sum((0, 1)))


def size_spread(probabilities: Tensor, sizes: Tensor) -> Tensor:
    """Return ln 6 - H of how the objects of a batch spread over octaves of size, from 1/32 of the image to all of it.

    Ours. A position counts with its largest squared probability; its size is shared linearly between the two octaves
    beside it, so that the term has a gradient in sizes, too. Smaller and larger ones count as the outer octaves.

    Args:
        probabilities: (N, positions, classes), each within [0, 1].
        sizes: (N, positions), side of the box at each position, as a share of the image's; above 0.

    Returns:
        Scalar in nats, within [0, ln 6]. Lower is better: small objects and large ones alike.
    """
    weights = full(probabilities).square().amax(2)
    octave = (full(sizes).clamp(_SMALLEST, 1) / _SMALLEST).log2()
    centres = torch.arange(_OCTAVES + 1, dtype=octave.dtype, device=octave.device)
    near = (1 - (octave[..., None] - centres).abs()).clamp_min(0)
    return _unevenness((weights[..., None] * near).sum((0, 1)))


def objects(probabilities: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Return the sum of `object_confidence`, `object_balance` and, where there are sizes, `size_spread`.

    Args:
        probabilities: (N, positions, classes), each within [0, 1].
        sizes: (N, positions), as a share of the image's side; None where positions have none.

    Returns:
        Scalar in nats, at least 0. Lower is better.
    """
    found = object_confidence(probabilities) + object_balance(probabilities)
    return found if sizes is None else found + size_spread(probabilities, sizes)


def _unevenness(amounts: Tensor) -> Tensor:
    """Return ln K - H of amounts (K,) at least 0, as shares; 0 where there is nothing."""
    shares = (amounts + _EPS) / (amounts + _EPS).sum()
    return (math.log(len(amounts)) + (shares * shares.log()).sum()).clamp_min(0)
