"""One training loop for students, whatever they are and whatever makes the images.

What belongs here: what is done in which step, and the choice of the state that is kept. The loop only ever iterates
batches: a stored bank and a live ensemble of generators look the same to it. Its state can be taken and put back at any
step, bit for bit. What is minimised is `objective`; the two kinds of students are `quantized_student` and
`float_student`.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from dfqkit.config.distill import LoopConfig
from dfqkit.students.student import snapshot
from dfqkit.synthesis.base import Losses
from dfqkit.synthesis.optimizers import cosine, optimizer_tensors, restore_optimizer, under
from dfqkit.tasks import Tensors, TorchTask
from dfqkit.training.objective import Features, Objective
from dfqkit.training.ranks import ALONE, Ranks
from dfqkit.training.replay import weighed
from dfqkit.training.stream import LiveStream
from dfqkit_export.errors import ArtefactError, RecipeError

_LOG = logging.getLogger(__name__)

#: Images, and what the teacher answers to them.
Batch = tuple[Tensor, Tensors]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Images that never train a student, with the teacher's answers; they choose the state that is kept."""

    batches: Sequence[Batch]
    task: TorchTask

    def judge(self, student: nn.Module) -> dict[str, float]:
        """Return what the task tells of a state, each entry the mean over all images."""
        total: dict[str, float] = {}
        count = 0
        with torch.no_grad():
            for images, answers in self.batches:
                for name, value in self.task.judged(answers, self.task.named(student(images))).items():
                    total[name] = total.get(name, 0.0) + value
                count += len(images)
        return {name: value / count for name, value in total.items()}


Config = TypeVar("Config", bound=LoopConfig)
Model = TypeVar("Model", bound=nn.Module)


class _Step(nn.Module):
    """One student's terms on a batch as a module, whose gradients several processes can average."""

    def __init__(self, loop: Loop[Any, Any], index: int) -> None:
        super().__init__()
        self.student, self.objective = loop.students[index], loop.objectives[index]
        self.terms = partial(loop._terms, index)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.terms(images)


def _only(index: int, outputs: Tensors) -> Tensors:
    return {name: value[index : index + 1] for name, value in outputs.items()}


class Loop(ABC, Generic[Config, Model]):
    """The loop's state: students, the first of which is the one that counts, and the best state seen of it.

    Each student has its objective and its optimizer, in which every group has its highest learning rate as ``base``.
    Batches come from the stream, which plays against students in eval mode; ``config`` is the recipe's ``section``.

    Raises:
        ArtefactError: When the first student's answers are not finite.
    """

    section: ClassVar[str]
    not_finite: ClassVar[str]

    def __init__(
        self,
        students: Sequence[Model],
        objectives: Sequence[Objective],
        optimizers: Sequence[torch.optim.Optimizer],
        stream: LiveStream,
        held_out: HeldOut,
        config: Config,
    ) -> None:
        self.students, self.objectives, self.optimizers = list(students), list(objectives), list(optimizers)
        self.stream, self.held_out, self.config, self.task = stream, held_out, config, held_out.task
        self.ranks, self.pieces = ALONE, 1
        self.weights: Tensor | None = None  # of the images at hand, where some are replayed
        self.noted: list[tuple[Tensor, Tensor]] = []
        self._steps: list[Callable[[Tensor], dict[str, Tensor]]] = [
            partial(self._terms, index) for index in range(len(self.students))
        ]
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self.average = self._snapshot(0) if config.average else {}
        self.best = self._snapshot(0)
        told = self._judged()
        self.best_score = told[self.task.chosen_by]
        if not math.isfinite(self.best_score):
            raise ArtefactError(self.not_finite)
        self.judged: list[dict[str, float]] = [{"step": 0, **told}]

    def spread(self, ranks: Ranks) -> None:
        """Take every step together with other processes, each of which has a loop like this one.

        Raises:
            RecipeError: When the section asks for what they would compute otherwise than one alone.
        """
        ranks.require_shares(self.section, self.config)
        self.ranks = ranks
        for objective in self.objectives:
            objective.average = ranks.average
        self._steps = [ranks.together(_Step(self, index)) for index in range(len(self.students))]

    @abstractmethod
    def _terms(self, index: int, images: Tensor) -> dict[str, Tensor]:
        """Return the loss terms of student ``index`` on a batch, unweighted, with gradient."""

    def _snapshot(self, index: int) -> dict[str, Tensor]:
        return snapshot(self.students[index])

    @abstractmethod
    def _restore(self, index: int, state: dict[str, Tensor]) -> None:
        """Put such a copy back; parameters stay the same objects."""

    def _turns(self) -> Iterator[tuple[int, str]]:
        """Yield which students step now, and what is appended to the names of their terms."""
        yield 0, ""

    def _as_it_ships(self, index: int) -> AbstractContextManager[None]:
        """While this is open a student computes what would be left of it at the end."""
        return nullcontext()

    def _judged(self) -> dict[str, float]:
        with self._as_it_ships(0):
            return self.held_out.judge(self.students[0])

    @property
    def kept_step(self) -> int:
        """The step whose state is the best."""
        return int(min(self.judged, key=lambda entry: entry[self.task.chosen_by])["step"])

    def run_step(self) -> dict[str, float]:
        """Take one step of every student; a synthesizer round and a look at the held-out images when they are due.

        A loss that is no longer finite ends the training: the best state seen stays, and nothing after it could be.
        """
        config = self.config
        terms: dict[str, float] = {}
        if self.step % config.round_every == 0:
            terms |= self.stream.advance(self.students)
        for index, suffix in self._turns():
            terms |= {name + suffix: value for name, value in self._train(index).items()}
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
        _LOG.log(
            logging.WARNING if self.ranks.first else logging.DEBUG,
            "Distillation diverged in step %d of %d; the best state before it is kept. Lower %s.lr, or the weight of "
            "the adversarial term where the synthesis method has one.",
            self.step,
            self.config.steps,
            self.section,
        )
        self.step = self.config.steps
        return terms

    def _train(self, index: int) -> dict[str, float]:
        """Take one optimizer step on a fresh batch; return the loss terms, unweighted."""
        optimizer = self.optimizers[index]
        images = self.ranks.share(self.stream.batch(self.config.batch, replays=not index))
        terms: dict[str, float] | None = None
        while terms is None:
            optimizer.zero_grad(set_to_none=True)
            try:
                terms = self._backward(index, images)
            except torch.OutOfMemoryError as error:
                self._halve(len(images), error)
        risen = min(1.0, (self.step + 1) / max(self.config.warm_up, 1))  # Goyal et al., 2017, section 2.2
        for group in optimizer.param_groups:
            group["lr"] = risen * cosine(group["base"], self.step / self.config.steps)
        optimizer.step()
        return self.ranks.mean(terms)

    def _backward(self, index: int, images: Tensor) -> dict[str, float]:
        """Add up the gradients of a batch, in as many pieces as memory asks for; return the terms' means over them."""
        found: dict[str, float] = {}
        replay, pieces = None if index else self.stream.replay, images.chunk(self.pieces)
        weights = replay.weights.chunk(self.pieces) if replay else (None,) * len(pieces)
        self.noted.clear()
        for piece, self.weights in zip(pieces, weights, strict=True):
            with torch.autocast(piece.device.type, torch.bfloat16, enabled=self.config.bf16):
                terms = self._harder_terms(index, piece) if self.config.harder else self._steps[index](piece)
            share = len(piece) / len(images)
            torch.autograd.backward(share * self.objectives[index].total(terms))
            for name, term in terms.items():
                found[name] = found.get(name, 0.0) + share * float(term.detach())
        if replay:
            replay.note(*map(torch.cat, zip(*self.noted, strict=True)))
        return found

    def _weighed(self, reference: Tensors, answer: Tensors, features: Features) -> tuple[Tensors, Features]:
        """Note how far each image's answer is from the reference's; return the student's side as its weights say."""
        if self.weights is None:
            return answer, features
        each = range(len(self.weights))
        with torch.no_grad():
            distances = torch.stack([self.task.distance(_only(i, reference), _only(i, answer)) for i in each])
        classes = self.task.groups(reference, self.stream.synthesizer.teacher.image)
        self.noted.append((distances, classes.to(distances.device)))
        return weighed(answer, self.weights), weighed(features, self.weights)

    def _halve(self, n: int, error: torch.OutOfMemoryError) -> None:
        """Take a batch of ``n`` images in twice as many pieces from now on.

        The gradient is the same but for sums' order, and for what is no mean over images: errors of features, which
        are over the energy of a piece, and BatchNorm of a float student.

        Raises:
            RecipeError: When a piece would have fewer than two images, or other processes take the step, too.
        """
        if self.ranks.world > 1 or n // (2 * self.pieces) < 2:
            message = (
                f"Memory does not hold a step on {-(-n // self.pieces)} images ({error}). Lower {self.section}.batch "
                f"(now {self.config.batch}), start more processes, or use --device cpu."
            )
            raise RecipeError(message) from error
        self.pieces *= 2
        torch.cuda.empty_cache()  # nothing where there is no GPU
        _LOG.warning(
            "Memory does not hold a step on %d images: they are taken in %d pieces from now on, as one batch.",
            n,
            self.pieces,
        )

    def _harder_terms(self, index: int, images: Tensor) -> dict[str, Tensor]:
        """Means of the terms on a batch x and on x + harder * sign(dL/dx), labelled anew.

        Source: Li et al., "Hard Sample Matters a Lot in Zero-Shot Quantization", CVPR 2023, sample difficulty
        promotion. Differs: the two losses are averaged, not added; dL/dx goes through the student only.
        """
        images = images.detach().requires_grad_(True)
        plain = self._terms(index, images)
        (gradient,) = torch.autograd.grad(self.objectives[index].total(plain), images, retain_graph=True)
        harder = self._terms(index, images.detach() + self.config.harder * gradient.sign())
        del self.noted[-1:]  # of images that nobody will draw
        return {name: (plain[name] + harder[name]) / 2 for name in plain}

    def _update_average(self) -> None:
        """Average the first student's states; the decay grows with the steps, so that it starts at the student."""
        if not self.average:
            return
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self._snapshot(0).items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)

    def _judge(self) -> None:
        """Keep the first student's state if it is the nearest to the teacher seen so far; the first process judges."""
        if not self.ranks.first:
            if not math.isfinite(self.ranks.told(0.0)):
                self._give_up({})
            return
        kept = self._snapshot(0)
        if self.average:
            self._restore(0, self.average)
        told = self._judged()
        score = self.ranks.told(told[self.task.chosen_by])
        if not math.isfinite(score):
            self._give_up({})
            return
        self.judged.append({"step": self.step, **told})
        if score < self.best_score:
            self.best_score, self.best = score, self._snapshot(0)
        if self.average:
            self._restore(0, kept)

    def state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Tensors and plain values from which the run continues to the same bits."""
        tensors = {f"stream.{name}": value for name, value in self.stream.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for index, (objective, optimizer) in enumerate(zip(self.objectives, self.optimizers, strict=True)):
            tensors |= {f"student.{index}.{name}": value for name, value in self._snapshot(index).items()}
            tensors |= {f"objective.{index}.{name}": value for name, value in objective.state_dict().items()}
            tensors |= {f"optimizer.{index}.{name}": value for name, value in optimizer_tensors(optimizer).items()}
        values: dict[str, object] = {
            "step": self.step,
            "score": self.best_score,
            "curve": list(self.curve),
            "judged": list(self.judged),
        }
        values["pieces"] = self.pieces
        return {name: value.detach().clone() for name, value in tensors.items()}, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        self.stream.load_state_dict(under(tensors, "stream."))
        self.best = under(tensors, "best.")
        # Changed in place, on the student's device.
        average = under(tensors, "average.")
        self.average = {name: value.to(self.average[name], copy=True) for name, value in average.items()}
        for index, (objective, optimizer) in enumerate(zip(self.objectives, self.optimizers, strict=True)):
            self._restore(index, under(tensors, f"student.{index}."))
            objective.load_state_dict(under(tensors, f"objective.{index}."))
            restore_optimizer(optimizer, under(tensors, f"optimizer.{index}."))
        self.step, self.best_score, self.pieces = values["step"], values["score"], values.get("pieces", 1)
        self.curve, self.judged = list(values["curve"]), list(values["judged"])
