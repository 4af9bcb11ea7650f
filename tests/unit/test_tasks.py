"""Tasks: how they are found and named, what their halves make of outputs, and a section of a recipe for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dfqkit.tasks import named, torch_task
from dfqkit_export.errors import ArtefactError, TeacherError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks import DEFAULT_TASK, OutputSpec, entry_of, metadata_of, task_in, task_of
from tests._messages import raises_naming
from tests._toy_task import Scene

IMAGE = ImageSpec(shape=(3, 4, 6), mean=(0.5,) * 3, std=(0.5,) * 3)


def outputs(n: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"map": rng.normal(size=(n, 1, 4, 6)), "pose": rng.normal(size=(n, 4))}


@dataclass(frozen=True)
class Scaled(Scene):
    """The toy with a parameter."""

    scale: float = 1.0


def test_files_that_name_no_task_are_classifiers_and_say_nothing_of_it() -> None:
    assert task_of(None) is task_in({}) is DEFAULT_TASK
    assert entry_of(DEFAULT_TASK) == metadata_of(DEFAULT_TASK) == {}
    assert task_of(DEFAULT_TASK.to_dict()) == DEFAULT_TASK


def test_parameters_are_written_and_tell_tasks_apart() -> None:
    assert Scaled(scale=2.0).to_dict() == {"name": "toy_scene", "scale": 2.0}
    assert Scaled(scale=2.0) != Scaled()
    assert Scene() == Scene()
    assert metadata_of(Scaled()) == {"dfqkit.task": '{"name": "toy_scene", "scale": 1.0}'}


def test_an_unknown_task_or_parameter_is_told() -> None:
    with raises_naming(ArtefactError, "classificatoin", "classification"):
        task_of({"name": "classificatoin"})
    with raises_naming(ArtefactError, "classification", "colour"):
        task_of(DEFAULT_TASK.to_dict() | {"colour": 3})
    with raises_naming(ArtefactError, "none"):
        task_in({"dfqkit.task": "[1]"})
    with raises_naming(TeacherError, "toy_scene", "dfqkit.torch_tasks"):
        torch_task(Scene())


def test_outputs_are_taken_by_name_or_by_place() -> None:
    scene = Scene()
    assert scene.named_in(["pose", "more", "map"]) == ("map", "pose")
    assert scene.named_in(["a", "b", "c"]) == ("a", "b")
    with raises_naming(ArtefactError, "a", "map", "pose"):
        scene.named_in(["a"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"map": np.zeros((2, 1, 4, 5))}, "(N, 1, 4, 6)"),
        ({"pose": np.full((2, 4), np.nan)}, "NaN"),
        ({"pose": np.zeros((2, 4, 1))}, "(N, 4)"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(change: dict[str, np.ndarray], told: str) -> None:
    Scene().check(outputs(), IMAGE)
    with raises_naming(ArtefactError, told):
        Scene().check(outputs() | change, IMAGE)


def test_the_error_of_an_image_is_of_all_outputs() -> None:
    wanted, found = outputs(), {name: values + 1 for name, values in outputs().items()}
    np.testing.assert_allclose(Scene().per_image_error(wanted, found), [28.0, 28.0])


def test_what_is_not_sorted_is_one_group() -> None:
    groups = Scene().groups(outputs(3), IMAGE)
    assert (groups.of.tolist(), groups.count, groups.confidence, groups.one) == ([0, 0, 0], 1, None, "")


def test_a_task_says_whether_it_needs_classes() -> None:
    Scene().require_image(IMAGE)
    with raises_naming(ArtefactError, DEFAULT_TASK.name, "classes"):
        DEFAULT_TASK.require_image(IMAGE)
    assert "classes" not in IMAGE.to_dict()
    assert ImageSpec.from_dict(IMAGE.to_dict()) == IMAGE


@pytest.mark.parametrize("name", ["images", "kind", "not a name"])
def test_an_output_cannot_be_called_what_files_use_otherwise(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        OutputSpec(name=name, shape=(), meaning="")


def test_what_a_forward_returns_is_named() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert named(one, ["x"]) == {"x": one}
    assert named((one, two), ["x", "y"]) == {"x": one, "y": two}
    assert named({"y": two, "more": 3, "x": one}, ["x", "y"]) == {"x": one, "y": two}
    for wrong in ((one,), {"x": one}, 3, {"x": one, "y": 3}):
        with pytest.raises(ValueError, match="x, y"):
            named(wrong, ["x", "y"])
