"""What images and features should look like by themselves: smooth, small, active."""

from __future__ import annotations

from torch import Tensor

from dfqkit.losses._numerics import full, norm


def tv_l2(x: Tensor) -> Tensor:
    """Total variation: the Frobenius norms of four neighbour differences over the whole batch tensor, added up.

    Neighbours to the right, below, and on both diagonals. Source: the code of Yin et al. (2020, DeepInversion). The
    norms are not squared and run over the whole batch: the value grows like sqrt(N * C * H * W), so a published weight
    holds for the published batch size. The gradient of a constant image is zero.

    Args:
        x: Images (N, C, H, W), in the space the teacher sees.

    Returns:
        Scalar, at least 0. Lower is better.
    """
    right, below, falling, rising = _differences(full(x))
    return norm(right) + norm(below) + norm(falling) + norm(rising)


def tv_l1(x: Tensor) -> Tensor:
    """Total variation: the mean absolute values of four neighbour differences, added up.

    Neighbours as in `tv_l2`. Source: the code of Yin et al. (2020, DeepInversion). A mean, so its weight does not
    depend on the batch size. An axis of one pixel has no neighbours and adds nothing.

    Args:
        x: Images (N, C, H, W), in the space the teacher sees.

    Returns:
        Scalar, at least 0. Lower is better.
    """
    right, below, falling, rising = (d.abs().sum() / max(d.numel(), 1) for d in _differences(full(x)))
    return right + below + falling + rising


def _differences(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of all pixels from their neighbours: right, below, below right, below left."""
    left, right, above, below = x[..., :-1], x[..., 1:], x[..., :-1, :], x[..., 1:, :]
    return right - left, below - above, below[..., 1:] - above[..., :-1], below[..., :-1] - above[..., 1:]


def l2_batch(x: Tensor) -> Tensor:
    """Euclidean norm of the whole batch tensor; not squared.

    Source: the CIFAR-10 script of Yin et al. (2020, DeepInversion). Grows like sqrt(N). Its gradient at zero is zero.

    Args:
        x: Images (N, C, H, W), in the space the teacher sees.

    Returns:
        Scalar, at least 0. Lower is better.
    """
    return norm(full(x))


def l2_image(x: Tensor) -> Tensor:
    """Mean over the images of each image's Euclidean norm; not squared.

    Source: the ImageNet script of Yin et al. (2020, DeepInversion). Its gradient at a zero image is zero.

    Args:
        x: Images (N, C, H, W), in the space the teacher sees.

    Returns:
        Scalar, at least 0. Lower is better.
    """
    return norm(full(x).flatten(1), dim=1).mean()


def activation_l1(features: Tensor) -> Tensor:
    """Minus the mean absolute feature, -mean |f|: images that look like data excite the teacher.

    Source: the activation term of Chen et al. (2019, DAFL), whose features are those before the last layer; also Wang,
    "Data-Free Knowledge Distillation with Soft Targeted Transfer Set Synthesis", AAAI 2021. A mean over all elements,
    so that a weight transfers between layers of different size.

    Args:
        features: (N, ...).

    Returns:
        Scalar, at most 0. Lower is better.
    """
    return -full(features).abs().mean()
