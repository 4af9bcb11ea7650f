"""Terms between a student's logits and a teacher's: distillation, and the competition a synthesizer plays."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dfqkit.losses._numerics import full


def kd_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Response distillation: tau^2 * mean_n KL(softmax(t_n / tau) || softmax(s_n / tau)).

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.1. The factor tau^2
    keeps the gradient's size when the temperature changes. The same divergence is D of Choi et al. (2020). Codes that
    keep PyTorch's default reduction (GDFQ, Qimera, ZSKT) return 1/K of this at equal temperature.

    Args:
        student: Logits (N, K).
        teacher: Logits (N, K).
        temperature: tau > 0.

    Returns:
        Scalar in nats, at least 0. Lower is better.
    """
    log_s = F.log_softmax(full(student) / temperature, dim=1)
    log_t = F.log_softmax(full(teacher) / temperature, dim=1)
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * temperature**2


def logit_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of logits (Fang et al., "Data-Free Adversarial Distillation", 2019).

    Lower is better.

    Args:
        student: Logits (N, K).
        teacher: Logits (N, K).
    """
    return (full(student) - full(teacher)).abs().mean()


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of logits (Ba and Caruana, "Do Deep Nets Really Need to be Deep?", 2014).

    Lower is better.

    Args:
        student: Logits (N, K).
        teacher: Logits (N, K).
    """
    return (full(student) - full(teacher)).square().mean()


def js_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Jensen-Shannon divergence of the softened predictions, mean over the batch.

    JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2: symmetric, and it saturates where the networks
    disagree completely, as KL does not. No factor tau^2.

    Source: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020, Adaptive
    DeepInversion. Differs from the authors' code, which clamps p, q and m to [0.01, 0.99] without renormalising
    (with 1000 classes that removes nearly all of the gradient) and swaps the arguments of both divergences,
    KL(m || p) and KL(m || q). For small differences of p and q both forms agree.

    Args:
        student: Logits (N, K).
        teacher: Logits (N, K).
        temperature: tau > 0.

    Returns:
        Scalar in nats, within [0, ln 2]. Lower is better.
    """
    log_s = F.log_softmax(full(student) / temperature, dim=1)
    log_t = F.log_softmax(full(teacher) / temperature, dim=1)
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    from_student = F.kl_div(log_m, log_s, reduction="batchmean", log_target=True)
    from_teacher = F.kl_div(log_m, log_t, reduction="batchmean", log_target=True)
    return 0.5 * (from_student + from_teacher)


def competition(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    """Return what images pay for being easy: 1 - JS of the two predictions.

    Source: Adaptive DeepInversion in Yin et al. (2020); the temperature 3 is that of the authors' code. Differs from
    the code as `js_divergence` does.

    Args:
        student: Logits (N, K), with gradient to the images.
        teacher: Logits (N, K).
        temperature: tau > 0.

    Returns:
        Scalar within [1 - ln 2, 1]. Lower is better: the student answers otherwise than the teacher.
    """
    return 1 - js_divergence(student, teacher, temperature)


def agreeing_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(t_n) || softmax(s_n)) where both networks name the same class, and 0 elsewhere; mean over all images.

    Source: the decision adversary of Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation",
    IJCAI 2021 (CMI; also FastDFKD): an image both agree on is worth attacking, one they already disagree on is not
    pushed further. A synthesizer minimises the negative. The choice of images carries no gradient.

    Args:
        student: Logits (N, K).
        teacher: Logits (N, K).

    Returns:
        Scalar in nats, at least 0. Lower is better for a student; an adversary negates it.
    """
    student, teacher = full(student), full(teacher)
    log_s, log_t = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    divergence = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)
    return (divergence * (student.argmax(1) == teacher.argmax(1))).mean()
