"""Loss terms as pure functions of tensors, named as in the literature. Lower is always better.

What belongs here: maths only. No teacher, no modules, no devices. Reductions are fixed once: a divergence between
distributions is summed over classes and averaged over the batch ("per-sample"), in natural logarithms. Published
weights that assume other reductions must be converted (PyTorch's default KL reduction also divides by the number of
classes). Entropies and divergences are computed in float32 even under autocast;
float64 stays float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def kd_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Response distillation: tau^2 * mean_n KL(softmax(t_n / tau) || softmax(s_n / tau)).

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.1. The factor tau^2
    keeps the gradient's size when the temperature changes. The same divergence is D of Choi et al. (2020).

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        temperature: tau > 0.

    Returns:
        Scalar in nats, at least 0. Lower is better.
    """
    log_s = F.log_softmax(_full(student) / temperature, dim=1)
    log_t = F.log_softmax(_full(teacher) / temperature, dim=1)
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * temperature**2


def logit_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of logits (Fang et al., "Data-Free Adversarial Distillation", 2019).

    Lower is better.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
    """
    return (_full(student) - _full(teacher)).abs().mean()


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of logits (Ba and Caruana, "Do Deep Nets Really Need to be Deep?", 2014).

    Lower is better.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
    """
    return (_full(student) - _full(teacher)).square().mean()


def instance_entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the predicted distributions, E[H(softmax(t))].

    Source: Choi et al., "Data-Free Network Quantization With Adversarial Knowledge Distillation", 2020, second term of
    L_psi: small where the teacher is sure of each image.

    Args:
        logits: (N, K).

    Returns:
        Scalar in nats, within [0, ln K]. Lower is better.
    """
    log_p = F.log_softmax(_full(logits), dim=1)
    return -(log_p.exp() * log_p).sum(1).mean()


def class_balance(logits: Tensor) -> Tensor:
    """Minus the entropy of the batch's mean prediction, -H(E[softmax(t)]).

    Source: the batch entropy of Choi et al. (2020), third term of L_psi, which is maximised; so its negative is
    returned. (The paper's formula read with a plus sign would drive all images to one class.)

    Args:
        logits: (N, K); N should be several K for the mean to say anything.

    Returns:
        Scalar in nats, within [-ln K, 0]. Lower is better: -ln K is a perfectly even batch.
    """
    mean = F.softmax(_full(logits), dim=1).mean(0)
    return (mean * torch.log(mean + 1e-12)).sum()


def bn_kl(mean: Tensor, variance: Tensor, running_mean: Tensor, running_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(running_mean, running_variance)), summed over the channels of one BatchNorm layer.

    Source: Choi et al. (2020), first term of L_psi: the generated batch first, the layer's running statistics second.
    Both variances are clamped at 1e-8.

    Args:
        mean: batch mean (C,) of the layer's input.
        variance: biased batch variance (C,), at least 0.
        running_mean: (C,).
        running_variance: (C,).

    Returns:
        Scalar in nats, at least 0. Lower is better.
    """
    ratio = _full(variance).clamp_min(1e-8) / _full(running_variance).clamp_min(1e-8)
    shift = (_full(mean) - _full(running_mean)).square() / _full(running_variance).clamp_min(1e-8)
    return 0.5 * (shift + ratio - torch.log(ratio) - 1).sum()


def _full(x: Tensor) -> Tensor:
    """Half precision has too few bits for logarithms of small probabilities."""
    return x.float() if x.dtype in _HALF else x


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of a feature over the feature's own energy, ||s - t||^2 / ||t||^2.

    Source: the hint loss of Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, equation 3, without a regressor
    and divided by the teacher's energy, so that layers of different size and scale weigh the same. Its negative
    logarithm is the SQNR that reports show.

    Args:
        student: feature (N, ...).
        teacher: feature of the same shape.

    Returns:
        Scalar, at least 0. Lower is better.
    """
    return (student.float() - teacher.float()).square().sum() / teacher.float().square().sum().clamp_min(1e-12)
