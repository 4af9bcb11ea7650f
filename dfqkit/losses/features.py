"""Terms between a student's features and a teacher's: values, relations between layers, attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dfqkit.losses._numerics import full


def relative_error(
    student: Tensor, teacher: Tensor, average: Callable[[Tensor], Tensor] = lambda energy: energy
) -> Tensor:
    """Squared error of a feature over the feature's own energy, ||s - t||^2 / ||t||^2.

    Source: the hint loss of Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, equation 3, without a regressor
    and divided by the teacher's energy, so that layers of different size and scale weigh the same. Its negative
    logarithm is the SQNR that reports show.

    Args:
        student: Feature (N, ...).
        teacher: Feature of the same shape.
        average: Returns the mean of the energies of all shares of a batch, of which this is one of equal size: the
            mean of all shares' errors is then that of the batch.

    Returns:
        Scalar, at least 0. Lower is better.
    """
    energy = average(full(teacher).square().sum())
    return (full(student) - full(teacher)).square().sum() / energy.clamp_min(1e-12)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two features, over all elements.

    Source: the hint loss of Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, here averaged
    over the elements. Where shapes differ the caller projects the student's feature; the
    teacher's projection, if any, must be fixed, or both learn to be constant.

    Args:
        student: Feature (N, ...), after the projection.
        teacher: Feature of the same shape.

    Returns:
        Scalar, at least 0. Lower is better.

    Raises:
        ValueError: When the shapes differ.
    """
    _same_shape("features", student, teacher)
    return F.mse_loss(full(student), full(teacher))


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Flow of the solution procedure between two layers: G_ij = mean over positions of F1_i * F2_j, per image.

    Source: Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning", CVPR 2017. Where the spatial sizes differ the larger is average-pooled to the smaller. Not a loss: see
    `fsp`.

    Args:
        first: Feature (N, C1, H, W).
        second: Feature (N, C2, H', W').

    Returns:
        (N, C1, C2).
    """
    first, second = _to_smaller(full(first), full(second))
    positions = first.shape[2] * first.shape[3]
    return torch.bmm(first.flatten(2), second.flatten(2).transpose(1, 2)) / positions


def fsp(student_pair: tuple[Tensor, Tensor], teacher_pair: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared difference of the `fsp_matrix` of a pair of layers, over all entries and images.

    Source: Yim et al. (2017). Averaged over the entries, as later code does, where the definition adds them up: a
    weight for the sum must be multiplied by C1 * C2.

    Args:
        student_pair: Features (N, C1, H, W) and (N, C2, H', W').
        teacher_pair: Features with the same numbers of channels; spatial sizes may differ.

    Returns:
        Scalar, at least 0. Lower is better.

    Raises:
        ValueError: When the numbers of channels differ.
    """
    student, teacher = fsp_matrix(*student_pair), fsp_matrix(*teacher_pair)
    _same_shape("FSP matrices", student, teacher)
    return F.mse_loss(student, teacher)


def attention_map(features: Tensor) -> Tensor:
    """Return where a layer looks: the mean over channels of squared features, flattened and of Euclidean length 1.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional
    Neural Networks via Attention Transfer", ICLR 2017. Does not change when the features are scaled. A feature that is
    zero everywhere has the map zero, with gradient zero. Not a loss: see `attention`.

    Args:
        features: (N, C, H, W).

    Returns:
        (N, H * W), at least 0.
    """
    return F.normalize(full(features).square().mean(1).flatten(1), dim=1)


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of two `attention_map`, mean over the batch and the positions.

    Source: the code of Zagoruyko and Komodakis (2017), also in Micaelli and Storkey, "Zero-shot Knowledge Transfer via
    Adversarial Belief Matching", NeurIPS 2019 (ZSKT). A mean of squares as there, not a norm of the difference. Where
    the spatial sizes differ the larger feature is average-pooled to the smaller; the numbers of channels are free.

    Args:
        student: Feature (N, C, H, W).
        teacher: Feature (N, C', H', W').

    Returns:
        Scalar within [0, 2 / positions]. Lower is better.
    """
    student, teacher = _to_smaller(full(student), full(teacher))
    return F.mse_loss(attention_map(student), attention_map(teacher))


def _to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool whichever is larger, so that both have the smaller height and the smaller width."""
    if a.shape[2:] == b.shape[2:]:
        return a, b
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return F.adaptive_avg_pool2d(a, (height, width)), F.adaptive_avg_pool2d(b, (height, width))


def _same_shape(what: str, student: Tensor, teacher: Tensor) -> None:
    """Raise rather than broadcast."""
    if student.shape != teacher.shape:
        message = (
            f"The {what} of student and teacher must have one shape; found {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}. Choose matching layers, or project the student's features first."
        )
        raise ValueError(message)
