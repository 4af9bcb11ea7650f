"""What a set of images looks like to the teacher: classes, confidence, distance of the BatchNorm statistics, diversity.

What belongs here: numbers about images, none about students. The same numbers of real images are the yardstick.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dfqkit import losses
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.structure import linear_head
from dfqkit.teacher.taps import BatchNormTap, LayerTap, batch_norms

#: Images that are looked at: enough for statistics, few enough to be one batch.
MOST = 256


def image_statistics(teacher: Teacher, images: Tensor) -> dict[str, float | None]:
    """Describe normalised images (N, C, H, W), of which the first `MOST` count.

    Returns:
        ``images`` (how many counted); ``class_coverage``, the share of classes that the teacher sees at least once
        (with N < K images it cannot reach 1); ``class_evenness``, the entropy of its predictions' histogram over that
        of an even one, within [0, 1]; ``confidence``, the mean largest probability; ``bn_distance``, the KL divergence
        of each BatchNorm input's distribution from the layer's running one, mean over channels and layers, nats (None
        without BatchNorm); ``diversity``, the mean cosine distance of two images' features before the last layer (of
        their logits, where there is no linear head), within [0, 2].
    """
    images = images[:MOST]
    head = linear_head(teacher)
    norms = bool(batch_norms(teacher.model))
    distance: float | None = None
    with torch.no_grad(), LayerTap(teacher.model, [head[0]] if head else [], "input") as features:
        if norms:
            with BatchNormTap(teacher.model) as tap:
                logits = teacher.model(images)
                layers = [
                    losses.bn_kl(s.mean, s.variance, s.running_mean, s.running_variance) / len(s.mean)
                    for s in tap.statistics
                ]
                distance = float(torch.stack(layers).mean())
        else:
            logits = teacher.model(images)
        vectors = features.values[head[0]] if head else logits
        diversity = _cosine_distance(vectors.flatten(1))
    classes = teacher.image.classes
    count = torch.bincount(logits.argmax(1), minlength=classes).double()
    share = count / count.sum()
    entropy = -float((share * torch.log(share.clamp_min(1e-12))).sum())
    return {
        "images": len(images),
        "class_coverage": float((count > 0).double().mean()),
        "class_evenness": entropy / math.log(min(classes, len(images))) if len(images) > 1 else None,
        "confidence": float(logits.softmax(1).max(1).values.mean()),
        "bn_distance": distance,
        "diversity": diversity,
    }


def _cosine_distance(vectors: Tensor) -> float | None:
    """Return the mean of 1 - cos over all pairs of different rows."""
    n = len(vectors)
    if n < 2:
        return None
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    pairs = unit.sum(0).square().sum() - unit.square().sum()
    return float(1 - pairs / (n * (n - 1)))
