"""One training loop for students, whatever makes the images.

What belongs here: the loop, its configuration, and the choice of the state that is kept. The loop only ever iterates
batches: a stored bank and a live ensemble of generators look the same to it. Its state can be taken and put back at any
step, bit for bit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, fx, nn

from dfqkit_export.errors import ArtefactError

from . import losses
from .optimizers import cosine, optimizer_tensors, restore_optimizer, under
from .students.reference import measuring_points, reference_graph
from .students.scheme import QuantConfig, check_bits
from .students.student import restore, snapshot
from .synthesis.base import Losses, Synthesizer
from .taps import FeatureTap

_log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]


class DistillWeights(BaseModel):
    """Weights of the students' loss terms."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    response: float = Field(1.0, ge=0, description="tau^2 KL between softened logits (Hinton et al., 2015).")
    feature: float = Field(
        0.0,
        ge=0,
        description="Mean over all quantized tensors of the relative squared error (FitNets, Romero et al., 2015, "
        "without projections, which a student of the teacher's own shape does not need).",
    )

    @model_validator(mode="after")
    def _some(self) -> DistillWeights:
        if not any(self.model_dump().values()):
            message = "all are 0, which trains nothing; give one a value above 0, or set distill to null"
            raise ValueError(message)
        return self


class DistillConfig(BaseModel):
    """The ``distill`` section of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(600, ge=1, description="Steps of each student.")
    batch: int = Field(64, ge=2, description="Images a student step.")
    lr: float = Field(2e-4, gt=0, description="Adam, cosine to 0; for weights, biases and weight scales.")
    lr_ranges: float = Field(1e-3, ge=0, description="Adam, for activation ranges where the scheme lets them learn.")
    temperature: float = Field(4.0, gt=0, description="tau of response distillation (RepDistiller: 4).")
    weights: DistillWeights = DistillWeights()
    round_every: int = Field(10, ge=1, description="Student steps per round of the synthesizer (DFQ: 10).")
    partners: tuple[str, ...] = Field(
        (),
        description="Bits of further students of the ensemble, e.g. [w3a3]: other noise than the one deployed.",
    )
    partner_every: int = Field(
        2, ge=1, description="Partners step once in so many steps: they steer, they do not ship."
    )
    shift: int = Field(0, ge=0, description="Largest random shift of a batch, in pixels.")
    flip: bool = Field(False, description="Mirror half of the batches; not for digits or text.")
    average: float = Field(
        0.0, ge=0, lt=1, description="Decay of the moving average of weights that is judged and kept."
    )
    judge_every: int = Field(100, ge=1, description="Steps between two looks at the held-out synthetic images.")

    @field_validator("partners")
    @classmethod
    def _check_bits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_bits(bits) for bits in value)


class Stream(Protocol):
    """What the loop draws from."""

    def advance(self, students: Sequence[nn.Module]) -> Losses:
        """Play one round against the students; a stored set has nothing to do and returns no losses."""

    def batch(self, n: int) -> Tensor:
        """Normalised images (n, C, H, W)."""

    def state_dict(self) -> dict[str, Tensor]:
        """State to continue from."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue."""


class LiveStream:
    """Batches straight from a synthesizer, moved a little.

    Args:
        synthesizer: plays against the students in `advance`.
        config: gives shifts and flips.
        rng: draws them.
    """

    def __init__(self, synthesizer: Synthesizer, config: DistillConfig, rng: torch.Generator) -> None:
        self.synthesizer, self.config, self.rng = synthesizer, config, rng

    def advance(self, students: Sequence[nn.Module]) -> Losses:
        """One round of the synthesizer, the students frozen meanwhile."""
        with frozen(students):
            return self.synthesizer.synthesize(students)

    def batch(self, n: int) -> Tensor:
        """Fresh and remembered images."""
        return _moved(self.synthesizer.training_batch(n), self.config, self.rng)

    def state_dict(self) -> dict[str, Tensor]:
        """The synthesizer's state and the augmentation's."""
        return {f"synthesizer.{name}": value for name, value in self.synthesizer.state_dict().items()} | {
            "rng": self.rng.get_state()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue."""
        self.synthesizer.load_state_dict(under(state, "synthesizer."))
        self.rng.set_state(state["rng"].cpu())


def _moved(images: Tensor, config: DistillConfig, rng: torch.Generator) -> Tensor:
    if config.shift:
        down, right = torch.randint(-config.shift, config.shift + 1, (2,), generator=rng, device=rng.device).tolist()
        images = torch.roll(images, (down, right), (2, 3))
    if config.flip and bool(torch.rand((), generator=rng, device=rng.device) < 0.5):
        images = images.flip(3)
    return images


@contextmanager
def frozen(students: Sequence[nn.Module]) -> Iterator[None]:
    """Students as adversaries: gradients pass through them, none arrive in them."""
    trainable = [p for student in students for p in student.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def judge(student: nn.Module, batches: Sequence[Batch]) -> tuple[float, float]:
    """Agreement with the teacher (percent of equal argmax) and mean per-sample KL (nats) on held-out batches."""
    same, divergence, count = 0, 0.0, 0
    with torch.no_grad():
        for images, logits in batches:
            answer = student(images)
            same += int((answer.argmax(1) == logits.argmax(1)).sum())
            divergence += float(losses.kd_kl(answer, logits)) * len(images)
            count += len(images)
    return 100 * same / count, divergence / count


class Distiller:
    """The loop's state: an ensemble of students, the first of which is deployed, and the best state seen of it.

    Args:
        students: calibrated; the first is the one that ships.
        schemes: their schemes.
        reference: the float graph that the students were built from (`equalized_graph`); labels every batch.
        stream: where batches come from.
        held_out: images that never train a student, with the teacher's logits; they choose the state that is kept.
        config: the recipe's section.
    """

    def __init__(
        self,
        students: Sequence[fx.GraphModule],
        schemes: Sequence[QuantConfig],
        reference: fx.GraphModule,
        stream: Stream,
        held_out: Sequence[Batch],
        config: DistillConfig,
    ) -> None:
        self.students, self.schemes, self.stream = list(students), list(schemes), stream
        self.held_out, self.config = held_out, config
        self.points = measuring_points(students[0]) if config.weights.feature else []
        self.reference = reference_graph(reference, self.points)
        self.optimizers = [self._optimizer(student) for student in self.students]
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self.average = snapshot(self.students[0]) if config.average else {}
        self.best = snapshot(self.students[0])
        agreement, divergence = judge(self.students[0], held_out)
        if not math.isfinite(divergence):
            message = (
                "The calibrated student's answers are not finite, so there is nothing to train from. Try more "
                "calibration images, quant.activation_range: percentile, or more bits."
            )
            raise ArtefactError(message)
        self.best_score = divergence
        self.judged: list[dict[str, float]] = [{"step": 0, "agreement": agreement, "kl": divergence}]

    def _optimizer(self, student: fx.GraphModule) -> torch.optim.Adam:
        ranges: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in student.named_parameters():
            if parameter.requires_grad:
                (ranges if name.startswith("quant.") else others).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": others, "base": self.config.lr},
            {"params": ranges, "base": self.config.lr_ranges},
        ]
        return torch.optim.Adam([group for group in groups if group["params"]])

    def run_step(self) -> dict[str, float]:
        """One step of every student; a synthesizer round and a look at the held-out images when they are due.

        A loss that is no longer finite ends the training: the best state seen stays, and nothing after it could be.
        """
        config = self.config
        terms: dict[str, float] = {}
        if self.step % config.round_every == 0:
            terms |= self.stream.advance(self.students)
        for index, student in enumerate(self.students):
            if index and self.step % config.partner_every:
                continue
            suffix = f"_{config.partners[index - 1]}" if index else ""
            for name, value in self._train(student, self.optimizers[index]).items():
                terms[name + suffix] = value
        self.step += 1
        if not all(math.isfinite(value) for value in terms.values()):
            return self._give_up({name: value for name, value in terms.items() if math.isfinite(value)})
        self._update_average()
        if (self.step - 1) % config.round_every == 0:
            self.curve.append({"step": self.step, **terms})
        if self.step % config.judge_every == 0 or self.step == config.steps:
            self._judge()
        return terms

    def _give_up(self, terms: Losses) -> Losses:
        _log.warning(
            "Distillation diverged in step %d of %d; the best state before it is kept. Lower distill.lr or "
            "synthesis.weights.adversarial.",
            self.step,
            self.config.steps,
        )
        self.step = self.config.steps
        return terms

    def _train(self, student: fx.GraphModule, optimizer: torch.optim.Adam) -> dict[str, float]:
        """One optimizer step on a fresh batch; returns the loss terms, unweighted."""
        weights = self.config.weights
        images = self.stream.batch(self.config.batch)
        with FeatureTap(self.reference, self.points) as wanted, FeatureTap(student, self.points) as found:
            with torch.no_grad():
                logits = self.reference(images)
            answer = student(images)
            terms = {}
            if weights.response:
                terms["response"] = losses.kd_kl(answer, logits, self.config.temperature)
            if weights.feature:
                pairs = [(found.features[name], wanted.features[name]) for name in self.points]
                terms["feature"] = torch.stack([losses.relative_error(ours, theirs) for ours, theirs in pairs]).mean()
        loss = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = cosine(group["base"], self.step / self.config.steps)
        optimizer.step()
        return {name: float(term.detach()) for name, term in terms.items()}

    def _update_average(self) -> None:
        """Moving average of the deployed student; its decay grows with the steps, so that it starts at the student."""
        if not self.average:
            return
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in snapshot(self.students[0]).items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)

    def _judge(self) -> None:
        """Keep the deployed student's state if it is the nearest to the teacher seen so far."""
        kept = snapshot(self.students[0])
        if self.average:
            restore(self.students[0], self.average, self.schemes[0])
        agreement, divergence = judge(self.students[0], self.held_out)
        if not math.isfinite(divergence):
            self._give_up({})
            return
        self.judged.append({"step": self.step, "agreement": agreement, "kl": divergence})
        if divergence < self.best_score:
            self.best_score = divergence
            self.best = snapshot(self.students[0])
        if self.average:
            restore(self.students[0], kept, self.schemes[0])

    def disagreement(self) -> float | None:
        """How far the ensemble's members part: percent of held-out images on which any two give another class."""
        if len(self.students) < 2:
            return None
        with torch.no_grad():
            parted, count = 0, 0
            for images, _ in self.held_out:
                answers = torch.stack([student(images).argmax(1) for student in self.students])
                parted += int((answers != answers[0]).any(0).sum())
                count += len(images)
        return 100 * parted / count

    def state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Tensors and plain values from which the run continues to the same bits."""
        tensors = {f"stream.{name}": value for name, value in self.stream.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for index, (student, optimizer) in enumerate(zip(self.students, self.optimizers, strict=True)):
            tensors |= {f"student.{index}.{name}": value for name, value in snapshot(student).items()}
            tensors |= {f"optimizer.{index}.{name}": value for name, value in optimizer_tensors(optimizer).items()}
        values = {"step": self.step, "score": self.best_score, "curve": list(self.curve), "judged": list(self.judged)}
        return {name: value.detach().clone() for name, value in tensors.items()}, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, object]) -> None:
        """Put back what `state` returned."""
        self.stream.load_state_dict(under(tensors, "stream."))
        self.best = under(tensors, "best.")
        # Changed in place, on the student's device.
        average = under(tensors, "average.")
        self.average = {name: value.to(self.average[name], copy=True) for name, value in average.items()}
        for index, (student, optimizer) in enumerate(zip(self.students, self.optimizers, strict=True)):
            restore(student, under(tensors, f"student.{index}."), self.schemes[index])
            restore_optimizer(optimizer, under(tensors, f"optimizer.{index}."))
        self.step, self.best_score = values["step"], values["score"]  # type: ignore[assignment]
        self.curve, self.judged = list(values["curve"]), list(values["judged"])  # type: ignore[call-overload]
