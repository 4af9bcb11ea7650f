"""Which task outputs are of where nobody says it; what is asked where they do not tell; how teachers get their task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dfqkit.config.recipe import ImageSection
from dfqkit.tasks import found_in, named, torch_task
from dfqkit.teacher import Teacher
from dfqkit.teacher.identity import identity_of
from dfqkit_export.errors import ArtefactError, TeacherError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks import DEFAULT_TASK, Task, task_of
from dfqkit_export.tasks.recognition import recognise
from tests import _task_nets as nets
from tests._messages import names, raises_naming

IMAGE = ImageSpec(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
OF_FIVE = ImageSpec(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, classes=5)
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=(2, *shape)).astype(np.float32)


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    odds = np.exp(values)
    return np.asarray(odds / odds.sum(axis, keepdims=True))


def corners(n: int, scale: float = 1.0) -> np.ndarray:
    corner = RNG.uniform(0, 16, (2, n, 2))
    return (np.concatenate([corner, corner + 8], 2) * scale).astype(np.float32)


def unit(size: int) -> np.ndarray:
    values = normal(size)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


CASES: dict[str, tuple[dict[str, np.ndarray], ImageSpec, str]] = {
    "logits": ({"": normal(5)}, OF_FIVE, "classification"),
    "logits of another number": ({"": normal(7)}, OF_FIVE, "classification"),
    "vectors of length 1": ({"": unit(12)}, IMAGE, "embedding"),
    "a map a class": ({"": normal(5, 32, 32)}, OF_FIVE, "segmentation"),
    "probabilities of positions": ({"": softmax(normal(4, 32, 32), 1)}, IMAGE, "segmentation"),
    "torchvision's segmentation": ({"out": softmax(normal(4, 8, 8), 1), "aux": normal(4, 8, 8)}, IMAGE, "segmentation"),
    "a larger image": ({"": normal(3, 64, 64)}, IMAGE, "dense"),
    "boxes and scores": ({"b": corners(9), "s": RNG.random((2, 9, 3))}, IMAGE, "detection"),
    "faces": ({"s": softmax(normal(9, 2), 2), "b": corners(9, 1 / 32)}, IMAGE, "detection"),
    "distributions": (
        {"1": RNG.random((2, 16, 80)), "2": normal(16, 32), "3": RNG.random((2, 4, 80)), "4": normal(4, 32)},
        IMAGE, "detection",
    ),
    "columns": ({"": np.concatenate([normal(4, 84), RNG.random((2, 3, 84))], 1)}, IMAGE, "detection"),
    "rows with objectness": ({"": np.concatenate([normal(84, 4), RNG.random((2, 84, 4))], 2)}, IMAGE, "detection"),
    "end to end": (
        {"": np.concatenate([corners(9), RNG.random((2, 9, 1)), RNG.integers(0, 3, (2, 9, 1))], 2)},
        IMAGE, "detection",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_only_one_task_gives_is_recognised(case: str) -> None:
    outputs, image, wanted = CASES[case]
    found = recognise(outputs, image)
    assert found.task is not None, found.reason
    assert found.task.name == wanted
    assert found.reason
    if wanted != "classification":
        kept = {name: outputs.get(name, outputs.get("")) for name in found.task.names}
        found.task.check({name: values for name, values in kept.items() if values is not None}, image)


@pytest.mark.parametrize(
    ("outputs", "facts"),
    [
        ({"": normal(5)}, ["(N, 5)", "image.classes", "classification, embedding"]),
        ({"": normal(1)}, ["(N, 1)", "classification"]),
        ({"": normal(1, 32, 32)}, ["(N, 1, 32, 32)", "segmentation, dense"]),
        ({"a": normal(5), "b": normal(3, 4, 4)}, ["a (N, 5)", "b (N, 3, 4, 4)", "pairs"]),
        ({"b": normal(9, 4), "s": RNG.random((2, 9, 3))}, ["anchors", "detection"]),
        ({"b": corners(9), "s": normal(9, 3)}, ["scores_are", "softmax", "detection"]),
        ({"": normal(2, 3, 4, 5)}, ["(N, 2, 3, 4, 5)"]),
        ({"e": normal(32), "l": normal(5)}, ["e (N, 32), l (N, 5)", "is the answer", "classification, embedding"]),
    ],
)
def test_what_may_be_several_tasks_is_asked(outputs: dict[str, np.ndarray], facts: list[str]) -> None:
    found = recognise(outputs, IMAGE)
    assert found.task is None
    with pytest.raises(ArtefactError) as caught:
        found.required()
    names(caught.value, *facts, "task: generic", "SQNR", "--task NAME")
    if "e" in outputs:  # the one with as many numbers as there are classes
        assert "{name: classification, output: l}" in recognise(outputs, OF_FIVE).reason


def test_what_a_forward_returns_has_names_of_its_own() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert list(found_in(one)) == [""]
    assert list(found_in((one, two))) == ["output_0", "output_1"]
    assert found_in({"b": two, "nothing": None}) == {"b": two}
    assert named((one, two), ["output_1"]) == {"output_1": two}
    for wrong in (3, (one, [two]), {}, {"a": 3}):
        with pytest.raises(ValueError, match="needed is a tensor"):
            found_in(wrong)


@pytest.mark.parametrize("network", nets.TASKS)
def test_a_teacher_takes_what_its_task_leaves_open_from_its_outputs(network: str) -> None:
    import yaml

    entry: Any = yaml.safe_load(nets.TASKS[network] or "null")
    task = None if entry is None else task_of({"name": entry} if isinstance(entry, str) else entry)
    image = ImageSection.model_validate(yaml.safe_load(nets.recipe(network))["image"]).spec()
    teacher = Teacher.from_module(getattr(nets, network)(), image, task=task)
    assert all(isinstance(size, int) for output in teacher.task.outputs for size in output.shape)
    answers = teacher.answers(torch.rand((3, *image.shape), generator=torch.Generator().manual_seed(0)))
    assert tuple(answers) == teacher.task.names
    teacher.task.check({name: values.numpy() for name, values in answers.items()}, image)
    assert identity_of(teacher)["task"]["name"] == teacher.task.name
    _distance_is_of_the_answers(teacher.task, answers)


def _distance_is_of_the_answers(task: Task, answers: dict[str, torch.Tensor]) -> None:
    distance = torch_task(task).distance
    assert float(distance(answers, answers)) == pytest.approx(0, abs=1e-6)
    rng = torch.Generator().manual_seed(1)
    size = {name: 0.02 * float(values.std().clamp_min(0.5)) for name, values in answers.items()}
    noise = {name: size[name] * torch.randn(values.shape, generator=rng) for name, values in answers.items()}
    near, far = ({name: answers[name] + k * noise[name] for name in answers} for k in (1, 5))
    moved = {name: values.clone().requires_grad_() for name, values in near.items()}
    found = distance(answers, moved)
    assert 0 < float(found.detach()) < float(distance(answers, far))
    found.backward()
    assert all(values.grad is not None and bool(values.grad.isfinite().all()) for values in moved.values())


def test_a_teacher_whose_outputs_tell_nothing_is_refused_with_what_to_say() -> None:
    with raises_naming(TeacherError, "Depth", "(N, 1, 32, 32)", "segmentation, dense", "task: generic"):
        Teacher.from_module(nets.Depth(), IMAGE)
    with raises_naming(TeacherError, "Nested", "tuple of Tensor, list"):
        Teacher.from_module(Nested(), IMAGE)
    with raises_naming(TeacherError, "Embedder", "dense", "(N, 12)"):
        Teacher.from_module(nets.Embedder(), IMAGE, task=task_of({"name": "dense"}))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    assert Teacher.from_module(plain, OF_FIVE).task == DEFAULT_TASK
    assert "task" not in identity_of(Teacher.from_module(plain, OF_FIVE))


class Nested(nets.Pair):
    """A tuple with a list in it."""

    def forward(self, x: torch.Tensor) -> Any:
        first, second = super().forward(x)
        return first, [second]
