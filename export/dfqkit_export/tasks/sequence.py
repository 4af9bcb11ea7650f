"""Sequences: a line of text from a class at each step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import CHARACTER_ERROR, LINE_ACCURACY, LINE_AGREEMENT, TRUE_CHARACTER_ERROR, Metric
from dfqkit_export.measure.metrics import share
from dfqkit_export.measure.resampling import draws, ratio
from dfqkit_export.tasks.base import Groups, Labels, Limits, Outputs, OutputSpec, Task
from dfqkit_export.tasks.marks import Marks
from dfqkit_export.tasks.measured import Floats, MeasuredTask, choose, output
from dfqkit_export.tasks.parameters import SequenceParameters

Line = tuple[int, ...]


class Sequence(SequenceParameters, MeasuredTask):
    """A line of text an image."""

    name: ClassVar[str] = "sequence"
    title: ClassVar[str] = "network that reads text"
    words: ClassVar[str] = "scores of characters"
    answer: ClassVar[str] = "text"
    limits: ClassVar[Limits] = Limits(ok=95.0, ok_db=10.0, failed=75.0, failed_db=4.0)

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """The classes at each step."""
        return output(self.output, self.shape, f"{self.scores} of each class at each step")

    def fitted(self, found: Outputs, image: ImageSpec) -> Task:
        """Return the same with the network's name and shape."""
        name, shape = choose(self.name, found, self.output, (2,))
        special = self.blank if self.form == "ctc" else self.end
        if not 0 <= special < shape[1]:
            message = f"The class that is no character is {special}; output '{name}' has classes 0 to {shape[1] - 1}."
            raise ArtefactError(message)
        if self.alphabet and len(self.alphabet) != shape[1] - 1:
            message = (
                f"The alphabet has {len(self.alphabet)} characters; output '{name}' has {shape[1]} classes, one of "
                "them no character. Give a character for each other class, in order."
            )
            raise ArtefactError(message)
        return replace(self, output=name, shape=shape)

    def lines(self, outputs: Outputs) -> list[Line]:
        """Return the classes of each image's characters, in order."""
        best = np.asarray(outputs[self.output]).argmax(-1)
        return [self._line(row) for row in best]

    def _line(self, best: NDArray[Any]) -> Line:
        if self.form == "ctc":
            changes = np.concatenate([[True], best[1:] != best[:-1]])
            return tuple(best[changes & (best != self.blank)].tolist())
        ends = np.flatnonzero(best == self.end)
        return tuple(best[: ends[0] if len(ends) else len(best)].tolist())

    def text(self, line: Line) -> str:
        """Return characters; their classes with spaces between them where there is no alphabet."""
        if not self.alphabet:
            return " ".join(map(str, line))
        special = self.blank if self.form == "ctc" else self.end
        return "".join(self.alphabet[kind - (kind > special)] for kind in line)

    def margins(self, reference: Outputs, outputs: Outputs) -> Floats:
        """Return by how much the reference's class leads at the step where it leads least, as probability, (N,).

        Steps of another class that change no character leave it just above zero.
        """
        both = zip(np.asarray(reference[self.output]), np.asarray(outputs[self.output]), strict=True)
        least = np.array([self._lead(wanted, found) for wanted, found in both])
        same = self.same_answer(reference, outputs)
        return np.asarray(np.where(same, np.maximum(least, 1e-6), np.minimum(least, -1e-6)))

    def _lead(self, wanted: NDArray[Any], found: NDArray[Any]) -> float:
        """Of one image; there may be thousands of classes at each step, too many for all images at once."""
        odds = found.astype(np.float64)
        if self.scores == "logits":
            odds = np.exp(odds - odds.max(-1, keepdims=True))
            odds /= odds.sum(-1, keepdims=True)
        steps, best = np.arange(len(wanted)), wanted.argmax(-1)
        first = odds[steps, best].copy()
        odds[steps, best] = -1.0
        return float((first - odds.max(-1)).min())

    def same_answer(self, reference: Outputs, outputs: Outputs) -> NDArray[np.bool_]:
        """Return for which images both read the same text, (N,)."""
        both = zip(self.lines(reference), self.lines(outputs), strict=True)
        return np.array([wanted == found for wanted, found in both], bool)

    def kept(self, reference: Outputs, outputs: Outputs) -> float | None:
        """Return the share of the reference's characters that need no change, in percent."""
        wrong, length = wrongs(self.lines(reference), self.lines(outputs))
        return 100 * (1 - min(1.0, float(wrong.sum() / length.sum()))) if length.sum() else None

    def groups(self, outputs: Outputs, image: ImageSpec) -> Groups:
        """Return which images have no text in them."""
        found = np.array([bool(line) for line in self.lines(outputs)], np.int64)
        return Groups(of=found, count=2, nothing=0, one="kind of line", many="kinds of lines")

    def marks(self, outputs: Outputs) -> list[Marks]:
        """Return the text."""
        return [Marks(text=self.text(line)) for line in self.lines(outputs)]

    def beside_teacher(self, reference: Outputs, outputs: Outputs, **where: Any) -> list[Metric]:
        """Return on how many images the text is the teacher's, and how many characters must be changed for it."""
        counted = wrongs(self.lines(reference), self.lines(outputs))
        same = self.same_answer(reference, outputs)
        return [share(LINE_AGREEMENT, same, **where), ratio(CHARACTER_ERROR, *counted, **where)]

    def beside_labels(self, outputs: Outputs, labels: Labels, **where: Any) -> list[Metric]:
        """Return on how many images the text is right, and how many characters must be changed for it."""
        wanted, found = self._right(outputs, labels)
        same = np.array([first == second for first, second in zip(wanted, found, strict=True)], bool)
        wrong = wrongs([tuple(map(ord, text)) for text in wanted], [tuple(map(ord, text)) for text in found])
        return [share(LINE_ACCURACY, same, **where), ratio(TRUE_CHARACTER_ERROR, *wrong, **where)]

    def rightness(self, outputs: Outputs, labels: Labels) -> tuple[float, Floats] | None:
        """Return on how many images the text is right."""
        both = zip(*self._right(outputs, labels), strict=True)
        hits = np.array([wanted == found for wanted, found in both], np.float64)
        return 100 * float(hits.mean()), 100 * (draws(len(hits)) @ hits) / len(hits)

    def _right(self, outputs: Outputs, labels: Labels) -> tuple[list[str], list[str]]:
        lines = self.lines(outputs)
        if not self.alphabet:
            message = "Labels are text, and the task has no alphabet: say task.alphabet, a character for each class."
            raise ArtefactError(message)
        if len(labels) != len(lines) or not all(isinstance(label, str) for label in labels):
            message = (
                f"Labels of the task {self.name!r} are a text an image, found {np.asarray(labels).dtype} of "
                f"{np.shape(labels)}. Give a text file of lines with a picture's name and its text."
            )
            raise ArtefactError(message)
        return [str(label) for label in labels], [self.text(line) for line in lines]


def wrongs(wanted: list[Line], found: list[Line]) -> tuple[Floats, Floats]:
    """Return how many characters of each line must be changed, put in or taken out, and how many there are, (N,)."""
    pairs = zip(wanted, found, strict=True)
    return np.array([changes(*pair) for pair in pairs], float), np.array([len(line) for line in wanted], float)


def changes(first: Line, second: Line) -> int:
    """Return the fewest characters to change, put in or take out that make one line the other (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for place, kind in enumerate(first, 1):
        before, row[0] = row[0], place
        for other, there in enumerate(second, 1):
            before, row[other] = row[other], min(row[other] + 1, row[other - 1] + 1, before + (kind != there))
    return row[-1]
