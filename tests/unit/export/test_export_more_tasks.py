"""Keypoints, text and the wider forms of classification on arrays: decoding, margins, and what is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.report.evidence import seen
from dfqkit_export.report.judging import Evidence, judge
from dfqkit_export.tasks import DEFAULT_TASK, Task, metadata_of, task_of
from dfqkit_export.tasks.classification import Classification
from dfqkit_export.tasks.keypoints import Keypoints
from dfqkit_export.tasks.recognition import recognise
from dfqkit_export.tasks.sequence import Sequence, changes
from tests._messages import raises_naming

IMAGE = ImageSpec(shape=(3, 40, 80), mean=(0.5,) * 3, std=(0.5,) * 3)
OF_FIVE = ImageSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, classes=5)
OF_TWO = ImageSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, classes=2)
WHERE: dict[str, Any] = {"subject": "file", "data": "x"}
RNG = np.random.default_rng(0)


def values(task: Task, *given: Any) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in task.metrics(*given, **WHERE)}


def heatmaps(places: list[list[tuple[int, int]]], shape: tuple[int, int] = (10, 20)) -> np.ndarray:
    found = np.zeros((len(places), len(places[0]), *shape), np.float32)
    for image, points in enumerate(places):
        for point, (row, column) in enumerate(points):
            found[image, point, row, column] = 1
    return found


def test_points_are_where_heatmaps_are_largest_in_pixels_of_the_image() -> None:
    given = heatmaps([[(2, 3), (9, 19)], [(0, 0), (5, 10)]])
    given[0, 0, 2, 4] = 0.5  # towards the larger neighbour
    task = Keypoints().fitted({"": given}, IMAGE)
    assert isinstance(task, Keypoints)
    assert (task.shape, task.size) == ((2, 10, 20), (40, 80))
    found = task.points({"points": given}) * 80
    np.testing.assert_allclose(found[0], [[15, 10], [78, 38]])
    moved = heatmaps([[(2, 3), (9, 19)], [(0, 0), (5, 12)]])
    measured = values(task, {"points": given}, {"points": moved}, None)
    assert (measured["points_kept"], measured["agreement"]) == (75, 50)
    assert task.margins({"points": given}, {"points": moved}) == pytest.approx([0.05 - 1 / 80, 0.05 - 8 / 80])
    labels = np.array([[[15, 10], [np.nan, 0]], [[70, 2], [42, 22]]])
    assert values(task, None, {"points": given}, labels)["points_right"] == pytest.approx(200 / 3)
    seen = np.concatenate([np.nan_to_num(labels), [[[2], [0]], [[0], [1]]]], 2)
    assert values(task, None, {"points": given}, seen)["points_right"] == 100
    with raises_naming(ArtefactError, "keypoints", "(2, 2, 'x, y')"):
        values(task, None, {"points": given}, np.zeros(2))


def test_points_are_read_from_coordinates_of_every_form() -> None:
    pairs = np.array([[[8.0, 4.0, 1.0], [16.0, 8.0, 1.0]]])
    for given, unit in ((pairs, "pixels"), (pairs[..., :2].reshape(1, 4), "pixels"), (pairs / (80, 40, 1), "image")):
        task = task_of({"name": "keypoints", "form": "coordinates", "unit": unit}).fitted({"": given}, IMAGE)
        assert isinstance(task, Keypoints)
        np.testing.assert_allclose(task.points({"points": given})[0] * 80, pairs[0, :, :2])
    with raises_naming(ArtefactError, "(5,)", "(2 x points)"):
        Keypoints(form="coordinates").fitted({"": np.zeros((1, 5))}, IMAGE)


def steps(lines: list[str], width: int = 6) -> dict[str, np.ndarray]:
    """Logits whose largest is that of each digit; a dash for the blank, class 0."""
    kinds = np.array([[0 if letter == "-" else int(letter) for letter in line] for line in lines])
    return {"text": 4 * np.eye(width, dtype=np.float32)[kinds]}


def reader(**changed: Any) -> Sequence:
    task = Sequence(alphabet="abcde", **changed).fitted({"": steps(["1-2"])["text"]}, IMAGE)
    assert isinstance(task, Sequence)
    return task


def test_text_of_ctc_is_without_blanks_and_repeats() -> None:
    task, given = reader(), steps(["11-122", "------"])
    lines = task.lines(given)
    assert lines == [(1, 1, 2), ()]
    assert [task.text(line) for line in lines] == ["aab", ""]
    groups = task.groups(given, IMAGE)
    assert (groups.of.tolist(), groups.nothing) == ([1, 0], 0)
    assert Sequence(shape=(3, 6), form="attention", end=0).lines(steps(["12-", "345"])) == [(1, 2), (3, 4, 5)]


def test_lines_and_characters_are_counted() -> None:
    task, teacher, file = reader(), steps(["1-2-3", "1-1-2"]), steps(["1-2-4", "11-12"])
    found = values(task, teacher, file, None)
    assert (found["line_agreement"], found["character_error"]) == (50, pytest.approx(100 / 6))
    assert task.same_answer(teacher, file).tolist() == [False, True]
    margins = task.margins(teacher, file)
    assert margins[0] < 0 < margins[1]
    assert task.margins(teacher, teacher)[0] > 0.8
    right = values(task, teacher, file, np.array(["abd", "aab"], object))
    assert (right["line_accuracy"], right["label_drop"]) == (100, -50)
    with raises_naming(ArtefactError, "sequence", "a text an image"):
        values(task, None, file, np.array([1, 2]))
    with raises_naming(ArtefactError, "alphabet"):
        values(Sequence(shape=(5, 6)), None, file, np.array(["a", "b"], object))
    with raises_naming(ArtefactError, "3 characters", "6 classes"):
        Sequence(alphabet="abc").fitted({"": teacher["text"]}, IMAGE)


@pytest.mark.parametrize(("first", "second", "wanted"), [("", "ab", 2), ("abc", "abc", 0), ("kitten", "sitting", 3)])
def test_changes_are_the_fewest(first: str, second: str, wanted: int) -> None:
    assert changes(tuple(map(ord, first)), tuple(map(ord, second))) == wanted
    assert changes(tuple(map(ord, second)), tuple(map(ord, first))) == wanted


@pytest.mark.parametrize("shape", [(5,), (5, 1, 1), (1, 5), (1, 1, 5)])
def test_classes_may_have_axes_of_size_1_beside_them(shape: tuple[int, ...]) -> None:
    given = RNG.normal(size=(4, *shape)).astype(np.float32)
    task = recognise({"": given}, OF_FIVE).required()
    assert isinstance(task, Classification)
    task.check({"logits": given}, OF_FIVE)
    assert (task == DEFAULT_TASK, metadata_of(task) == {}) == (shape == (5,), shape == (5,))
    flat = {"logits": given.reshape(4, 5)}
    assert values(task, {"logits": given}, {"logits": -given}, np.arange(4)) == values(
        DEFAULT_TASK, flat, {"logits": -flat["logits"]}, np.arange(4)
    )


def test_one_number_is_of_the_second_of_two_classes() -> None:
    logits = np.array([[-2.0], [-0.1], [0.3], [2.0]], np.float32)
    task = recognise({"": logits}, OF_TWO).required()
    assert isinstance(task, Classification)
    assert (task.form, task.scores) == ("binary", "logits")
    given, other = {"logits": logits}, {"logits": -logits}
    labels = np.array([0, 0, 1, 0])
    assert values(task, None, given, labels)["top1"] == 75
    assert (values(task, given, given, None)["agreement"], values(task, given, other, None)["agreement"]) == (100, 0)
    odds = {"logits": 1 / (1 + np.exp(-logits))}
    inside = recognise({"": odds["logits"]}, OF_TWO).required()
    np.testing.assert_allclose(inside.margins(odds, odds), task.margins(given, given), atol=1e-5)
    assert not Classification(form="binary").needs_classes
    later = Classification(form="binary", shape=(1,), scores="probabilities", threshold=0.6)
    assert later.rows(odds).argmax(1).tolist() == [0, 0, 0, 1]


def test_one_answer_to_all_images_judges_nothing() -> None:
    task = Classification(form="binary", shape=(1,))
    teacher = {"logits": 3 + RNG.random((32, 1))}
    file = {"logits": teacher["logits"] + 0.001}
    found = judge(Evidence(seen=[seen(task, OF_TWO, teacher, file, data="made")]))
    assert found.verdict == "not judged"
    assert "one answer to 100 %" in found.reasons[0]
    assert set(task.samples.programs) > {"python/run.py", "python/decode.py"}
    assert "python/classify.py" in DEFAULT_TASK.samples.programs


def test_labels_are_each_for_themselves() -> None:
    task = Classification(form="labels", shape=(3,))
    teacher = {"logits": np.array([[1, -1, 2.0], [-1, -2, -3.0]])}
    file = {"logits": np.array([[1, -1, -0.5], [-1, -2, -3.0]])}
    found = values(task, teacher, file, None)
    assert found["agreement"] == 50
    assert (found["kl"] or 0) > 0
    assert task.margins(teacher, file).tolist() == [-0.5, 1]
    labels = np.array([[1, 0, 1], [0, 0, 0]])
    right = values(task, teacher, file, labels)
    assert (right["labels_f1"], right["label_drop"]) == (pytest.approx(200 / 3), pytest.approx(100 / 3))
    assert not task.offers
    with raises_naming(ArtefactError, "0 and 1"):
        values(task, None, file, np.array([1, 2]))


def rows_of(*each: object) -> np.ndarray:
    found = np.empty(len(each), object)
    found[:] = each
    return found


#: Labels as every kind of source gives them, of four images.
_LABELS: dict[str, np.ndarray] = {
    "classes": np.array([0, 1, 1, 0]), "other classes": np.array([7, 9, 8, 7]), "several": RNG.integers(0, 2, (4, 5)),
    "boxes": rows_of(*[np.array([[1, 2.0, 2, 9, 9]])] * 4), "no boxes": rows_of(*[np.zeros((0, 5))] * 4),
    "other boxes": rows_of(*[np.array([[6, 2.0, 2, 9, 9]])] * 4),
    "masks": np.zeros((4, 8, 8), np.uint8), "text": rows_of(*["ab"] * 4), "words": np.array(["ab"] * 4),
    "numbers": RNG.random(4),
}  # fmt: skip
#: Which of them each task takes, what it is told, and what such a network gives.
_TAKES: dict[str, tuple[set[str], dict[str, Any], dict[str, np.ndarray]]] = {
    "classification": ({"classes"}, {}, {"logits": RNG.normal(size=(4, 5))}),
    "segmentation": ({"masks"}, {}, {"mask": RNG.normal(size=(4, 3, 8, 8))}),
    "detection": (
        {"boxes", "no boxes"},
        {},
        {"b": np.tile([[1.0, 1, 4, 4], [2, 2, 7, 7]], (4, 1, 1)), "s": RNG.random((4, 2, 3))},
    ),
    "keypoints": (set(), {}, {"points": RNG.normal(size=(4, 4, 8, 8))}),
    "embedding": ({"classes", "other classes"}, {}, {"embedding": RNG.normal(size=(4, 12))}),
    "dense": ({"masks"}, {}, {"map": RNG.normal(size=(4, 1, 8, 8))}),
    "sequence": ({"text", "words"}, {"alphabet": "abcde"}, {"text": RNG.normal(size=(4, 8, 6))}),
    "generic": (set(), {}, {"a": RNG.normal(size=(4, 7))}),
}


@pytest.mark.parametrize("name", _TAKES)
def test_labels_of_another_task_are_refused_with_what_was_found(name: str) -> None:
    taken, told, given = _TAKES[name]
    outputs = {key: found.astype(np.float32) for key, found in given.items()}
    task = task_of({"name": name, **told}).fitted(outputs, OF_FIVE)
    of_other_classes = {("classification", "other classes"): ("9", "5"), ("detection", "other boxes"): ("6", "3")}
    for kind, labels in _LABELS.items():
        if kind in taken:
            values(task, None, outputs, labels)
        else:
            with raises_naming(ArtefactError, *of_other_classes.get((name, kind), (str(labels.dtype),))):
                values(task, None, outputs, labels)
