"""Reading stored sets without torch: what is there comes back, and what is not whole is refused."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static
from safetensors.numpy import save_file

from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import sha256_of_file
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.images.stored import CalibrationReader, StoredBank, image_digest
from dfqkit_export.tasks import DEFAULT_TASK
from dfqkit_export.tasks.answering import grouped

ROOT = Path(__file__).parents[2]
SPEC = ImageSpec(shape=(3, 6, 5), mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3), classes=4)
SIZES = (4, 4, 2)

Arrays = tuple[NDArray[np.uint8], NDArray[np.float32]]


def arrays(n: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, *SPEC.shape), dtype=np.uint8)
    return images, rng.normal(size=(n, SPEC.classes)).astype(np.float32)


def write_shard(path: Path, images: NDArray[Any], logits: NDArray[Any], **header: Any) -> None:
    head = {"schema": 1, "image": SPEC.to_dict(), "teacher": "a" * 64, "source": "test"} | header
    save_file({"images": images, "logits": logits}, path, {"imagebank": json.dumps(head)})


def listed(path: Path, **facts: Any) -> dict[str, Any]:
    shards = [
        {"name": f"shard-{i:05d}.safetensors", "n": n, "sha256": sha256_of_file(path / f"shard-{i:05d}.safetensors")}
        for i, n in enumerate(SIZES)
    ]
    document = {"schema": 1, "n": sum(SIZES), "wanted": sum(SIZES), "image": SPEC.to_dict(), "source": "test"}
    return document | {"teacher": {"name": "toy", "sha256": "a" * 64}, "cost": 7, "shards": shards} | facts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images in three shards."""
    path = tmp_path / "set"
    path.mkdir()
    images, logits = arrays(sum(SIZES))
    start = 0
    for index, n in enumerate(SIZES):
        part = slice(start, start + n)
        write_shard(path / f"shard-{index:05d}.safetensors", images[part], logits[part])
        start += n
    (path / "set.json").write_text(json.dumps(listed(path)))
    return path


def rewrite(folder: Path, **facts: Any) -> None:
    (folder / "set.json").write_text(json.dumps(listed(folder, **facts)))


class TestReading:
    def test_a_folder_says_what_it_is(self, folder: Path) -> None:
        stored = StoredBank.open(folder)
        assert (len(stored), stored.spec, stored.teacher, stored.source) == (10, SPEC, "a" * 64, "test")
        assert [shard.n for shard in stored.shards] == list(SIZES)
        assert stored.complete
        assert stored.facts["cost"] == 7

    @pytest.mark.parametrize("size", [1, 3, 4, 10, 99])
    def test_batches_are_normalised_and_cross_shards(self, folder: Path, size: int) -> None:
        images, _ = arrays(10)
        mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (SPEC.mean, SPEC.std))
        found = list(StoredBank.open(folder).batches(size))
        assert [len(part) for part in found] == [min(size, 10 - start) for start in range(0, 10, size)]
        assert found[0].dtype == np.float32
        assert np.array_equal(np.concatenate(found), (images.astype(np.float32) / np.float32(255) - mean) / std)

    def test_a_batch_of_no_image_is_refused_at_once(self, folder: Path) -> None:
        with pytest.raises(ArtefactError, match=r"at least 1, found 0"):
            StoredBank.open(folder).batches(0)

    def test_images_are_taken_in_any_order(self, folder: Path) -> None:
        images, logits = arrays(10)
        chosen = [9, 0, 4, 4, 7, 3]
        found = StoredBank.open(folder).take(chosen)
        assert np.array_equal(found[0], images[chosen])
        assert np.array_equal(found[1]["logits"], logits[chosen])

    @pytest.mark.parametrize("index", [-1, 10])
    def test_an_image_that_is_not_there_is_an_index_error(self, folder: Path, index: int) -> None:
        with pytest.raises(IndexError, match=r"allowed are 0 to 9"):
            StoredBank.open(folder).take([index])

    def test_answers_are_the_teachers(self, folder: Path) -> None:
        _, logits = arrays(10)
        stored = StoredBank.open(folder)
        assert np.array_equal(stored.answers["logits"], logits)
        odds = np.exp(logits.astype(np.float64))
        found = grouped(stored)
        assert found.of.tolist() == logits.argmax(1).tolist()
        assert found.confidence is not None
        np.testing.assert_allclose(found.confidence, (odds / odds.sum(1, keepdims=True)).max(1), rtol=1e-6)

    def test_confidence_does_not_overflow(self) -> None:
        found = DEFAULT_TASK.groups({"logits": np.array([[1e4, 0.0], [-1e4, 0.0]], np.float32)}, SPEC)
        assert found.of.tolist() == [0, 1]
        assert found.confidence is not None
        assert found.confidence.tolist() == [1.0, 1.0]

    def test_images_are_told_apart_by_their_pixels(self) -> None:
        image = arrays(1)[0][0]
        assert image_digest(image) == image_digest(image[:, ::-1][:, ::-1])
        other = image.copy()
        other[0, 0, 0] ^= 1
        assert image_digest(image) != image_digest(other)

    def test_a_lone_file_is_a_set_of_one(self, folder: Path) -> None:
        stored = StoredBank.open(folder / "shard-00001.safetensors")
        assert (len(stored), stored.spec, stored.source, stored.facts) == (4, SPEC, "test", {})
        assert np.array_equal(next(stored.each_shard())[0], arrays(10)[0][4:8])
        stored.verify()

    def test_it_can_be_copied_while_its_files_are_open(self, folder: Path) -> None:
        stored = StoredBank.open(folder)
        stored.take([0])
        assert np.array_equal(copy.deepcopy(stored).take([5])[0], stored.take([5])[0])

    def test_it_needs_no_torch(self, folder: Path) -> None:
        program = (
            f"from dfqkit_export.images.stored import StoredBank\ns = StoredBank.open({str(folder)!r})\n"
            "next(s.batches(3)); s.answers; s.verify()\nimport sys; print('torch' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT / "export")},
        )  # fmt: skip
        assert (done.stdout.strip(), done.stderr) == ("False", "")

    def test_the_digest_is_of_the_contents(self, folder: Path, tmp_path: Path) -> None:
        before = StoredBank.open(folder).digest
        rewrite(folder, cost=8)
        folder.rename(tmp_path / "elsewhere")
        assert StoredBank.open(tmp_path / "elsewhere").digest == before
        write_shard(tmp_path / "elsewhere" / "shard-00002.safetensors", *arrays(2, seed=9))
        rewrite(tmp_path / "elsewhere")
        assert StoredBank.open(tmp_path / "elsewhere").digest != before


class TestRefusals:
    def test_an_unfinished_set_is_valid_and_says_so(self, folder: Path) -> None:
        rewrite(folder, wanted=40)
        stored = StoredBank.open(folder)
        assert (len(stored), stored.wanted, stored.complete) == (10, 40, False)

    def test_a_missing_shard(self, folder: Path) -> None:
        (folder / "shard-00001.safetensors").unlink()
        with pytest.raises(ArtefactError, match=r"cut short: shard-00001.safetensors is missing"):
            StoredBank.open(folder)

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_a_truncated_shard(self, folder: Path, share: float) -> None:
        file = folder / "shard-00002.safetensors"
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        with pytest.raises(ArtefactError, match=r"Cannot read the image bank .*shard-00002"):
            StoredBank.open(folder)

    def test_a_changed_pixel_is_found_by_verify(self, folder: Path) -> None:
        StoredBank.open(folder).verify()
        file = folder / "shard-00001.safetensors"
        whole = bytearray(file.read_bytes())
        whole[-1] ^= 1
        file.write_bytes(whole)
        with pytest.raises(ArtefactError, match=r"shard-00001.safetensors' was changed since"):
            StoredBank.open(folder).verify()

    @pytest.mark.parametrize("header", [{"teacher": "b" * 64}, {"source": "other"}])
    def test_a_shard_of_another_set(self, folder: Path, header: dict[str, Any]) -> None:
        write_shard(folder / "shard-00001.safetensors", *arrays(4), **header)
        rewrite(folder)
        with pytest.raises(ArtefactError, match=r"shard-00001.safetensors' is not the shard that set.json lists"):
            StoredBank.open(folder)

    def test_a_shard_of_another_length(self, folder: Path) -> None:
        write_shard(folder / "shard-00001.safetensors", *arrays(3))
        rewrite(folder)
        with pytest.raises(ArtefactError, match=r"it has 3 images and 4 are listed"):
            StoredBank.open(folder)

    @pytest.mark.parametrize(
        ("facts", "message"),
        [
            ({"schema": 2}, r"schema 2, needed 1.*A newer version of dfqkit made it: upgrade"),
            ({"schema": None}, r"schema None, needed 1.*Make it again"),
            ({"n": 9}, r"its shards have 10 images, it says 9"),
            ({"wanted": 5}, r"it says 10 of 5"),
            ({"teacher": "a"}, r"contradicts itself: TypeError"),
            ({"image": {"shape": [3]}}, r"contradicts itself"),
            ({"shards": [{"name": "../x.safetensors", "n": 10, "sha256": ""}]}, r"a file beside it, found '../x"),
            ({"shards": 3}, r"contradicts itself"),
        ],
    )
    def test_a_list_that_makes_no_sense(self, folder: Path, facts: dict[str, Any], message: str) -> None:
        rewrite(folder, **facts)
        with pytest.raises(ArtefactError, match=message):
            StoredBank.open(folder)

    @pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
    def test_a_list_that_is_none(self, folder: Path, text: str) -> None:
        (folder / "set.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ArtefactError, match=r"set.json"):
            StoredBank.open(folder)

    def test_a_folder_of_something_else(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ArtefactError, match=r"is not an image set: it has no set.json"):
            StoredBank.open(tmp_path)
        (tmp_path / "images").mkdir()
        write_shard(tmp_path / "images" / "calibration.safetensors", *arrays(2))
        with pytest.raises(ArtefactError, match=r"give one of its files, calibration.safetensors"):
            StoredBank.open(tmp_path)
        with pytest.raises(ArtefactError, match=r"nowhere"):
            StoredBank.open(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        "change",
        [
            lambda images, logits: (images.astype(np.float32), logits),
            lambda images, logits: (images[..., :4].copy(), logits),
            lambda images, logits: (images, logits[:1]),
            lambda images, logits: (images, logits.astype(np.float64)),
        ],
    )
    def test_tensors_that_contradict_the_header(self, tmp_path: Path, change: Callable[..., Any]) -> None:
        write_shard(tmp_path / "odd.safetensors", *change(*arrays(2)))
        with pytest.raises(ArtefactError, match=r"odd.safetensors' contradicts itself"):
            StoredBank.open(tmp_path / "odd.safetensors")


def tiny_model(path: Path) -> None:
    rng = np.random.default_rng(3)
    weights = [
        numpy_helper.from_array(rng.normal(size=(8, 3, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.normal(size=(8, SPEC.classes)).astype(np.float32), "v"),
    ]
    nodes = [
        helper.make_node("Conv", ["pixels", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", *SPEC.shape])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", SPEC.classes])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


class TestCalibration:
    def test_it_calibrates_onnx_runtimes_quantizer(self, folder: Path, tmp_path: Path) -> None:
        tiny_model(tmp_path / "float.onnx")
        stored = StoredBank.open(folder)
        reader = CalibrationReader(stored, "pixels", batch=4)
        assert isinstance(reader, CalibrationDataReader)
        quantize_static(
            str(tmp_path / "float.onnx"), str(tmp_path / "int8.onnx"), reader,
            quant_format=QuantFormat.QDQ, calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
        model = onnx.load(tmp_path / "int8.onnx")
        scale = next(numpy_helper.to_array(i) for i in model.graph.initializer if i.name == "pixels_scale")
        pixels = np.concatenate(list(stored.batches(10)))
        assert float(scale) == pytest.approx((pixels.max() - pixels.min()) / 255, rel=1e-5)
        runs = [
            onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
            for name in ("float.onnx", "int8.onnx")
        ]
        expected, found = (session.run(None, {"pixels": pixels})[0] for session in runs)
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()

    def test_every_image_once_then_none(self, folder: Path) -> None:
        stored = StoredBank.open(folder)
        reader = CalibrationReader(stored, "x", batch=4)
        found = list(reader)
        assert [len(part["x"]) for part in found] == [4, 4, 2]
        assert np.array_equal(np.concatenate([part["x"] for part in found]), next(stored.batches(10)))
        assert reader.get_next() is None
        reader.rewind()
        assert len(list(reader)) == 3
        reader.set_range(2, 5)
        assert [len(part["x"]) for part in reader] == [3]
        assert len(reader) == 10

    def test_a_batch_of_none_is_refused(self, folder: Path) -> None:
        with pytest.raises(ArtefactError, match=r"at least 1"):
            CalibrationReader(StoredBank.open(folder), "x", batch=0)
