"""Terms that read one network's logits: how sure it is, of which class, and how evenly over a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dfqkit.losses._numerics import full


def soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with soft targets, mean_n -sum_k y_nk ln softmax(t_n / tau)_k.

    Source: the synthesis objective of Nayak et al., "Zero-Shot Knowledge Distillation in Deep Networks", ICML 2019
    (tau 20 there). No factor tau^2: the targets are not softened with the logits.

    Args:
        logits: (N, K).
        target: (N, K), rows that are distributions.
        temperature: tau > 0.

    Returns:
        Scalar in nats, at least the mean entropy of the targets. Lower is better.
    """
    return -(full(target) * F.log_softmax(full(logits) / temperature, dim=1)).sum(1).mean()


def pseudo_label(logits: Tensor) -> Tensor:
    """Cross-entropy with the network's own answer, CE(t, argmax t).

    Source: the one-hot term of Chen et al., "Data-Free Learning of Student Networks", ICCV 2019 (DAFL). It is
    -ln max softmax(t), close to `instance_entropy` but not equal. The answer carries no gradient.

    Args:
        logits: (N, K).

    Returns:
        Scalar in nats, within [0, ln K]. Lower is better: the network is sure.
    """
    logits = full(logits)
    return F.cross_entropy(logits, logits.argmax(1))


def instance_entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the predicted distributions, E[H(softmax(t))].

    Source: Choi et al., "Data-Free Network Quantization With Adversarial Knowledge Distillation", 2020, second term of
    L_psi: small where the teacher is sure of each image.

    Args:
        logits: (N, K).

    Returns:
        Scalar in nats, within [0, ln K]. Lower is better.
    """
    log_p = F.log_softmax(full(logits), dim=1)
    return -(log_p.exp() * log_p).sum(1).mean()


def class_balance(logits: Tensor) -> Tensor:
    """Minus the entropy of the batch's mean prediction, -H(E[softmax(t)]).

    Source: the batch entropy of Choi et al. (2020), third term of L_psi, which is maximised; so its negative is
    returned. (The paper's formula read with a plus sign would drive all images to one class.) The information entropy
    of DAFL is the same term in base 10: 1 / ln 10 of this.

    Args:
        logits: (N, K); N should be several K for the mean to say anything.

    Returns:
        Scalar in nats, within [-ln K, 0]. Lower is better: -ln K is a perfectly even batch.
    """
    mean = F.softmax(full(logits), dim=1).mean(0)
    return (mean * torch.log(mean + 1e-12)).sum()


def hard_sample(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Cross-entropy that counts hard images more, mean_n (1 - p_ny)^gamma * CE(t_n, y_n).

    Source: the hard-sample term of Li et al., "Hard Sample Matters a Lot in Zero-Shot Quantization", CVPR 2023
    (HAST), whose form is the focal loss of Lin et al. (2017). The gradient passes through the weight too. 1 - p is
    clamped at 1e-12, because its power with gamma < 1 has no finite slope at 0.

    Args:
        logits: (N, K).
        labels: (N,), class indices.
        gamma: At least 0; 0 is the plain cross-entropy.

    Returns:
        Scalar in nats, at least 0 and at most the cross-entropy. Lower is better.
    """
    log_p = F.log_softmax(full(logits), dim=1).gather(1, labels.unsqueeze(1))
    doubt = (-torch.expm1(log_p)).clamp_min(1e-12)
    return -(doubt.pow(gamma) * log_p).mean()


def soft_label_error(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Squared error of the label's probability, mean_n (softmax(t_n)_y - target_n)^2; the other classes are free.

    Source: the soft inception term of Zhong et al., "IntraQ: Learning Synthetic Images with Intra-Class Heterogeneity
    for Zero-Shot Network Quantization", CVPR 2022.

    Args:
        logits: (N, K).
        labels: (N,), class indices.
        target: (N,), the probability wanted, within [0, 1].

    Returns:
        Scalar within [0, 1]. Lower is better.
    """
    p = F.softmax(full(logits), dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return (p - full(target)).square().mean()
