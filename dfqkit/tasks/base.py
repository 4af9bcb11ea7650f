"""What a network's outputs mean to training: the torch part of a task.

What belongs here: naming outputs, and how far two of them are apart. What measuring and files ask is the other half,
`dfqkit_export.tasks`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import AGREEMENT
from dfqkit_export.tasks import Task

#: What a network answers to a batch of images: tensors (N, ...) by the name of the output.
Tensors = Mapping[str, Tensor]


#: Names of what a tuple holds, where nobody gave it others.
PLACE = re.compile(r"output_(\d+)")


def found_in(result: Any) -> dict[str, Tensor]:
    """Return what a forward returned under the names that it has itself.

    A tensor is called "", what a tuple holds ``output_0``, ``output_1``, ...; what is no tensor is left out of a
    mapping.

    Raises:
        ValueError: It is none of these; says what was found.
    """
    if isinstance(result, Tensor):
        return {"": result}
    if isinstance(result, Mapping):
        found = {str(name): value for name, value in result.items() if isinstance(value, Tensor)}
        if found:
            return found
    elif isinstance(result, tuple | list) and result and all(isinstance(value, Tensor) for value in result):
        return {f"output_{place}": value for place, value in enumerate(result)}
    inside = ", ".join(dict.fromkeys(type(value).__name__ for value in _inside(result)))
    what = f"a {type(result).__name__}{f' of {inside}' if inside else ''}"
    message = f"returns {what}; needed is a tensor, or a tuple or mapping of tensors"
    raise ValueError(message)


def _inside(result: Any) -> Iterable[Any]:
    return result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple | list) else ()


def placed(names: Sequence[str], count: int) -> list[str]:
    """Return what a tuple of ``count`` values calls them: the names in order, or their places where these are names."""
    places = [PLACE.fullmatch(name) for name in names]
    if all(place is not None and int(place[1]) < count for place in places):
        return [f"output_{place}" for place in range(count)]
    return list(names)


def named(result: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Return what a forward returned as tensors by name.

    Args:
        result: One tensor, a tuple or list in the order of the names, or a mapping; a mapping may hold more.
        names: The outputs of the task.

    Raises:
        ValueError: It is none of these; says what was found.
    """
    if isinstance(result, Tensor):
        result = (result,)
    if isinstance(result, Mapping):
        given = {name: result.get(name) for name in names}
    elif isinstance(result, tuple | list) and len(places := placed(names, len(result))) == len(result):
        all_ = dict(zip(places, result, strict=True))
        given = {name: all_[name] for name in names}
    else:
        message = f"returns a {type(result).__name__}; {_wanted(names)}"
        raise ValueError(message)
    found: dict[str, Tensor] = {}
    for name, value in given.items():
        if not isinstance(value, Tensor):
            what = "has nothing" if value is None else f"has a {type(value).__name__}"
            message = f"{what} under '{name}'; {_wanted(names)}"
            raise ValueError(message)
        found[name] = value
    return found


def _wanted(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"one tensor of {names[0]} is needed"
    return f"needed are {len(names)} tensors, in this order or by these names: {', '.join(names)}"


def _in_numpy(values: Tensors) -> dict[str, NDArray[np.float32]]:
    return {name: value.detach().float().cpu().numpy() for name, value in values.items()}


class TorchTask(ABC):
    """The torch part of a task.

    Args:
        task: The other half.

    Attributes:
        chosen_by: The entry of `judged` that is lowest in the state that is kept.
        rule: What it is, for people.
    """

    chosen_by: ClassVar[str] = "distance"
    rule: ClassVar[str] = "distance from the teacher"

    def __init__(self, task: Task) -> None:
        self.task = task

    def named(self, result: Any) -> dict[str, Tensor]:
        """Return what a forward of such a network returned, by output.

        Raises:
            ValueError: It returned something else.
        """
        return named(result, self.task.names)

    @abstractmethod
    def distance(self, reference: Tensors, answer: Tensors, temperature: float = 1.0) -> Tensor:
        """Return how far an answer is from the reference's, a scalar with gradient, the mean over the images.

        Args:
            reference: Outputs of the teacher, or of the float graph that is imitated.
            answer: Outputs of the student, of the same images.
            temperature: By which probabilities are softened, where the task has any.
        """

    def for_losses(self, output: Tensor) -> Tensor:
        """Return a network's first output as terms of a loss take it; of a classifier logits."""
        return output

    def objectness(self, outputs: Tensors) -> Tensor | None:
        """Return the probability of each class at each position, (N, positions, classes); what is left is background.

        With gradient, each within [0, 1], of what is shown: boxes, pixels of regions. None where the task finds none.
        """
        return None

    def object_sizes(self, outputs: Tensors) -> Tensor | None:
        """Return the side of the box at each of these positions, (N, positions), as a share of the image's side.

        With gradient, above 0; None where positions have no size.
        """
        return None

    def same(self, first: Tensors, second: Tensors) -> Tensor:
        """Return on which images both give the same answer, bool (N,)."""
        return torch.from_numpy(np.asarray(self.task.same_answer(_in_numpy(first), _in_numpy(second))))

    def groups(self, outputs: Tensors, image: ImageSpec) -> Tensor:
        """Return what each image is sorted by, such as its class, int64 (N,); 0 where the task sorts none."""
        return torch.from_numpy(self.task.groups(_in_numpy(outputs), image).of)

    def kept(self, reference: Tensors, answer: Tensors) -> float:
        """Return how much of a reference's answers stays, in percent: as the task says, or the share of images."""
        kept = self.task.kept(_in_numpy(reference), _in_numpy(answer))
        return 100 * float(self.same(reference, answer).float().mean()) if kept is None else kept

    def judged(self, reference: Tensors, answer: Tensors) -> dict[str, float]:
        """Return what is told of a state by the images that choose it, each summed over the batch's images."""
        count = len(next(iter(answer.values())))
        return {
            AGREEMENT.name: 100 * float(self.same(reference, answer).sum()),
            self.chosen_by: float(self.distance(reference, answer)) * count,
        }
