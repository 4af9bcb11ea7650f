"""Methods whose images are optimised directly: a batch of pixels under Adam.

What belongs here: where the pixels start, what the teacher sees of them (shifted, mirrored), the optimiser step, its
stages and learning rate, and the best batch so far. What is minimised is the method's.

Differs from the known author scripts of the family in two points (Yin et al., "Dreaming to Distill", 2020; their code
keeps a reference, compares an image with the loss of its predecessor, and carries the best loss over to the next
stage): the best batch is a copy, it belongs to the loss that it was judged by, and every stage judges anew.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from dfqkit.config.pools import PixelConfig
from dfqkit.synthesis.base import Losses
from dfqkit.synthesis.drawing import Deck, apportioned
from dfqkit.synthesis.given import first_places
from dfqkit.synthesis.optimizers import cosine, optimizer_tensors, restore_optimizer, under
from dfqkit.synthesis.pool import PoolSynthesizer
from dfqkit.synthesis.scenes import Scenery, draw_scenes
from dfqkit.teacher.sources import USER_CODE_ERRORS
from dfqkit.teacher.structure import required_head
from dfqkit_export.errors import RecipeError, TeacherError
from dfqkit_export.images.labelled import load_images

_LOG = logging.getLogger(__name__)
#: Labels of a class in a deck, on average, where they are not dealt evenly.
_CARDS = 10
#: Side (pixels) up to which a teacher is not faster on images with the channels last.
_SMALL = 64


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps ``start`` to ``stop`` of a batch, with an optimiser of their own and a best batch of their own."""

    start: int
    stop: int
    jitter: int
    clamp: bool
    betas: tuple[float, float] = (0.9, 0.999)
    shrink: int = 1


class PixelSynthesizer(PoolSynthesizer):
    """Base of the methods that optimise pixels.

    The batch at hand is ``self.x``, a leaf (batch, C, H, W) in the normalised space. In every step the teacher sees
    ``_transform(x)``, shrunk, shifted and mirrored as the stage and the configuration say; the sum of
    ``self.weights[name] * term`` over all terms is minimised. Losses are of the batch before the step.

    A subclass gives `_terms`, with no term of weight 0, and where it needs to `_image_terms`, `_start`, `_draw`,
    `_transform`, `_lr` and `_stages`; ``of_batch`` and ``of_all`` name tensors that it keeps beyond this, for a batch
    or longer. ``low`` and ``high`` are the bounds of a pixel, normalised (1, C, 1, 1); ``classes`` deals labels evenly.
    """

    config: PixelConfig
    of_batch: ClassVar[tuple[str, ...]] = ()
    of_all: ClassVar[tuple[str, ...]] = ()

    def _set_up(self) -> None:
        super()._set_up()
        teacher = self.teacher
        black = torch.zeros((1, teacher.image.shape[0], 1, 1), device=self.device)
        self.low, self.high = teacher.image.normalize(black), teacher.image.normalize(black + 1)
        self.classes = self._deck_of_classes()
        if self.config.half_size:
            self._require_half_size()
        self.starts: Tensor | None = None
        self.places = Deck(0, self.rng)
        if self.config.start_from is not None:
            self.starts = self._read(self.config.start_from)
            self.places = Deck(len(self.starts), self.rng)
        self.x = torch.zeros(0)
        self.optimizer: torch.optim.Optimizer
        self.best, self.best_loss = torch.zeros(0), math.inf
        self.reduced, self.waited = 1.0, 0

    def _deck_of_classes(self) -> Deck:
        classes = self.teacher.image.classes
        if self.config.classes == "even":
            return Deck(classes, self.rng)
        name, head = required_head(self.teacher, "classes: head_bias")
        if head.bias is None:
            message = (
                f"classes: head_bias reads how often classes came from the biases of layer '{name}' of teacher "
                f"'{self.teacher.name}', which has none. Use classes: even."
            )
            raise TeacherError(message)
        dealt = apportioned(head.bias.detach().double().softmax(0), _CARDS * classes)
        return Deck(len(dealt), self.rng, dealt)

    def _require_half_size(self) -> None:
        channels, height, width = self.teacher.image.shape
        size = (channels, height // 2, width // 2)
        try:
            self.teacher.logits(torch.zeros((1, *size), device=self.device))
        except USER_CODE_ERRORS as error:
            message = (
                f"half_size: {self.config.half_size:g} shows the teacher images of {size[1]}x{size[2]} pixels first, "
                f"and teacher '{self.teacher.name}' does not take them ({error}). Set half_size to 0, which keeps the "
                "full size."
            )
            raise RecipeError(message) from error

    @abstractmethod
    def _terms(self, images: Tensor, students: Sequence[nn.Module]) -> dict[str, Tensor]:
        """Return unweighted scalar terms of what the teacher sees, with gradient; runs the teacher, once."""

    def _image_terms(self, x: Tensor) -> dict[str, Tensor]:
        """Unweighted scalar priors on the batch itself."""
        return {}

    def _start(self) -> Tensor:
        """Return the next given images, and noise where there are no more; normalised (batch, C, H, W)."""
        given = self._given()
        if self.starts is None or not given:
            return self._noise(self.config.batch)
        images = self.decoded(self.starts[self.places.deal(given)])
        return images if given == self.config.batch else torch.cat([images, self._noise(self.config.batch - given)])

    def _given(self) -> int:
        """How many images of the batch at hand start from given ones, each of which is used once; the first ones."""
        left = 0 if self.starts is None else len(self.starts) - self.finished * self.config.batch
        return min(max(left, 0), self.config.batch)

    def _noise(self, n: int) -> Tensor:
        if self.config.start == "procedural":
            return self.teacher.image.normalize(draw_scenes(n, self.teacher.image.shape, self.rng, Scenery()))
        shape = (n, *self.teacher.image.shape)
        if self.config.start == "uniform":
            return self.teacher.image.normalize(torch.rand(shape, generator=self.rng, device=self.device))
        noise = torch.randn(shape, generator=self.rng, device=self.device)
        return noise.clamp(self.low, self.high) if self.config.clamp else noise

    def _draw(self) -> None:
        """Draw labels and the like of a new batch, after ``self.x`` is there."""

    def _assigned_labels(self) -> Tensor:
        """Labels int64 (batch,) for a new batch: evenly over the classes; of given images, what the teacher sees."""
        given = self._given()
        if not given:
            return self.classes.deal(self.config.batch)
        seen = self.teacher.logits(self.x.detach()[:given]).argmax(1)
        return torch.cat([seen, self.classes.deal(self.config.batch - given)])

    def _transform(self, images: Tensor) -> Tensor:
        """Return what happens to the batch in front of the teacher, before it is shifted and mirrored."""
        return images

    def _stages(self, steps: int) -> tuple[Stage, ...]:
        """Return all stages of a batch of ``steps`` steps, in order and without gaps."""
        return (Stage(start=0, stop=steps, jitter=self.config.jitter, clamp=self.config.clamp),)

    def _schedule(self, steps: int) -> Iterator[Stage]:
        """Yield the stages of a batch, the first ones at half the size where the section says so."""
        low = int(steps * self.config.half_size + 1e-9)  # so that two thirds of 3 are 2
        for stage in self._stages(steps):
            if stage.start < low:
                yield replace(stage, stop=min(low, stage.stop), jitter=stage.jitter // 2, shrink=2)
            if low < stage.stop:
                yield replace(stage, start=max(low, stage.start))

    def _lr(self, step: int, steps: int) -> float:
        """Learning rate of the ``step``-th of the ``steps`` of a stage, counted from 0."""
        config = self.config
        rise = min(config.warmup, steps // 10)
        if step < rise:
            return config.lr * (step + 1) / rise
        if config.decay == "cosine":
            return cosine(config.lr, (step - rise) / (steps - rise))
        return max(config.lr * self.reduced, min(config.lr, 1e-4))

    def _begin(self) -> None:
        self.x = self._start().detach().requires_grad_(True)
        self._draw()
        self._restart()

    def _restart(self) -> None:
        self.optimizer = torch.optim.Adam([self.x], lr=self.config.lr)
        self.best, self.best_loss = self.x.detach().clone(), math.inf
        self.reduced, self.waited = 1.0, 0

    def _step(self, students: Sequence[nn.Module], step: int, steps: int) -> Losses:
        stage = next(stage for stage in self._schedule(steps) if step < stage.stop)
        if step == stage.start:
            self._restart()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            terms = self._terms(self._seen(stage), students)
        terms |= self._image_terms(self.x)
        values = torch.stack(list(terms.values()))
        loss = (values * values.new_tensor([self.weights[name] for name in terms])).sum()
        (gradient,) = torch.autograd.grad(loss, [self.x])
        *found, total = torch.cat([values.detach(), loss.detach()[None]]).tolist()
        named = dict(zip(terms, found, strict=True))
        self._require_finite({**named, "the weighted sum of all terms": total}, step)
        self.waited += 1
        if total < self.best_loss:
            self.best.copy_(self.x.detach())
            self.best_loss, self.waited = total, 0
        elif self.config.decay == "plateau" and self.waited > self.config.patience * (stage.stop - stage.start):
            self.reduced, self.waited = 0.1 * self.reduced, 0
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(step - stage.start, stage.stop - stage.start)
            group["betas"] = stage.betas
        self.x.grad = gradient
        self.optimizer.step()
        self.x.grad = None
        if stage.clamp:
            with torch.no_grad():
                self.x.clamp_(self.low, self.high)
        return named

    def _seen(self, stage: Stage) -> Tensor:
        images = self._transform(self.x)
        if stage.shrink > 1:
            images = nn.functional.avg_pool2d(images, stage.shrink)
        if stage.jitter:
            shift = torch.randint(-stage.jitter, stage.jitter + 1, (2,), generator=self.rng, device=self.device)
            images = images.roll(shift.tolist(), (2, 3))
        if self.config.flip and float(torch.rand(1, generator=self.rng, device=self.device)) < 0.5:
            images = images.flip(3)
        large = min(images.shape[2:]) > _SMALL
        return images.contiguous(memory_format=torch.channels_last) if large else images

    def _finish(self) -> Tensor:
        return self.best

    def _tensors(self) -> dict[str, Tensor]:
        state = {"classes": self.classes.rest, "places": self.places.rest}
        names = (*self.of_all, *self.of_batch) if self.at else self.of_all
        state |= {f"extra.{name}": getattr(self, name) for name in names}
        if self.at:
            numbers = torch.tensor([self.best_loss, self.reduced, self.waited], dtype=torch.float64)
            state |= {"x": self.x, "best": self.best, "numbers": numbers}
            state |= {f"adam.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        return state

    def _load_tensors(self, state: dict[str, Tensor]) -> None:
        self.classes.rest, self.places.rest = state["classes"].clone(), state["places"].clone()
        for name, value in under(state, "extra.").items():
            setattr(self, name, value.clone())
        if self.at:
            self.x = state["x"].clone().requires_grad_(True)
            self._restart()
            self.best = state["best"].clone()
            self.best_loss, self.reduced, waited = state["numbers"].tolist()
            self.waited = int(waited)
            restore_optimizer(self.optimizer, under(state, "adam."))

    def _read(self, source: str) -> Tensor:
        config = self.config
        found = load_images(source, self.teacher.image, resize=config.start_resize, crop=config.start_crop)
        first = first_places(found.images)
        needed = self.batches * config.batch
        if len(first) < needed:
            message = "%d different images to start from, %d are made: the others start from noise."
            _LOG.warning(message, len(first), needed)
        pixels = found.images[list(first.values())]
        return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).to(self.device)
