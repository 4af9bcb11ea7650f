"""Boxes: average precision against a brute force of its own, suppression, every form of decoding, what is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks.boxes import Boxes, matched, of_some, ranked, suppressed
from dfqkit_export.tasks.coco import coco_precision
from dfqkit_export.tasks.decoding import MOST, decoded
from dfqkit_export.tasks.detection import Detection
from dfqkit_export.tasks.lookup import task_of
from tests._messages import raises_naming

IMAGE = ImageSpec(shape=(3, 32, 48), mean=(0.5,) * 3, std=(0.5,) * 3)
Item = tuple[int, int, float, tuple[float, ...]]


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
    return width * height / (area(a) + area(b) - width * height + 1e-9)


def brute(truth: list[Item], found: list[Item]) -> float:
    """Average precision from its definition: for each recall, the best precision at that recall or beyond."""
    taken: set[int] = set()
    hits = []
    for image, kind, _, box in sorted(found, key=lambda item: -item[2]):
        rated = [(overlap(box, t[3]), j) for j, t in enumerate(truth) if t[:2] == (image, kind) and j not in taken]
        best = max((each for each in rated if each[0] >= 0.5), default=None)
        hits.append(best is not None)
        if best is not None:
            taken.add(best[1])
    points = [(sum(hits[: i + 1]) / len(truth), sum(hits[: i + 1]) / (i + 1)) for i in range(len(hits))]
    area, before = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


def items(rng: np.random.Generator, count: int, images: int = 4) -> list[Item]:
    made = []
    for _ in range(count):
        x, y, w, h = rng.uniform(0, 8, 2).tolist() + rng.uniform(2, 8, 2).tolist()
        made.append((int(rng.integers(images)), int(rng.integers(2)), float(rng.random()), (x, y, x + w, y + h)))
    return sorted(made, key=lambda item: (item[0], item[1], -item[2]))


def as_boxes(made: list[Item], images: int = 4) -> Boxes:
    return Boxes(
        n=images,
        image=np.array([item[0] for item in made], np.int64),
        kind=np.array([item[1] for item in made], np.int64),
        score=np.array([item[2] for item in made]),
        box=np.array([item[3] for item in made]).reshape(-1, 4),
    )


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_that_of_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, found = items(rng, int(rng.integers(1, 25))), items(rng, int(rng.integers(0, 60)))
    both = as_boxes(truth), as_boxes(found)
    one = ranked(*both, matched(*both))
    assert one.precision() == pytest.approx(brute(truth, found), abs=1e-12)
    spread = one.spread()
    assert np.nanmin(spread) >= 0
    assert np.nanmax(spread) <= 1
    kept = [item for item in truth if item[1] == 1]
    if kept:
        of_one = of_some(*both, matched(*both), both[0].kind == 1, both[1].kind == 1)
        assert of_one.precision() == pytest.approx(brute(kept, [item for item in found if item[1] == 1]), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_cocos_own_tools_agree_but_for_their_recalls(seed: int) -> None:
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(seed)
    truth = items(rng, 60, images=12)
    found = [(image, kind, float(rng.random()), tuple(side + rng.normal(0, 0.6) for side in box))
             for image, kind, _, box in truth] + items(rng, 20, images=12)  # fmt: skip
    both = as_boxes(truth, 12), as_boxes(sorted(found, key=lambda item: (item[0], item[1], -item[2])), 12)
    ours = []
    for least in np.linspace(0.5, 0.95, 10):
        pairs = matched(*both, least)
        ours += [of_some(*both, pairs, both[0].kind == k, both[1].kind == k).precision() or 0.0 for k in (0, 1)]
    assert coco_precision(*both) == pytest.approx(float(np.mean(ours)), abs=0.02)
    assert coco_precision(both[0], both[0]) == pytest.approx(1)
    assert coco_precision(both[0], as_boxes([], 12)) == 0


def rows_of(made: list[Item], n: int) -> dict[str, NDArray[np.float32]]:
    """Boxes as a network's rows (n, places, 6)."""
    found = np.zeros((n, 12, 6), np.float32)
    for place, (image, kind, score, box) in enumerate(made):
        found[image, place] = [*box, score, kind]
    return {"rows": found}


def test_boxes_are_taken_apart_by_class_and_size_and_those_at_the_threshold_counted() -> None:
    task = Detection(boxes=("rows",), form="rows", nms=1.0, shapes=((12, 6),), size=(200, 200))
    small, medium, large = (0, 0, 20, 20), (40, 0, 90, 50), (0, 80, 110, 190)
    teacher = [(0, 0, 0.9, small), (0, 0, 0.8, medium), (1, 1, 0.7, large), (1, 2, 0.6, small), (2, 1, 0.4, large)]
    file = [
        (0, 0, 0.9, small), (0, 0, 0.45, medium),  # one has fallen below the threshold
        (2, 1, 0.55, large), (1, 3, 0.9, medium),  # one has risen above it, one is from nowhere, two are gone
    ]  # fmt: skip
    table = task.breakdown(rows_of(teacher, 3), rows_of(file, 3), subject="file", data="here")
    assert table is not None
    found = {str(row[0]): row[1:] for row in table.rows}
    assert list(found)[3:] == ["class 1", "class 2", "class 3", "class 0"], "the worst first"
    assert found["class 0"] == (2, 100.0, 1, 1, 0, 0)
    assert found["class 1"] == (1, 0.0, 1, 0, 1, 1)
    assert found["class 2"] == (1, 0.0, 1, 0, 0, 0)
    assert found["class 3"] == (0, None, 0, 0, 1, 0)
    assert found["small, below 32 x 32"][:3] == (2, 50.0, 1)
    assert found["large"] == (1, 0.0, 1, 0, 1, 1)
    for name, kinds in (("class 0", [0]), ("class 1", [1])):
        kept = [item for item in teacher if item[1] in kinds and item[2] >= 0.5]
        assert found[name][1] == pytest.approx(100 * brute(kept, [item for item in file if item[1] in kinds]))
    by_name = {each.name: each.value for each in task.beside_teacher(
        rows_of(teacher, 3), rows_of(file, 3), subject="file", data="here")}  # fmt: skip
    assert by_name["boxes_vanished"] == pytest.approx(100 * 3 / 4)
    assert by_name["boxes_appeared"] == pytest.approx(100 * 2 / 4)
    nothing = rows_of([], 3)
    assert task.breakdown(nothing, nothing, subject="file", data="here") is None


def test_no_box_is_worth_nothing_and_no_truth_has_no_precision() -> None:
    truth, nothing = as_boxes([(0, 0, 1.0, (0, 0, 4, 4))]), as_boxes([])
    assert ranked(truth, nothing, matched(truth, nothing)).precision() == 0
    assert ranked(nothing, truth, matched(nothing, truth)).precision() is None
    assert ranked(truth, truth, matched(truth, truth)).precision() == 1


def test_the_lower_of_two_boxes_goes() -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 5], [10, 10, 12, 12.0]])
    scores = np.array([0.5, 0.9, 0.1])
    assert suppressed(boxes, scores, 0.5).tolist() == [1, 2]
    assert suppressed(boxes, scores, 0.9).tolist() == [1, 0, 2]


def outputs(**given: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    return {name: np.asarray(values, np.float32) for name, values in given.items()}


def one_box(task: Detection, given: dict[str, NDArray[np.float32]]) -> list[float]:
    found = decoded(task, given, 0.5)
    assert (len(found), found.image.tolist()) == (1, [0])
    return [float(value) for value in found.box[0]]


def logit(value: float) -> float:
    return float(np.log(value / (1 - value)))


def test_equal_scores_everywhere_are_as_many_boxes_as_any_network_gives() -> None:
    task = Detection(boxes=("b",), scores=("s",), size=(32, 48), nms=1.0)
    scores = np.full((2, 5000, 1), 0.6)
    scores[0, 4000:4003] = 0.9
    found = decoded(task, outputs(b=np.zeros((2, 5000, 4)), s=scores), 0.5)
    assert found.counts.tolist() == [MOST, MOST]
    assert (found.score > 0.8).sum() == 3


def test_every_form_gives_the_same_box() -> None:
    """A box from (4, 8) to (20, 24) in an image of 48 x 32, seen from the position in the middle of cell (1, 2)."""
    wanted = [4.0, 8.0, 20.0, 24.0]
    place, centre = 2 * 6 + 1, (12.0, 20.0)  # 6 cells of 8 pixels across
    scores = np.zeros((1, 24, 2))
    scores[0, place, 1] = 0.75
    size = {"size": (32, 48), "boxes": ("b",), "scores": ("s",)}

    def at(values: list[float]) -> NDArray[Any]:
        boxes = np.zeros((1, 24, len(values)))
        boxes[0, place] = values
        return boxes

    corners = Detection(**size)  # type: ignore[arg-type]
    assert one_box(corners, outputs(b=at(wanted), s=scores)) == wanted
    middle = Detection(**size, form="centre")  # type: ignore[arg-type]
    assert one_box(middle, outputs(b=at([12, 16, 16, 16]), s=scores)) == wanted
    sides = [centre[0] - 4, centre[1] - 8, 20 - centre[0], 24 - centre[1]]
    near = Detection(**size, form="distances", strides=(8,))  # type: ignore[arg-type]
    given = at([side / 8 for side in sides])
    assert one_box(near, outputs(b=given, s=scores)) == wanted
    maps = {"b": given.reshape(1, 4, 6, 4).transpose(0, 3, 1, 2), "s": scores.reshape(1, 4, 6, 2).transpose(0, 3, 1, 2)}
    assert one_box(near, outputs(**maps)) == wanted
    spread = Detection(**size, form="distributions", strides=(8,))  # type: ignore[arg-type]
    bins = np.full((4, 4), -50.0)
    for side, value in enumerate(sides):  # between two bins, in proportion
        low, part = divmod(value / 8, 1)
        bins[side, int(low)] = np.log(1 - part)
        if part:
            bins[side, int(low) + 1] = np.log(part)
    assert one_box(spread, outputs(b=at(bins.ravel().tolist()), s=scores)) == pytest.approx(wanted, abs=1e-4)
    anchored = Detection(**size, form="anchors", strides=(8,), anchors=(((8.0, 32.0),),))  # type: ignore[arg-type]
    offsets = [0.0, (16 - 20) / 32 / 0.1, np.log(16 / 8) / 0.2, np.log(16 / 32) / 0.2]
    assert one_box(anchored, outputs(b=at(offsets), s=scores)) == pytest.approx(wanted, abs=1e-4)
    rows = Detection(size=(32, 48), boxes=("b",), form="rows")
    assert one_box(rows, outputs(b=np.array([[[*wanted, 0.75, 1], [*wanted, 0.1, 0]]]))) == wanted
    columns = Detection(size=(32, 48), boxes=("b",), form="columns")
    assert one_box(columns, outputs(b=np.array([[[12], [16], [16], [16], [0], [0.75]]]))) == wanted
    with_object = Detection(size=(32, 48), boxes=("b",), form="objectness_rows")
    row = np.array([[[12, 16, 16, 16, 0.9, 0, 0.7], [1, 1, 1, 1, 0.1, 0, 0.9]]])
    found = decoded(with_object, outputs(b=row), 0.5)
    assert found.box[0].tolist() == wanted
    assert found.score[0] == pytest.approx(0.63)


def test_scores_are_read_as_what_they_are() -> None:
    boxes = np.array([[[0, 0, 4, 4], [10, 10, 14, 14.0]]])
    size: dict[str, Any] = {"size": (32, 48), "boxes": ("b",), "scores": ("s",)}
    logits = np.array([[[logit(0.9), logit(0.2)], [logit(0.1), logit(0.7)]]])
    found = decoded(Detection(**size, scores_are="logits"), outputs(b=boxes, s=logits), 0.5)
    assert found.kind.tolist() == [0, 1]
    assert found.score.tolist() == pytest.approx([0.9, 0.7])
    softmax = np.log(np.array([[[0.1, 0.2, 0.7], [0.9, 0.05, 0.05]]]))
    found = decoded(Detection(**size, scores_are="softmax", background=0), outputs(b=boxes, s=softmax), 0.5)
    assert (found.kind.tolist(), found.score.tolist()) == ([1], pytest.approx([0.7]))


def made_outputs(n: int = 6, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (n, 12, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(6, 12, (n, 12, 2))], 2)
    return outputs(boxes=boxes, scores=rng.random((n, 12, 2)) ** 2)


def detector() -> Detection:
    found = Detection().fitted(made_outputs(), IMAGE)
    assert isinstance(found, Detection)
    return found


def test_a_network_that_gives_corners_and_probabilities_is_read_without_help() -> None:
    task = detector()
    assert (task.boxes, task.scores, task.form, task.unit) == (("boxes",), ("scores",), "corners", "pixels")
    assert (task.size, task.count, task.names) == ((32, 48), 2, ("boxes", "scores"))
    task.check(made_outputs(), IMAGE)
    assert task_of(task.to_dict()) == task
    softmaxed = made_outputs()
    softmaxed["scores"][..., 0] = 1 - softmaxed["scores"][..., 1]
    faces = Detection().fitted({**softmaxed, "boxes": softmaxed["boxes"] / 48}, IMAGE)
    assert isinstance(faces, Detection)
    assert (faces.unit, faces.background, faces.count) == ("image", 0, 1)


def test_what_the_outputs_do_not_tell_is_asked() -> None:
    given = made_outputs()
    with raises_naming(ArtefactError, "scores", "scores_are", "softmax"):
        Detection().fitted({**given, "scores": given["scores"] - 3}, IMAGE)
    with raises_naming(ArtefactError, "boxes", "form", "anchors"):
        Detection().fitted({**given, "boxes": given["boxes"][..., ::-1]}, IMAGE)
    with raises_naming(ArtefactError, "gone", "boxes", "scores"):
        Detection(boxes=("gone",), scores=("scores",)).fitted(given, IMAGE)
    with raises_naming(ArtefactError, "floor", "0.5"):
        task_of({"name": "detection", "floor": 0.9})
    with raises_naming(ArtefactError, "strides"):
        task_of({"name": "detection", "form": "distances", "boxes": ["b"], "scores": ["s"]})


def test_boxes_that_are_asked_for_again_are_those_of_the_numbers_that_are_there_now() -> None:
    task, given = detector(), made_outputs()
    first = decoded(task, given, 0.5)
    assert decoded(task, given, 0.5) is first
    assert decoded(task, given, 0.2) is not first
    given["scores"] *= np.float32(0.5)
    assert len(decoded(task, given, 0.5)) < len(first)


def test_a_file_like_the_teacher_keeps_all_and_one_that_swaps_coordinates_nothing() -> None:
    task, given = detector(), made_outputs()
    where: dict[str, Any] = {"subject": "file", "data": "x"}
    same = {metric.name: metric.value for metric in task.metrics(given, given, None, **where)}
    assert (same["ap50"], same["boxes_vanished"], same["boxes_appeared"], same["box_iou"]) == (
        100,
        0,
        0,
        pytest.approx(100),
    )
    assert task.same_answer(given, given).all()
    swapped = {**given, "boxes": given["boxes"][..., [0, 3, 2, 1]]}
    worse = {metric.name: metric.value for metric in task.metrics(given, swapped, None, **where)}
    assert worse["ap50"] == 0
    permuted = {**given, "scores": given["scores"][..., ::-1]}
    worse = {metric.name: metric.value for metric in task.metrics(given, permuted, None, **where)}
    assert (worse["ap50"] or 0) < 20
    assert not task.same_answer(given, swapped).all()


def test_a_margin_is_how_far_a_score_is_from_the_threshold() -> None:
    task = detector()
    boxes = np.tile([[0, 0, 8, 8], [20, 20, 30, 30.0]], (3, 1, 1))
    teacher = outputs(boxes=boxes, scores=np.array([[[0.9, 0], [0, 0]], [[0.6, 0], [0.4, 0]], [[0, 0], [0, 0.1]]]))
    np.testing.assert_allclose(task.margins(teacher, teacher), [0.2, 0.1, 0.2], atol=1e-6)
    lost = {**teacher, "scores": teacher["scores"] - np.array([0.45, 0, 0], np.float32)[:, None, None]}
    new = {**teacher, "scores": teacher["scores"] + np.array([0, 0.2, 0], np.float32)[:, None, None]}
    np.testing.assert_allclose(task.margins(teacher, lost), [-0.05, 0.1, 0.2], atol=1e-6)
    np.testing.assert_allclose(task.margins(teacher, new)[1:], [-0.1, 0.2], atol=1e-6)
    assert task.same_answer(teacher, lost).tolist() == [False, True, True]
    groups = task.groups(teacher, IMAGE)
    assert (groups.of.tolist(), groups.nothing, groups.count) == ([1, 1, 0], 0, 3)


def test_labelled_boxes_are_of_the_networks_classes() -> None:
    task, given = detector(), made_outputs(2)
    labels = np.empty(2, object)
    labels[0], labels[1] = np.array([[1, 40, 24, 47, 31.0]]), np.zeros((0, 5))
    where: dict[str, Any] = {"subject": "file", "data": "x"}
    found = {metric.name for metric in task.metrics(given, given, labels, **where)}
    assert {"true_ap50", "true_ap"} <= found
    assert "label_drop" not in found, "a teacher that is never right loses nothing"
    own = decoded(task, given, 0.5)
    right = np.empty(2, object)
    for image in range(2):
        there = own.of_image(image)
        right[image] = np.concatenate([own.kind[there][:, None], own.box[there]], 1)
    lost = {metric.name: metric.value for metric in task.metrics(given, given, right, **where)}
    assert lost["label_drop"] == 0
    labels[0] = np.array([[7, 0, 0, 8, 8.0]])
    with raises_naming(ArtefactError, "7", "has 2"):
        task.metrics(given, given, labels, **where)
    with raises_naming(ArtefactError, "detection", "(boxes, 5)"):
        task.metrics(given, given, np.array([1, 2]), **where)
