"""Answers drawn side by side, and the sample's own decoding, which says the same as the tasks'."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfqkit_export.bundle.samples import _words
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.report.pictures import side_by_side
from dfqkit_export.tasks import Marks, Task, task_of
from dfqkit_export.tasks.decoding import decoded
from dfqkit_export.tasks.detection import Detection
from dfqkit_export.tasks.keypoints import Keypoints
from dfqkit_export.tasks.segmentation import Segmentation

IMAGE = ImageSpec(shape=(3, 32, 48), mean=(0.5,) * 3, std=(0.5,) * 3)
RNG = np.random.default_rng(0)


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_both_sides_stand_beside_each_other_in_a_row_an_image() -> None:
    images = np.full((2, 3, 32, 48), 200, np.uint8)
    box = Marks(boxes=(((0.25, 0.25, 0.75, 0.75), 1, "1 0.90"),))
    found = opened(side_by_side(images, [box, Marks()], [Marks(), Marks()]))
    assert found.shape == (2 * 96 + 6, 2 * 144 + 6, 3)
    assert not (found[24, 36:100] == 200).all(), "the box is drawn on the left"
    assert (found[20:70, 160:280] == 200).all(), "and not on the right"


@pytest.mark.parametrize(
    "marks",
    [
        Marks(mask=np.eye(8, dtype=np.int64)),
        Marks(field=np.arange(64.0).reshape(8, 8)),
        Marks(points=((0.5, 0.5),)),
        Marks(text="Ωhello"),
        Marks(boxes=(((0.5, 0.5, 0.2, float("nan")), 0, "broken"),)),
    ],
)
def test_every_kind_of_mark_is_drawn(marks: Marks) -> None:
    images = np.zeros((1, 1, 8, 8), np.uint8)
    found = opened(side_by_side(images, [marks], [marks]))
    half = (found.shape[1] - 6) // 2
    np.testing.assert_array_equal(found[:, :half], found[:, -half:])
    assert bool(found[20:, :half].any()) == (not marks.boxes and marks.text is None)


def sample() -> Any:
    """The module that bundles have."""
    with resources.as_file(resources.files("dfqkit_export.tasks").joinpath("samples/decode.py.txt")) as file:
        spec = importlib.util.spec_from_loader("decode", None)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), module.__dict__)
    return module


def entry(task: Task) -> Any:
    import json

    return json.loads(json.dumps(task.to_dict()))


def detectors() -> dict[str, tuple[Detection, dict[str, np.ndarray]]]:
    corner = RNG.uniform(0, 20, (3, 24, 2))
    boxes = np.concatenate([corner, corner + RNG.uniform(6, 12, (3, 24, 2))], 2)
    scores = RNG.random((3, 24, 3))
    base: dict[str, Any] = {"size": (32, 48), "boxes": ("b",), "scores": ("s",), "nms": 0.4}
    normal = RNG.normal(size=(3, 24, 4))
    maps = {"b": RNG.normal(size=(3, 32, 4, 6)), "s": RNG.normal(size=(3, 3, 4, 6))}
    anchors = (((8.0, 8.0), (16.0, 20.0)),)
    return {
        "corners": (Detection(**base), {"b": boxes, "s": scores}),
        "background": (Detection(**base, background=1, unit="image"), {"b": boxes / 40, "s": scores}),
        "softmax": (Detection(**base, scores_are="softmax", background=0), {"b": boxes, "s": 3 * scores}),
        "distances": (Detection(**base, form="distances", strides=(8,)), {"b": np.abs(normal), "s": scores}),
        "distributions": (
            Detection(**base, form="distributions", strides=(8,), scores_are="logits", shift=0.5), maps,
        ),
        "anchors": (
            Detection(**base, form="anchors", strides=(8,), anchors=anchors),
            {"b": RNG.normal(size=(3, 48, 4)), "s": RNG.random((3, 48, 2))},
        ),
        "rows": (
            Detection(size=(32, 48), boxes=("b",), form="rows", nms=1.0),
            {"b": np.concatenate([boxes, scores[..., :1], RNG.integers(0, 3, (3, 24, 1))], 2)},
        ),
        "columns": (
            Detection(size=(32, 48), boxes=("b",), form="columns"),
            {"b": np.concatenate([boxes, scores], 2).transpose(0, 2, 1)},
        ),
        "objectness": (
            Detection(size=(32, 48), boxes=("b",), form="objectness_rows"), {"b": np.concatenate([boxes, scores], 2)},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("form", list(detectors()))
def test_the_samples_boxes_are_the_tasks(form: str) -> None:
    task, outputs = detectors()[form]
    outputs = {name: values.astype(np.float32) for name, values in outputs.items()}
    wanted = decoded(task, outputs, task.threshold)
    assert len(wanted) > 0
    module = sample()
    for image in range(3):
        own = module.detect(entry(task), {name: values[image] for name, values in outputs.items()})
        there = wanted.of_image(image)
        assert [kind for kind, _, _ in own] == wanted.kind[there].tolist()
        np.testing.assert_allclose([score for _, score, _ in own], wanted.score[there], atol=1e-6)
        np.testing.assert_allclose(np.array([box for _, _, box in own]).reshape(-1, 4), wanted.box[there], atol=1e-3)
    assert len(task.marks(outputs)) == len(module.answers(entry(task), outputs)) == 3


def test_a_class_and_how_likely_it_is_are_written_over_its_image() -> None:
    name = task_of({"name": "classification"}).outputs[0].name
    (found,) = task_of({"name": "classification"}).marks({name: np.array([[0.0, 2.0, 0.0]], np.float32)})
    assert found.text == "1 (79 %)"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample in C++, compiled with a header that stands in for ONNX Runtime's."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("cpp")
    text = resources.files("dfqkit_export.tasks").joinpath("samples/answers.cpp.txt").read_text(encoding="utf-8")
    (folder / "main.cpp").write_text(text, encoding="utf-8")
    stub = Path(__file__).parent / "_vendor" / "ort_stub"
    command = [
        "g++",
        "-std=c++17",
        "-Wall",
        "-Werror",
        f"-I{stub}",
        str(folder / "main.cpp"),
        "-o",
        str(folder / "answers"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "answers"


def told_in_cpp(program: Path, folder: Path, task: Task, outputs: dict[str, np.ndarray]) -> list[str]:
    n = len(next(iter(outputs.values())))
    np.zeros((n, 3), "<f4").tofile(folder / "inputs.bin")
    (folder / "inputs.txt").write_text(f"inputs.bin float32 {n}x3 x\n", encoding="utf-8")
    lines = [f"x - {n} 3"]
    for name, values in outputs.items():
        file = folder / ("expected.bin" if len(outputs) == 1 else f"expected_{name}.bin")
        values.astype("<f4").tofile(file)
        lines.append(" ".join([name, str(file), *map(str, values.shape)]))
    (folder / "model.onnx").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "task.txt").write_text("".join(_words(task.to_dict())), encoding="utf-8")
    command = [str(program), str(folder / "model.onnx"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("image ")]


@pytest.mark.slow  # the compiler takes seconds
@pytest.mark.parametrize("form", list(detectors()))
def test_the_sample_in_cpp_says_the_same_boxes(form: str, program: Path, tmp_path: Path) -> None:
    task, outputs = detectors()[form]
    wanted = sample().answers(entry(task), {name: values.astype(np.float32) for name, values in outputs.items()})
    found = told_in_cpp(program, tmp_path, task, outputs)
    numbers = [[re.findall(r"-?\d[\d.e+-]*", line) for line in lines] for lines in (found, wanted)]
    for ours, theirs in zip(*numbers, strict=True):
        np.testing.assert_allclose([*map(float, ours)], [*map(float, theirs)], rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_the_sample_in_cpp_says_the_same_masks(program: Path, tmp_path: Path) -> None:
    for place, task in enumerate((Segmentation(shape=(3, 4, 6)), Segmentation(shape=(4, 6, 3), axis=-1),
                                  Segmentation(shape=(1, 4, 6), threshold=0.3))):  # fmt: skip
        outputs = {"mask": RNG.normal(size=(2, *map(int, task.shape))).astype(np.float32)}
        folder = tmp_path / str(place)
        folder.mkdir()
        found = told_in_cpp(program, folder, task, outputs)
        wanted = sample().answers(entry(task), outputs)
        assert [re.findall(r"[\d.]+", line) for line in found] == [re.findall(r"[\d.]+", line) for line in wanted]


def test_the_sample_says_an_answer_of_every_task() -> None:
    module, maps = sample(), RNG.normal(size=(2, 3, 8, 12)).astype(np.float32)
    segmenter = Segmentation(shape=(3, 8, 12))
    np.testing.assert_array_equal(module.mask(entry(segmenter), {"mask": maps}), segmenter.masks({"mask": maps}))
    points = Keypoints().fitted({"": maps}, IMAGE)
    said = {
        "segmentation": (segmenter, {"mask": maps}),
        "keypoints": (points, {"points": maps}),
        "embedding": (task_of({"name": "embedding", "shape": [5]}), {"embedding": RNG.normal(size=(2, 5))}),
        "dense": (task_of({"name": "dense"}), {"map": maps}),
        "generic": (task_of({"name": "generic", "names": ["a"]}), {"a": maps}),
        "sequence": (
            task_of({"name": "sequence", "alphabet": "ab"}),
            {"text": np.eye(3)[[[0, 1, 1, 2], [0, 0, 0, 0]]]},
        ),
        "classification": (task_of({"name": "classification", "form": "labels"}), {"logits": RNG.normal(size=(2, 3))}),
    }
    for task, outputs in said.values():
        lines = module.answers(entry(task), outputs)
        assert len(lines) == 2
        assert all(lines)
    assert module.answers(entry(said["sequence"][0]), said["sequence"][1]) == ["text ab", "text "]
