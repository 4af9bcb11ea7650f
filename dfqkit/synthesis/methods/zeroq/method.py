"""The algorithm of ZeroQ; its source, formula and deviations are told in the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.methods.zeroq import ZeroQConfig
from dfqkit.synthesis.pixels import PixelSynthesizer
from dfqkit.teacher.batchnorm_moments import channel_moments, running_statistics
from dfqkit.teacher.structure import last_layer
from dfqkit.teacher.taps import BatchNormTap, LayerTap, per_image
from dfqkit_export.errors import RecipeError

_FORMS = {"std": losses.bn_std, "mse": losses.bn_mse, "l2": losses.bn_l2, "normals": losses.bn_normals}


class ZeroQ(PixelSynthesizer):
    """Batches of pixels on BatchNorm statistics, with label terms where they are asked for."""

    config: ZeroQConfig
    of_batch = ("labels", "softened", "targets")
    of_all = ("sums", "counts")

    def _set_up(self) -> None:
        super()._set_up()
        config, teacher = self.config, self.teacher
        self.tap: BatchNormTap | LayerTap | None = None
        self.norms: dict[str, nn.modules.batchnorm._BatchNorm] = {}
        if self.weights["bn"]:
            self.tap = BatchNormTap(teacher.model)
            self.norms = self.tap.layers
        if self.norms and config.statistics == "image":
            self.tap = LayerTap(teacher.model, list(self.norms), "input")
            self._require_maps(self.tap)
        self.last: LayerTap | None = None
        if config.weights.margin:
            self.last = LayerTap(teacher.model, [last_layer(teacher)], "input")
        self.labelled = any(self.weights[name] for name in ("ce", "hard_sample", "soft_label_error", "margin"))
        classes = teacher.image.classes
        self.labels = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.softened, self.targets = self.labels, torch.zeros(0, device=self.device)
        self.sums = torch.zeros((classes, 0), device=self.device)
        self.counts = torch.zeros(classes, device=self.device)

    def _draw(self) -> None:
        if not self.labelled:
            return
        batch = self.config.batch
        self.labels = self._assigned_labels()
        if self.weights["soft_label_error"]:
            self.softened = torch.randperm(batch, generator=self.rng, device=self.device)[: batch // 2]
            drawn = torch.rand(batch // 2, generator=self.rng, device=self.device)
            self.targets = self.config.soft_from + (1 - self.config.soft_from) * drawn

    def _terms(self, images: Tensor, students: Sequence[nn.Module]) -> dict[str, Tensor]:
        if self.last is None:
            logits, statistics = self._read_statistics(images)
            return statistics | self._label_terms(logits) | self._objects(logits)
        with self.last as last:
            logits, statistics = self._read_statistics(images)
            (features,) = last.values.values()
        return (
            statistics
            | self._label_terms(logits)
            | {"margin": self._margin(per_image(features))}
            | self._objects(logits)
        )

    def _read_statistics(self, images: Tensor) -> tuple[Any, dict[str, Tensor]]:
        if self.tap is None:
            return self.teacher.model(images), {}
        form = _FORMS[self.config.bn]
        with self.tap as tap:
            logits = self.teacher.model(images)
            if isinstance(tap, BatchNormTap):
                layers = tap.deviations(form)
            else:
                read = [
                    _per_image(x, *running_statistics(norm))
                    for name, norm in self.norms.items()
                    for x in tap.calls.get(name, ())
                    if x.dim() > 2  # a vector has no positions to take statistics over
                ]
                layers = [form(*layer) for layer in read]
        total = torch.stack(layers).sum()
        return logits, {"bn": total / len(layers) if self.config.bn in ("mse", "normals") else total}

    def _require_maps(self, tap: LayerTap) -> None:
        with tap:
            self.teacher.logits(torch.zeros((1, *self.teacher.image.shape), device=self.device))
            found = any(x.dim() > 2 for calls in tap.calls.values() for x in calls)
        if not found:
            message = (
                f"Teacher '{self.teacher.name}' normalises vectors only, which have no positions that one image's "
                "mean and deviation could be taken over. Use synthesis.statistics: batch."
            )
            raise RecipeError(message)

    def _image_terms(self, x: Tensor) -> dict[str, Tensor]:
        if not self.weights["input"]:
            return {}
        form, channels = _FORMS[self.config.bn], x.shape[1]
        zero, one = x.new_zeros(channels), x.new_ones(channels)
        if self.config.statistics == "image":
            return {"input": form(*_per_image(x, zero, one))}
        mean, variance = channel_moments(x)
        return {"input": form(mean, variance, zero, one)}

    def _label_terms(self, logits: Tensor) -> dict[str, Tensor]:
        terms = {}
        if self.weights["ce"]:
            terms["ce"] = nn.functional.cross_entropy(logits, self.labels)
        if self.weights["hard_sample"]:
            terms["hard_sample"] = losses.hard_sample(logits, self.labels, self.config.gamma)
        if self.weights["soft_label_error"]:
            chosen = self.softened
            terms["soft_label_error"] = losses.soft_label_error(logits[chosen], self.labels[chosen], self.targets)
        return terms

    def _margin(self, features: Tensor) -> Tensor:
        known = self.counts[self.labels] > 0
        if not known.any():
            return features.new_zeros(())
        labels = self.labels[known]
        centre = self.sums[labels] / self.counts[labels, None]
        return losses.cosine_margin(features[known], centre, self.config.lower, self.config.upper)

    def _transform(self, images: Tensor) -> Tensor:
        if not self.config.crop:
            return images
        coin, area, ratio, top, left = torch.rand(5, generator=self.rng, device=self.device).tolist()
        if coin >= self.config.crop:
            return images
        height, width = images.shape[2:]
        part = math.sqrt(self.config.crop_area + (1 - self.config.crop_area) * area)
        stretch = (4 / 3) ** (ratio - 0.5)  # the box's sides are to each other as 3:4 to 4:3, times the image's own
        h, w = (max(1, min(size, round(size * part * s))) for size, s in ((height, stretch), (width, 1 / stretch)))
        y, x = int(top * (height - h + 1)), int(left * (width - w + 1))
        box = images[:, :, y : y + h, x : x + w]
        return _linear(height, h, box).mT @ box @ _linear(width, w, box)

    def _finish(self) -> Tensor:
        images = super()._finish()
        if self.last is not None:
            with self.last as last:
                self.teacher.logits(images)
                features = per_image(next(iter(last.values.values())))
            if not self.sums.shape[1]:
                self.sums = features.new_zeros((len(self.counts), features.shape[1]))
            members = nn.functional.one_hot(self.labels, len(self.counts)).to(features)
            self.sums = self.sums + members.T @ features
            self.counts = self.counts + members.sum(0)
        return images


def _per_image(x: Tensor, running_mean: Tensor, running_variance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and variance (N, C) over the positions of every image, and the targets as large."""
    variance, mean = torch.var_mean(x, dim=tuple(range(2, x.dim())), correction=0)
    return mean, variance, running_mean.expand_as(mean), running_variance.expand_as(mean)


def _linear(size: int, part: int, like: Tensor) -> Tensor:
    """Weights (part, size) of linear interpolation; as a product, its gradient is repeatable on every device."""
    basis = torch.eye(part, dtype=like.dtype, device=like.device)[None]
    return nn.functional.interpolate(basis, size, mode="linear", align_corners=False)[0]
