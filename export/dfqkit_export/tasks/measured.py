"""What tasks other than classification have in common: the error of their tensors, and the order of what is measured.

What belongs here: `MeasuredTask`, of which a task fills in its own metrics, and how parameters that were left open are
taken from a network. The error of an output counts beside the size of that output: boxes of 0 to 640 and scores of 0 to
1 weigh alike.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.measure.kinds import AGREEMENT, LABEL_DROP, SQNR_DB, STUDENT_AGREEMENT, STUDENT_KEPT, Metric
from dfqkit_export.measure.metrics import share
from dfqkit_export.measure.resampling import interval, ratio_db
from dfqkit_export.tasks.base import Labels, Outputs, OutputSpec, Task
from dfqkit_export.tasks.parameters import Shape
from dfqkit_export.words import did_you_mean

Floats = NDArray[np.float64]

#: Images whose errors are computed at once.
_TOGETHER = 32


class MeasuredTask(Task):
    """A task whose metrics are its own, agreement, and the noise of each output.

    Attributes:
        least_right: How right a teacher must be beside labels, in points, for a loss to be seen (`rightness`).
    """

    least_right: ClassVar[float] = 10.0

    @abstractmethod
    def beside_teacher(self, reference: Outputs, outputs: Outputs, **where: Any) -> list[Metric]:
        """Return what is the task's own of outputs beside the teacher's."""

    def beside_labels(self, outputs: Outputs, labels: Labels, **where: Any) -> list[Metric]:
        """Return what is the task's own of outputs beside labels.

        Raises:
            ArtefactError: They are not labels of this task, and it takes none unless it says so.
        """
        message = (
            f"The task {self.name!r} has no labels, and the images have some ({np.asarray(labels).dtype} of "
            f"{np.shape(labels)}). Give images alone, or name the task that they are for."
        )
        raise ArtefactError(message)

    def rightness(self, outputs: Outputs, labels: Labels) -> tuple[float, Floats] | None:
        """Return how right outputs are beside labels, higher for better, in points, and the same of draws of images.

        The labels passed `beside_labels`. None where nothing can be said; by default.
        """
        return None

    def metrics(
        self, reference: Outputs | None, outputs: Outputs, labels: Labels | None, *, subject: str, data: str
    ) -> list[Metric]:
        """Measure the task's own beside labels and teacher, agreement, and the noise of the outputs."""
        where: dict[str, Any] = {"subject": subject, "data": data}
        found = [] if labels is None else self.beside_labels(outputs, labels, **where)
        if reference is None:
            return found
        if labels is not None:
            found += self._lost(reference, outputs, labels, **where)
        found += self.beside_teacher(reference, outputs, **where)
        found.append(share(AGREEMENT, self.same_answer(reference, outputs), **where))
        return [*found, *self._noise(reference, outputs, **where)]

    def _lost(self, reference: Outputs, outputs: Outputs, labels: Labels, **where: Any) -> list[Metric]:
        before, now = (self.rightness(side, labels) for side in (reference, outputs))
        if before is None or now is None or before[0] < self.least_right:
            return []  # a teacher that is not right has nothing to lose
        n = len(outputs[self.names[0]])
        return [LABEL_DROP.metric(value=before[0] - now[0], n=n, interval=interval(before[1] - now[1]), **where)]

    def beside(
        self, student: Outputs, outputs: Outputs, labels: Labels | None, *, subject: str, data: str
    ) -> list[Metric]:
        """Measure on how many images the runtime gives the student's answer, and by `kept` how much of it stays."""
        where: dict[str, Any] = {"subject": subject, "data": data}
        same, kept = self.same_answer(student, outputs), self.kept(student, outputs)
        known = [] if kept is None else [STUDENT_KEPT.metric(value=kept, n=len(same), **where)]
        return [share(STUDENT_AGREEMENT, same, **where), *known]

    def same_answer(self, reference: Outputs, outputs: Outputs) -> NDArray[np.bool_]:
        """Return which images have a margin that is not below zero, (N,)."""
        return np.asarray(self.margins(reference, outputs) >= 0)

    def per_image_error(self, reference: Outputs, outputs: Outputs) -> Floats:
        """Return the squared error of each image beside each output's mean power over all images, summed, (N,)."""
        return np.asarray(sum(noise for _, noise in self._powers(reference, outputs)))

    def _powers(self, reference: Outputs, outputs: Outputs) -> list[tuple[Floats, Floats]]:
        """Return signal and noise of each image, of each output in units of its mean power, (N,) each."""
        found = []
        for name in self.names:
            signal, noise = powers(reference[name], outputs[name])
            scale = signal.mean() or 1.0
            found.append((signal / scale, noise / scale))
        return found

    def _noise(self, reference: Outputs, outputs: Outputs, **where: Any) -> list[Metric]:
        each = self._powers(reference, outputs)
        signal, noise = (np.asarray(sum(pair[side] for pair in each)) for side in (0, 1))
        found = [ratio_db(SQNR_DB, signal, noise, **where)]
        if len(self.names) > 1:
            kinds = (SQNR_DB.of_output(name) for name in self.names)
            found += [ratio_db(kind, *pair, **where) for kind, pair in zip(kinds, each, strict=True)]
        return found


class NumbersTask(MeasuredTask):
    """A task whose answer is its numbers: the same while they are nearly the same.

    Attributes:
        same: The largest error of an image with the same answer, as a share of the outputs' sizes.
    """

    same: float

    def errors(self, reference: Outputs, outputs: Outputs) -> Floats:
        """Return the root of each image's mean squared error beside the outputs' own, of the worst output, (N,)."""
        return np.asarray(np.sqrt(np.max([noise for _, noise in self._powers(reference, outputs)], axis=0)))

    def margins(self, reference: Outputs, outputs: Outputs) -> Floats:
        """Return how much further off each image may be, as a share of the outputs' sizes, (N,)."""
        return self.same - self.errors(reference, outputs)


def powers(reference: NDArray[Any], outputs: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return the sums of squares of each image's values and of their errors, (N,) each."""
    signal, noise = np.empty(len(reference)), np.empty(len(reference))
    for place in range(0, len(reference), _TOGETHER):  # outputs may be too large to be there twice
        part = slice(place, place + _TOGETHER)
        first, second = (np.asarray(values[part], np.float64) for values in (reference, outputs))
        axes = tuple(range(1, first.ndim))
        signal[part], noise[part] = np.square(first).sum(axes), np.square(first - second).sum(axes)
    return signal, noise


def logit(share: float) -> float:
    """Return the logit of a share of 0 to 1; an infinite one of either end."""
    return math.log(share / (1 - share)) if 0 < share < 1 else math.copysign(math.inf, share - 0.5)


def output(name: str, shape: Shape, meaning: str) -> tuple[OutputSpec, ...]:
    """Return the one output of a task; of an unknown shape, of one free size."""
    return (OutputSpec(name=name, shape=shape or ("values",), meaning=meaning),)


def choose(task: str, outputs: Outputs, wanted: str, ranks: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Return name and shape of the one output that a task is about.

    Args:
        task: Its name, for messages.
        outputs: What the network gives, by name; of a single tensor without one, "".
        wanted: The name that it has or should get.
        ranks: Axes that one image's answer may have.

    Raises:
        ArtefactError: There is none, or several and none is named.
    """
    found = {name: values.shape[1:] for name, values in outputs.items()}
    fitting = {name: shape for name, shape in found.items() if len(shape) in ranks}
    if wanted in fitting:
        return wanted, fitting[wanted]
    if list(fitting) == [""]:
        return wanted, fitting[""]
    if len(fitting) == 1 and wanted not in found:
        return next(iter(fitting.items()))
    told = ", ".join(f"{name or 'one tensor'} {('N', *shape)}".replace("'", "") for name, shape in found.items())
    axes = " or ".join(str(rank + 1) for rank in ranks)
    message = (
        f"The task {task!r} is about one output of {axes} axes, '{wanted}' or the only one; the network gives {told}. "
        f"Say in the task's section which it is (output: NAME), or name another task.{did_you_mean(wanted, found)}"
    )
    raise ArtefactError(message)
