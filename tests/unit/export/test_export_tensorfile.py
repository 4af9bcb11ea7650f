"""The safetensors format with numpy alone, against the safetensors package and against files made to hurt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfqkit_export import tensorfile
from dfqkit_export.errors import ArtefactError
from dfqkit_export.tensorfile import TensorFile, read_tensors, tensor_bytes, write_tensors

safetensors_numpy = pytest.importorskip("safetensors.numpy")

TYPES = ["bool", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8"]


def tensors(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found = {f"t.{name}": (rng.normal(size=(3, 2, 5)) * 50).astype(name) for name in TYPES}
    return {
        **found,
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.uint8),
        "ünïcode": np.arange(7),
    }


def crafted(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def one(dtype: str = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


class TestAgainstThePackage:
    def test_it_reads_what_the_package_writes(self, tmp_path: Path) -> None:
        expected, path = tensors(), tmp_path / "a.safetensors"
        safetensors_numpy.save_file(expected, path, {"about": "x"})
        found, metadata = read_tensors(path)
        assert metadata == {"about": "x"}
        assert set(found) == set(expected)
        for name, array in expected.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert np.array_equal(found[name], array)

    def test_the_package_reads_what_it_writes(self, tmp_path: Path) -> None:
        expected, path = tensors(), tmp_path / "a.safetensors"
        write_tensors(path, expected, {"about": "x", "z": "ü"})
        with pytest.importorskip("safetensors").safe_open(path, framework="numpy") as file:
            assert file.metadata() == {"about": "x", "z": "ü"}
        found = safetensors_numpy.load_file(path)
        assert all(np.array_equal(found[name], array) for name, array in expected.items())

    @pytest.mark.parametrize("metadata", [None, {"about": "x"}])
    def test_the_bytes_are_the_same(self, metadata: dict[str, str] | None) -> None:
        assert tensor_bytes(tensors(), metadata) == safetensors_numpy.save(tensors(), metadata)

    def test_order_does_not_matter(self) -> None:
        metadata = {"a": "1", "b": "2"}
        again = tensor_bytes(dict(reversed(tensors().items())), dict(reversed(metadata.items())))
        assert tensor_bytes(tensors(), metadata) == again

    def test_arrays_of_any_layout_and_byte_order(self, tmp_path: Path) -> None:
        array = np.arange(12, dtype=">i4").reshape(3, 4).T
        write_tensors(tmp_path / "a.safetensors", {"x": array})
        found, _ = read_tensors(tmp_path / "a.safetensors")
        assert found["x"].dtype == np.dtype("i4")
        assert np.array_equal(found["x"], array)


class TestViews:
    def test_a_view_is_of_the_file_and_cannot_be_written(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "a.safetensors", tensors())
        view = TensorFile(tmp_path / "a.safetensors").view("t.f4")
        assert isinstance(view, np.memmap)
        assert np.array_equal(view[1:], tensors()["t.f4"][1:])
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 0

    def test_a_file_of_nothing(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "a.safetensors", {})
        assert read_tensors(tmp_path / "a.safetensors") == ({}, {})

    def test_a_name_that_is_not_there(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "a.safetensors", {"x": np.zeros(1)})
        with pytest.raises(ArtefactError, match=r"has no tensor 'y'; it has x"):
            TensorFile(tmp_path / "a.safetensors").view("y")

    def test_it_needs_numpy_alone(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "a.safetensors", tensors())
        program = (
            "import sys; sys.modules['safetensors'] = None; sys.modules['torch'] = None\n"
            "from dfqkit_export.tensorfile import read_tensors; import dfqkit_export.images.stored\n"
            f"assert len(read_tensors({str(tmp_path / 'a.safetensors')!r})[0]) == {len(tensors())}"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class TestHostileFiles:
    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ({"a": one(), "b": one(offsets=(2, 6))}, r"'b' begins at byte \d+, the one before it ends at"),
            ({"a": one(offsets=(1, 5))}, r"'a' begins at byte"),
            ({"a": one(), "b": one(offsets=(5, 9))}, r"'b' begins at byte"),
            ({"a": one(), "b": one()}, r"begins at byte"),
            ({"a": one(offsets=(4, 0))}, r"does not have -4 bytes"),
            ({"a": one(shape=(-4,))}, r"cannot be"),
            ({"a": one(shape=(-2, -2))}, r"cannot be"),
            ({"a": one(shape=(2.0, 2))}, r"cannot be"),
            ({"a": one(shape=(True, 4))}, r"cannot be"),
            ({"a": one(shape=[1] * 33)}, r"cannot be"),
            ({"a": one(shape=(2**63,))}, r"cannot be"),
            ({"a": one(shape=(2**32, 2**32), offsets=(0, 0))}, r"does not have 0 bytes"),
            ({"a": one(shape=(2**62, 4, 4))}, r"does not have 4 bytes"),
            ({"a": one(offsets=(0, 4, 8))}, r"cannot be"),
            ({"a": {**one(), "dtype": 3}}, r"cannot be"),
            ({"a": {**one(), "more": 1}}, r"exactly dtype, shape and data_offsets"),
            ({"a": "x"}, r"exactly dtype, shape and data_offsets"),
            ({"a": one(), "__metadata__": {"x": 3}}, r"not text by text"),
            ({"a": one(), "__metadata__": "x"}, r"not text by text"),
            ({"a": one(shape=(2,), offsets=(0, 2))}, r"its tensors end at byte"),
            ([], r"not an object"),
            (b"{", r"not a whole .safetensors file"),
            (b"\xff\xfe", r"not a whole .safetensors file"),
            (b"[" * 200_000, r"not a whole .safetensors file"),
            (b'{"a": 1, "a": 2}', r"twice"),
            (b'{"a": {"dtype": "U8", "dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}', r"twice"),
            (b'{"a": ' + b"9" * 5000 + b"}", r"not a whole .safetensors file"),
        ],
    )
    def test_a_header_that_cannot_be(self, tmp_path: Path, header: Any, message: str) -> None:
        path = crafted(tmp_path / "bad.safetensors", header, bytes(4))
        with pytest.raises(ArtefactError, match=rf"(?s)bad.safetensors.*{message}"):
            read_tensors(path)

    @pytest.mark.parametrize("length", [2**64 - 1, 2**40, 17 * 2**20, 100])
    def test_a_header_longer_than_the_file(self, tmp_path: Path, length: int) -> None:
        with pytest.raises(ArtefactError, match=r"its header is said to have"):
            read_tensors(crafted(tmp_path / "bad.safetensors", {"a": one()}, bytes(4), length))

    def test_a_giant_header_is_not_parsed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensorfile, "_MAX_HEADER", 1000)
        with pytest.raises(ArtefactError, match=r"said to have 2,000 bytes"):
            read_tensors(crafted(tmp_path / "bad.safetensors", b"{}" + b" " * 1998))

    def test_cut_at_any_place(self, tmp_path: Path) -> None:
        whole = tensor_bytes({"a": np.arange(6, dtype=np.float32)}, {"b": "c"})
        for length in range(len(whole)):
            (tmp_path / "bad.safetensors").write_bytes(whole[:length])
            with pytest.raises(ArtefactError, match=r"not a whole"):
                read_tensors(tmp_path / "bad.safetensors")
        (tmp_path / "bad.safetensors").write_bytes(whole + b"x")
        with pytest.raises(ArtefactError, match=r"its tensors end at"):
            read_tensors(tmp_path / "bad.safetensors")

    def test_a_type_that_numpy_has_not(self, tmp_path: Path) -> None:
        path = crafted(tmp_path / "bad.safetensors", {"a": one("BF16", (2,))}, bytes(4))
        assert TensorFile(path).entries["a"].dtype == "BF16"
        with pytest.raises(ArtefactError, match=r"of the type 'BF16'; allowed are BOOL, U8"):
            read_tensors(path)

    def test_nothing_of_an_impossible_size(self, tmp_path: Path) -> None:
        path = crafted(tmp_path / "bad.safetensors", {"a": one(shape=(2**62, 2**62, 0), offsets=(0, 0))})
        with pytest.raises(ArtefactError, match=r"Cannot read 'a'"):
            read_tensors(path)

    def test_a_file_over_the_limit(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "a.safetensors", {"x": np.zeros(500)})
        with pytest.raises(ArtefactError, match=r"at most 1,000 are read here"):
            read_tensors(tmp_path / "a.safetensors", limit=1000)

    @pytest.mark.parametrize("name", ["nowhere.safetensors", "."])
    def test_what_is_no_file(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ArtefactError, match=r"Cannot read"):
            read_tensors(tmp_path / name)

    @pytest.mark.parametrize("bad", [{"x": np.zeros(2, np.complex64)}, {"__metadata__": np.zeros(2)}])
    def test_what_cannot_be_written(self, tmp_path: Path, bad: dict[str, Any]) -> None:
        with pytest.raises(ArtefactError, match=r"the format has not|reserved"):
            write_tensors(tmp_path / "a.safetensors", bad)
