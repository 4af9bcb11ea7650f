"""Loss terms as pure functions of tensors, named as in the literature. Lower is always better.

What belongs here: maths only. No teacher, no modules, no devices. Rooms: `responses` (logits against logits),
`classes` (what one network's logits say about classes), `batchnorm` (BatchNorm statistics), `priors` (what images
and features should look like), `features` (features against features), `contrastive` (features against other images'
features), `objects` (what probabilities of positions show), `tokens`
(what attention gives).

Reductions are fixed once: a divergence between distributions is summed over classes and averaged over the batch
("per-sample"), in natural logarithms; a BatchNorm term is of one layer, and the caller adds or averages over layers.
Published weights that assume other reductions must be converted (PyTorch's default KL reduction also divides by the
number of classes; base-10 entropies by ln 10). Half precision is computed in float32 even under autocast; float64
stays float64. Every term is finite with a finite gradient at zero inputs: where a norm vanishes, its gradient is taken
as zero.
"""

from __future__ import annotations

from dfqkit.losses.batchnorm import bn_kl, bn_l2, bn_mse, bn_normals, bn_std
from dfqkit.losses.classes import (
    class_balance,
    hard_sample,
    instance_entropy,
    pseudo_label,
    soft_cross_entropy,
    soft_label_error,
)
from dfqkit.losses.contrastive import cosine_margin, info_nce
from dfqkit.losses.features import attention, attention_map, fsp, fsp_matrix, hint, relative_error
from dfqkit.losses.objects import object_balance, object_confidence, objects, size_spread
from dfqkit.losses.priors import activation_l1, l2_batch, l2_image, tv_l1, tv_l2
from dfqkit.losses.responses import agreeing_kl, competition, js_divergence, kd_kl, logit_l1, logit_mse
from dfqkit.losses.tokens import similarity_entropy

__all__ = [
    "activation_l1", "agreeing_kl", "attention", "attention_map", "bn_kl", "bn_l2", "bn_mse", "bn_normals", "bn_std",
    "class_balance", "competition", "cosine_margin", "fsp", "fsp_matrix", "hard_sample", "hint", "info_nce",
    "instance_entropy", "js_divergence", "kd_kl", "l2_batch", "l2_image", "logit_l1", "logit_mse", "object_balance",
    "object_confidence", "objects", "pseudo_label", "relative_error", "similarity_entropy", "size_spread",
    "soft_cross_entropy", "soft_label_error", "tv_l1", "tv_l2",
]  # fmt: skip
