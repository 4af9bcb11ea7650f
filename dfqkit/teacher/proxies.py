"""Which of several sets of images is nearest to what a teacher was trained on, by what its BatchNorm layers remember.

What belongs here: the distance of a set. Who has pictures that could stand in for the lost ones asks for the nearest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from dfqkit import losses
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.taps import BatchNormTap


def batchnorm_distance(teacher: Teacher, batches: Iterable[Tensor]) -> float:
    """Return how far a set is from the training images, as BatchNorm layers remember them.

    The mean over the layers of `losses.bn_normals`, between what the whole set gives a layer and its running
    statistics. It is above 0 for the training images, too, where their number is small, and falls with it: compare sets
    of one size.

    Source: the term by which Yin et al., "Dreaming to Distill", 2020, make images; here given ones are told apart.

    Args:
        teacher: Has BatchNorm layers with running statistics.
        batches: Normalised images (n, C, H, W), at least one.

    Returns:
        Nats a channel, at least 0. Lower is nearer.

    Raises:
        TeacherError: It has no such layers.
    """
    sums: dict[int, list[Tensor]] = defaultdict(list)
    known: list[tuple[Tensor, Tensor]] = []
    count = 0
    with torch.no_grad(), BatchNormTap(teacher.model) as tap:
        for images in batches:
            teacher.model(images)
            count += len(images)
            known = [(each.running_mean, each.running_variance) for each in tap.statistics]
            for index, each in enumerate(tap.statistics):
                mean, variance = each.mean.double(), each.variance.double()
                found = torch.stack([mean, variance + mean.square()]) * len(images)
                sums[index] = [sums[index][0] + found] if sums[index] else [found]
    distances = []
    for index, (running_mean, running_variance) in enumerate(known):
        mean, power = sums[index][0] / count
        moments = (mean, (power - mean.square()).clamp_min(0), running_mean.double(), running_variance.double())
        distances.append(losses.bn_normals(*moments))
    return float(torch.stack(distances).mean())
