"""Tasks on arrays: what each measures of outputs that are the teacher's, nearly or not at all; how networks fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import find_kind
from dfqkit_export.report.evidence import seen
from dfqkit_export.report.judging import Evidence, judge
from dfqkit_export.tasks import Task, task_of
from dfqkit_export.tasks.embedding import nearest
from dfqkit_export.tasks.segmentation import Segmentation, resized
from tests._messages import names, raises_naming

IMAGE = ImageSpec(shape=(3, 8, 12), mean=(0.5,) * 3, std=(0.5,) * 3)
WHERE: dict[str, Any] = {"subject": "file", "data": "x"}
RNG = np.random.default_rng(0)
SMOOTH = RNG.normal(size=(32, 3, 8, 12)).astype(np.float32)
GIVEN = {
    "segmentation": {"": 3 * SMOOTH},
    "embedding": {"": RNG.normal(size=(32, 16)).astype(np.float32)},
    "dense": {"depth": SMOOTH[:, :1]},
    "generic": {"a": SMOOTH, "b": RNG.normal(size=(32, 5)).astype(np.float32)},
}


def fitted(name: str) -> tuple[Task, dict[str, NDArray[np.float32]]]:
    task = task_of({"name": name}).fitted(GIVEN[name], IMAGE)
    return task, dict(zip(task.names, GIVEN[name].values(), strict=True))


def noisy(outputs: dict[str, NDArray[np.float32]], share: float) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    return {name: v + (share * v.std() * rng.normal(size=v.shape)).astype(np.float32) for name, v in outputs.items()}


def values(task: Task, *given: Any) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in task.metrics(*given, **WHERE)}


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_the_teachers_is_perfect_and_noise_is_seen_at_its_size(name: str) -> None:
    task, teacher = fitted(name)
    task.check(teacher, IMAGE)
    assert task_of(task.to_dict()) == task
    same, near, far = (values(task, teacher, noisy(teacher, share), None) for share in (0.0, 0.05, 2.0))
    assert (same["agreement"], same["sqnr_db"]) == (100, None)
    assert near["sqnr_db"] == pytest.approx(26, abs=1), "20 log10(1 / 0.05)"
    assert (near["agreement"] or 0) > 80
    assert (far["agreement"] or 0) < 5
    assert task.same_answer(teacher, teacher).all()
    assert (task.margins(teacher, noisy(teacher, 0.05)) > task.margins(teacher, noisy(teacher, 2.0))).all()
    for metric in task.metrics(teacher, noisy(teacher, 0.05), None, **WHERE):
        assert find_kind(metric.name) is not None
        assert metric.stderr is not None or metric.low is not None or metric.name == "largest_error"
    assert set(task.per_image(teacher, teacher)) == {"agrees", "noise"}


def test_several_outputs_have_a_ratio_each_and_weigh_alike() -> None:
    task, teacher = fitted("generic")
    large = {**teacher, "a": 1000 * teacher["a"]}
    both = values(task, large, noisy(large, 0.05), None)
    assert {"sqnr_db:a", "sqnr_db:b"} <= set(both)
    assert both["sqnr_db"] == pytest.approx(26, abs=0.3)
    broken = values(task, large, {**large, "b": large["b"][::-1]}, None)
    assert (broken["sqnr_db"] or 0) < 3
    kind = find_kind("sqnr_db:b")
    assert kind is not None
    assert (kind.title, kind.unit) == ("SQNR of the outputs: b", "dB")


@pytest.mark.parametrize(
    ("name", "share", "verdict"),
    [("generic", 0.01, "ok"), ("dense", 0.01, "ok"), ("embedding", 0.05, "ok"), ("segmentation", 0.01, "ok"),
     ("dense", 3.0, "failed"), ("segmentation", 3.0, "failed"), ("generic", 0.2, "not judged")],
)  # fmt: skip
def test_a_task_without_classes_is_judged_by_its_own_limits(name: str, share: float, verdict: str) -> None:
    task, teacher = fitted(name)
    shown = seen(task, IMAGE, teacher, noisy(teacher, share), data="made")
    found = judge(Evidence(seen=[shown]))
    assert found.verdict == verdict, found
    if verdict == "not judged":
        names(found.reasons[0], "validate.data", "25 dB")


def test_masks_that_are_nearly_everywhere_empty_judge_nothing() -> None:
    task = Segmentation().fitted({"": np.full((20, 1, 8, 12), -3.0)}, IMAGE)
    empty = {task.names[0]: np.full((20, 1, 8, 12), -3.0)}
    found = judge(Evidence(seen=[seen(task, IMAGE, empty, empty, data="made")]))
    assert found.verdict == "not judged"
    names(found.reasons[0], "finds something in 0 of the 20")


def test_masks_of_one_thing_are_above_their_threshold() -> None:
    logits, odds = np.array([[[[-1.0, 0.5]]]]), np.array([[[[0.4, 0.8]]]])
    assert Segmentation(shape=(1, 1, 2)).masks({"mask": logits}).tolist() == [[[0, 1]]]
    by_odds = Segmentation(shape=(1, 1, 2), scores="probabilities", threshold=0.3)
    assert by_odds.masks({"mask": odds}).tolist() == [[[1, 1]]]
    last = Segmentation(shape=(1, 2, 3), axis=-1)
    assert last.masks({"mask": np.array([[[[1, 2, 0], [5, 4, 3]]]])}).tolist() == [[[1, 0]]]
    assert (last.count, Segmentation(shape=(1, 1, 2)).count) == (3, 2)


def test_iou_is_the_mean_over_the_classes_that_are_there() -> None:
    task = Segmentation(shape=(4, 1, 4))
    hot = lambda rows: {"mask": np.eye(4)[np.array(rows)].transpose(0, 2, 1)[:, :, None]}  # noqa: E731
    teacher, file = hot([[0, 0, 1, 1]]), hot([[0, 1, 1, 1]])
    found = values(task, teacher, file, None)
    assert found["mask_iou"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert found["pixel_agreement"] == 75
    labels = np.array([[[0, 255, 1, 2]]])
    assert values(task, None, file, labels)["mask_true_iou"] == pytest.approx(100 * (1 + 1 / 2 + 0) / 3)
    with raises_naming(ArtefactError, "0 to 9", "has 4"):
        values(task, None, file, np.array([[[0, 1, 2, 9]]]))
    with raises_naming(ArtefactError, "segmentation", "masks"):
        values(task, None, file, np.array([1]))


def test_masks_are_resized_to_the_nearest_position() -> None:
    small = np.array([[[1, 2], [3, 4]]])
    assert resized(small, (4, 4))[0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert resized(resized(small, (6, 4)), (2, 2)).tolist() == small.tolist()


def test_what_is_nearest_is_another_image() -> None:
    assert nearest(np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1.0]])).tolist() == [2, 3, 0, 1]
    task, teacher = fitted("embedding")
    labels = np.arange(32) // 2
    twins = {"embedding": np.repeat(teacher["embedding"][::2], 2, 0)}
    assert values(task, twins, twins, labels)["retrieval"] == 100
    assert values(task, twins, noisy(twins, 5.0), labels)["label_drop"] > 30  # type: ignore[operator]


def test_psnr_is_beside_the_peak() -> None:
    task = task_of({"name": "dense", "peak": 255}).fitted({"depth": np.zeros((2, 1, 4, 4))}, IMAGE)
    teacher = {"depth": np.full((2, 1, 4, 4), 100.0)}
    found = values(task, teacher, {"depth": teacher["depth"] + 1}, None)
    assert found["psnr_db"] == pytest.approx(48.13, abs=0.01)
    assert found["map_relative_error"] == pytest.approx(1.0)


@pytest.mark.parametrize(("name", "shape"), [("segmentation", (2, 1)), ("embedding", (2, 3, 4)), ("dense", (2, 1))])
def test_an_output_that_is_not_there_is_told_with_those_that_are(name: str, shape: tuple[int, ...]) -> None:
    with raises_naming(ArtefactError, name, "one", "two", "output: NAME"):
        task_of({"name": name}).fitted({"one": np.zeros(shape), "two": np.zeros(shape)}, IMAGE)


def test_labels_of_a_task_without_labels_are_refused() -> None:
    task, teacher = fitted("generic")
    with raises_naming(ArtefactError, "generic", "no labels"):
        task.metrics(teacher, teacher, np.arange(32), **WHERE)
