"""Networks of several inputs, of raw pixels and of other layouts: their files have their own, all else sees images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import dfqkit
from dfqkit.cli import main as cli
from dfqkit.students.capture import float_graph
from dfqkit.students.onnx_file import float_model
from dfqkit.teacher.load import Teacher
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import ArtefactError, DfqkitError
from dfqkit_export.images.entries import drawn
from dfqkit_export.images.stored import StoredBank
from dfqkit_export.report import Report
from dfqkit_export.tasks import task_of
from tests._onnx_files import file, op, weights
from tests._task_nets import Embedder, block

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.3, 0.2)
INPUTS = {
    "left": 3,
    "right": 3,
    "gain": {"shape": [2], "value": [1.0, 2.0]},
    "noise": {"shape": [4], "range": [-1, 3]},
    "sizes": {"shape": [], "value": 2, "dtype": "int64", "per_image": False},
}
SMALL = {
    "synthesis": {"steps": 2, "batch": 16},
    "bank": {"calibration": 16, "held_out": 8, "grading": 16, "batch": 8},
    "validate": {"latency_repeats": 0},
}
SMALL_BANK = {key: value for key, value in SMALL.items() if key != "synthesis"}


class Sided(nn.Module):
    """Two images, two numbers that are held, four that are drawn, and one for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.beside, self.head = block(3, 8, 2), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, left: Tensor, right: Tensor, gain: Tensor, noise: Tensor, sizes: Tensor) -> Tensor:
        seen = (self.features(left) - self.features(right)).mean((2, 3))
        beside = torch.relu(self.beside(torch.cat([gain, noise], 1)))
        return self.head(torch.relu(seen) + beside) * sizes


def spec(**more: Any) -> dfqkit.ImageSpec:
    return dfqkit.ImageSpec(shape=(3, 16, 16), mean=MEAN, std=STD, **({"inputs": INPUTS} | more))


def test_a_specification_of_one_image_is_that_of_all_stacked() -> None:
    image = spec()
    assert image.shape == (7, 16, 16)
    assert image.mean[:6] == MEAN * 2
    assert dfqkit.ImageSpec.from_dict(image.to_dict()) == image
    pixels = np.random.default_rng(0).random((2, 7, 16, 16), np.float32)
    values = {entry.name: entry.of(image.normalize(pixels)) for entry in image.inputs}
    np.testing.assert_allclose(values["right"][:, 1], (pixels[:, 4] - 0.4) / 0.3, rtol=1e-5)
    np.testing.assert_allclose(values["noise"], 4 * pixels[:, 6, 0, :4] - 1, atol=1e-5)
    assert values["gain"].tolist() == [[1, 2]] * 2
    assert (values["sizes"].shape, values["sizes"].dtype, int(values["sizes"])) == ((), np.int64, 2)
    bgr = spec(channels="BGR")
    np.testing.assert_allclose(bgr.denormalize(bgr.normalize(pixels)), pixels, atol=1e-6)
    np.testing.assert_allclose(bgr.normalize(pixels)[:, 3], (pixels[:, 5] - 0.5) / 0.25, rtol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"a": 3, "b": 2}, "shape of all images stacked by channel, (5, H, W)"),
        ({"a": 3, "b": {"shape": [2]}}, "either a value or a range"),
        ({"a": 3, "b": {"shape": [2], "value": [1, 2, 3]}}, "do not fill"),
        ({"a": 3, "b": {"shape": [2], "range": [1, 1]}}, "the lower first"),
        ({"a": 3, "b": {"shape": [2], "range": [0, 1], "dtype": "int64"}}, "what is drawn is float32"),
        ({"a": 3, "b": {"shape": [999], "range": [0, 1]}}, "At most H x W numbers"),
        ({"b": {"shape": [2], "value": 1}}, "none of them takes an image"),
        ({"a": "three"}, "must be like|number of channels"),
    ],
)
def test_what_is_no_input_is_refused_in_words(inputs: Any, told: str) -> None:
    with pytest.raises(ArtefactError) as caught:
        spec(inputs=inputs)
    assert any(part in str(caught.value) for part in told.split("|"))


def test_a_network_of_images_and_side_inputs_is_quantized_and_its_file_has_its_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"image": spec(), "task": "generic", "method": "zeroq", "target": "onnxruntime-avx2"}
    result = dfqkit.quantize(Sided(), out=tmp_path / "run", options=SMALL, **options)
    model = onnx.load(result.model)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    assert list(types) == list(INPUTS)
    assert types["sizes"] == onnx.TensorProto.INT64
    metrics = {(metric.subject, metric.name): metric.value for metric in result.report.metrics}
    assert metrics["onnxruntime", "student_agreement"] == 100
    assert metrics["onnxruntime", "integer_ops"] == 100
    assert metrics["onnxruntime", "sqnr_db"] > 25
    stored = StoredBank.open(tmp_path / "run" / "images" / "grading.safetensors")
    images = stored.normalized(range(16))
    (entry,) = drawn(stored.spec.inputs)
    noise = entry.of(images)
    assert -1 <= noise.min() < 0 < 2 < noise.max() <= 3
    feed = {each.name: each.of(images) for each in stored.spec.inputs}
    plain = onnxruntime.InferenceSession(tmp_path / "run" / "teacher.onnx", providers=["CPUExecutionProvider"])
    (found,) = plain.run(None, feed)
    np.testing.assert_array_equal(found, OrtSession(tmp_path / "run" / "teacher.onnx").run(images))
    np.testing.assert_allclose(found, next(iter(stored.answers.values())), atol=1e-4)
    other = plain.run(None, {**feed, "gain": feed["gain"] + 1})[0]
    assert np.abs(other - found).max() > 1e-3, "a side input that is held stays an input"
    assert isinstance(result.report, Report)


class Named(nn.Module):
    """Two outputs by name, of two inputs of which one is not read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = block(3, 4)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        seen = self.first(right)
        return {"b": seen.mean((2, 3)), "a": seen.reshape(len(left), -1)}


def test_outputs_by_name_and_an_input_that_is_not_read() -> None:
    image = spec(inputs={"left": 3, "right": 3})
    teacher = Teacher.from_module(Named(), image, task=task_of({"name": "generic", "names": ("a", "b")}))
    graph = float_graph(teacher.model, image, teacher.task)
    written = float_model(graph)
    assert [value.name for value in written.graph.input] == ["left", "right"]
    assert [value.name for value in written.graph.output] == ["a", "b"]
    x = image.normalize(torch.rand(3, 6, 16, 16))
    for name, value in teacher.answers(x).items():
        torch.testing.assert_close(graph(x)[name], value, atol=1e-4, rtol=1e-4)


def test_a_network_of_another_number_of_inputs_is_refused_in_words() -> None:
    with pytest.raises(DfqkitError, match=r"image\.inputs|cannot run"):
        dfqkit.quantize(Sided(), image=spec(inputs={"left": 3, "right": 3}), task="generic")


def test_inspect_takes_several_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["inspect", "--factory", f"{__name__}:Sided", "--shape", "3,16,16", "--classes", "5", "--json"]
    assert cli([*command, "--inputs", json.dumps(INPUTS)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["capturable"]
    assert not {"part", "side"}.intersection(facts["operators"])
    assert cli(command) == 2
    assert "--inputs" in capsys.readouterr().err
    assert cli([*command, "--inputs", "{left: 0}"]) == 2
    assert "Image input 'left' needs its number of channels" in capsys.readouterr().err


def test_a_file_of_several_inputs_that_says_nothing_of_them_is_refused(tmp_path: Path) -> None:
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3, 8, 8]) for name in "xyz"]
    node = onnx.helper.make_node("Add", ["x", "y"], ["z"])
    graph = onnx.helper.make_graph([node], "two", infos[:2], infos[2:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    with pytest.raises(ArtefactError, match=r"2 input\(s\) \(x: float, y: float\)"):
        OrtSession(tmp_path / "m.onnx")


POOLED = [op("Relu", "c", "r"), op("GlobalAveragePool", "r", "y")]
FILES: dict[str, tuple[list[Any], dict[str, Any], dict[str, Any]]] = {
    # inputs of the file (type, sizes), what the specification says, nodes
    "two": (
        [op("Conv", "a w", "f"), op("Conv", "b w", "g"), op("Sub", "f g", "d"), op("Mul", "d k", "y")],
        {"a": (1, ("N", 3, 12, 10)), "b": (1, ("N", 3, "h", "w")), "k": (1, ("N", 4, 1, 1))},
        {"inputs": {"a": 3, "b": 3, "k": {"shape": [4, 1, 1], "value": 2}}},
    ),
    "last": (
        [op("Transpose", "a", "t", perm=[0, 3, 1, 2]), op("Conv", "t w", "c"), *POOLED],
        {"a": (1, ("N", 12, 10, 3))},
        {},
    ),
    "pixels": (
        [op("Cast", "a", "f", to=1), op("Div", "f s", "n"), op("Conv", "n w", "c"), *POOLED],
        {"a": (2, ("N", 3, 12, 10))},
        {"mean": (0,) * 3, "std": (1,) * 3, "pixel_range": 255},
    ),
}


@pytest.mark.parametrize("form", list(FILES))
def test_a_file_of_other_inputs_is_a_teacher_whose_student_keeps_them(form: str, tmp_path: Path) -> None:
    nodes, inputs, more = FILES[form]
    path = file(tmp_path / "net.onnx", nodes, {"w": weights(4, 3, 3, 3), "s": np.float32(64.0)}, shape=("N", 3, 12, 10))
    model = onnx.load(path)
    del model.graph.input[:]
    for name, (kind, sizes) in inputs.items():
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, sizes))
    onnx.save(model, path)
    image = dfqkit.ImageSpec(**({"shape": (3, 12, 10), "mean": MEAN, "std": STD} | more))
    options = {"task": "generic", "method": "procedural", "target": "onnxruntime-avx2", "options": SMALL_BANK}
    result = dfqkit.quantize(f"onnx:{path}", image=image, out=tmp_path / "run", **options)
    made = onnx.load(result.model)
    found = {value.name: value.type.tensor_type for value in made.graph.input}
    assert {name: tensor.elem_type for name, tensor in found.items()} == {
        name: kind for name, (kind, _) in inputs.items()
    }
    sizes = [size.dim_value for size in next(iter(found.values())).shape.dim]
    assert sizes == [0, *next(iter(inputs.values()))[1][1:]]
    metrics = {(metric.subject, metric.name): metric.value for metric in result.report.metrics}
    assert metrics["onnxruntime", "student_agreement"] == metrics["onnxruntime", "integer_ops"] == 100
    assert metrics["onnxruntime", "sqnr_db"] > 25


def test_a_file_of_several_inputs_needs_them_named(tmp_path: Path) -> None:
    path = file(tmp_path / "net.onnx", [op("Add", "x z", "y")], {}, shape=("N", 3, 16, 16))
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("z", 1, ["N", 3, 16, 16]))
    onnx.save(model, path)
    with pytest.raises(DfqkitError, match=r"2 inputs: x \(N, 3, 16, 16\), z .* \{left: 3, right: 3\}"):
        dfqkit.quantize(f"onnx:{path}", image=spec(inputs={}), task="generic")
    with pytest.raises(DfqkitError, match=r"image\.inputs names left, right"):
        dfqkit.quantize(f"onnx:{path}", image=spec(inputs={"left": 3, "right": 3}), task="generic")
    sides = {"x": 3, "z": {"shape": [2], "value": 1}}
    with pytest.raises(DfqkitError, match=r"float \(N, 3, 16, 16\) in 'z', and image.inputs says float32 \[2\]"):
        dfqkit.quantize(f"onnx:{path}", image=spec(inputs=sides), task="generic")


@pytest.mark.parametrize("more", [{"dtype": "uint8", "layout": "NHWC"}, {"dtype": "uint8", "channels": "BGR"}])
def test_a_file_takes_raw_pixels_and_gives_what_the_student_does(more: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = dfqkit.ImageSpec(shape=(3, 16, 12), mean=MEAN, std=STD, **more)
    options = {"method": "zeroq", "target": "onnxruntime-avx2", "options": SMALL}
    result = dfqkit.quantize(Embedder(), image=image, out=tmp_path / "run", **options)
    metrics = {(metric.subject, metric.name): metric.value for metric in result.report.metrics}
    assert metrics["onnxruntime", "student_agreement"] == metrics["onnxruntime", "integer_ops"] == 100
    stored = StoredBank.open(tmp_path / "run" / "images" / "grading.safetensors")
    codes = stored.take(range(4))[0]
    pixels = codes if more.get("channels") is None else codes[:, ::-1]
    pixels = pixels if more.get("layout") is None else pixels.transpose(0, 2, 3, 1)
    session = onnxruntime.InferenceSession(tmp_path / "run" / "teacher.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": np.ascontiguousarray(pixels)})
    np.testing.assert_allclose(found, stored.answers["embedding"][:4], atol=1e-5)
    assert cli(["bundle", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]) == 0
    program = tmp_path / "bundle" / "samples" / "python" / "run.py"
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
