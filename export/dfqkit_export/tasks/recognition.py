"""Which task a network's outputs are of, where nobody said it.

What belongs here: the rules from shapes and values to a task, and the words for what they leave open. A rule answers
only where no other task has such outputs: a wrong task would be measured without anybody noticing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks.base import Outputs, Task
from dfqkit_export.tasks.classification import Classification
from dfqkit_export.tasks.dense import Dense
from dfqkit_export.tasks.detection import Detection
from dfqkit_export.tasks.detector_forms import UnclearBoxesError, told
from dfqkit_export.tasks.embedding import Embedding
from dfqkit_export.tasks.generic import Generic
from dfqkit_export.tasks.keypoints import Keypoints
from dfqkit_export.tasks.lookup import DEFAULT_TASK
from dfqkit_export.tasks.segmentation import Segmentation
from dfqkit_export.tasks.sequence import Sequence

_CLASSES = DEFAULT_TASK.name
#: Axes of an answer that lists boxes, and of one that has a place for each pixel.
_LISTS, _MAPS = 2, 3
#: Fewest classes that a line of text is made of: digits and a blank.
_LETTERS = 11


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """What came of it.

    Attributes:
        task: None where it is not clear.
        reason: What was seen, and what follows or what is missing.
        candidates: Names of the tasks that such outputs may be of.
    """

    task: Task | None
    reason: str
    candidates: tuple[str, ...] = ()

    def required(self) -> Task:
        """Return the task.

        Raises:
            ArtefactError: It is not clear; says what was found, which tasks may fit, and what to say.
        """
        if self.task is not None:
            return self.task
        may = f" They may be of: {', '.join(self.candidates)}." if self.candidates else ""
        message = (
            f"{self.reason}{may} Name the task: `task: NAME` in a recipe, task=NAME in Python, `--task NAME` where a "
            f"command has it. `task: {Generic.name}` takes outputs of any meaning and measures how far they are from "
            "the teacher's (SQNR, cosine, largest error), nothing more."
        )
        raise ArtefactError(message)


def recognise(outputs: Outputs, image: ImageSpec) -> Recognition:
    """Say of which task outputs are.

    Args:
        outputs: Of a few images, by name; of a single tensor without a name, "".
        image: What these are.
    """
    if len(outputs) > 1 and (main := _main(outputs)) is not None:
        outputs = main
    return _one(outputs, image) or _detection(outputs, image)


def _main(outputs: Outputs) -> Outputs | None:
    """Return the output "out" of segmentation networks, whose others help in training alone."""
    maps = outputs.get("out")
    others = [values for name, values in outputs.items() if name != "out"]
    if maps is None or maps.ndim != _MAPS + 1 or any(each.shape != maps.shape for each in others):
        return None
    return {"out": maps}


def _one(outputs: Outputs, image: ImageSpec) -> Recognition | None:
    if len(outputs) != 1:
        return None
    values = next(iter(outputs.values()))
    rules: dict[int, Callable[[Outputs, NDArray[Any], ImageSpec], Recognition]] = {
        0: _row, 1: _row, _LISTS: _list, _MAPS: _map,
    }  # fmt: skip
    rule = rules.get(values.ndim - 1)
    return rule(outputs, values, image) if rule is not None else None


def _row(outputs: Outputs, values: NDArray[Any], image: ImageSpec) -> Recognition:
    count = values.shape[1] if values.ndim > 1 else 1
    if image.classes and (count > 1 or image.classes != 2):
        return _fitted(DEFAULT_TASK, outputs, image, f"{count} numbers an image, and image.classes says of what")
    if image.classes:
        inside = values.min() >= 0 and values.max() <= 1
        binary = Classification(form="binary", scores="probabilities" if inside else "logits")
        return _fitted(binary, outputs, image, "one number an image, of two classes")
    seen = f"The network gives {told(outputs)}"
    if count > 2 and np.allclose(np.linalg.norm(values, axis=1), 1, atol=1e-3) and values.min() < 0:
        return _fitted(Embedding(), outputs, image, f"{count} numbers of length 1 an image")
    if count == 1:
        return Recognition(task=None, reason=f"{seen}, one number an image.", candidates=(_CLASSES,))
    reason = (
        f"{seen}. Of a classifier image.classes (--classes) must say how many classes there are ({count}); a vector "
        "whose direction counts is an embedding."
    )
    return Recognition(task=None, reason=reason, candidates=(_CLASSES, Embedding.name))


def _list(outputs: Outputs, values: NDArray[Any], image: ImageSpec) -> Recognition:
    count, width = values.shape[1:]
    if (count, width) == image.shape[1:]:
        return _unclear_map(outputs)
    if 1 in (count, width):
        return _row(outputs, values.reshape(len(values), -1), image)
    found = _detection(outputs, image)
    if found.task is None and width >= _LETTERS and count < width and _sums_to_one(values, 2):
        text = Sequence(scores="probabilities")
        return _fitted(text, outputs, image, f"probabilities of {width} classes at each of {count} steps")
    return found if found.task is not None else replace(found, candidates=(*found.candidates, Sequence.name))


def _map(outputs: Outputs, values: NDArray[Any], image: ImageSpec) -> Recognition:
    channels, height, width = values.shape[1:]
    if sorted(values.shape[1:])[1] == 1:
        return _row(outputs, values.reshape(len(values), -1), image)
    if image.classes and channels == image.classes:
        return _fitted(_segmentation(values), outputs, image, "a map for each class")
    if channels > 1 and _sums_to_one(values, 1):
        return _fitted(_segmentation(values), outputs, image, "probabilities of classes at each position")
    if image.classes and width == image.classes and height == image.shape[1]:
        return _fitted(Segmentation(axis=-1), outputs, image, "numbers of classes at each position")
    if channels == image.shape[0] and height > image.shape[1] and height * image.shape[2] == width * image.shape[1]:
        return _fitted(Dense(), outputs, image, f"an image {height / image.shape[1]:g} times as large")
    return _unclear_map(outputs)


def _segmentation(values: NDArray[Any]) -> Segmentation:
    return Segmentation(scores="probabilities" if _sums_to_one(values, 1) else "logits")


def _sums_to_one(values: NDArray[Any], axis: int) -> bool:
    return bool(values.min() >= 0) and bool(np.allclose(values.sum(axis), 1, atol=1e-3))


def _unclear_map(outputs: Outputs) -> Recognition:
    reason = (
        f"The network gives {told(outputs)}: a map, of classes (then say image.classes), of a mask, of numbers, or of "
        "points."
    )
    return Recognition(task=None, reason=reason, candidates=(Segmentation.name, Dense.name, Keypoints.name))


def _detection(outputs: Outputs, image: ImageSpec) -> Recognition:
    try:
        task = Detection().fitted(outputs, image)
    except UnclearBoxesError as error:
        lists = any(values.ndim > 2 for values in outputs.values())
        if lists:
            return Recognition(task=None, reason=str(error), candidates=(Detection.name,))
        likely = next((name for name, each in outputs.items() if each.shape[1:] == (image.classes,)), "NAME")
        reason = f"The network gives {told(outputs)}. Say which is the answer: {{name: {_CLASSES}, output: {likely}}}."
        return Recognition(task=None, reason=reason, candidates=(_CLASSES, Embedding.name))
    assert isinstance(task, Detection)
    parts = f"boxes {', '.join(task.boxes)} ({task.form}, {task.unit})"
    if task.scores:
        parts += f" and scores {', '.join(task.scores)} ({task.scores_are})"
    return Recognition(task=task, reason=parts)


def _fitted(task: Task, outputs: Outputs, image: ImageSpec, reason: str) -> Recognition:
    try:
        return Recognition(task=task.fitted(outputs, image), reason=reason)
    except ArtefactError as error:
        return Recognition(task=None, reason=str(error), candidates=(task.name,))
