"""Tensor files: what is read and written is the format's, and a file that is none is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.tensors import TensorFile, read_tensors, tensor_bytes, write_tensors

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


class TestThereAndBack:
    def test_all_types(self, tmp_path: Path) -> None:
        expected, path = tensors(), tmp_path / "a.safetensors"
        write_tensors(path, expected, {"about": "x", "z": "ü"})
        found, metadata = read_tensors(path)
        assert metadata == {"about": "x", "z": "ü"}
        assert set(found) == set(expected)
        for name, array in expected.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert np.array_equal(found[name], array)

    def test_order_does_not_matter(self) -> None:
        again = tensor_bytes(dict(reversed(tensors().items())), {"a": "1"})
        assert tensor_bytes(tensors(), {"a": "1"}) == again == save(tensors(), {"a": "1"})

    def test_arrays_of_any_layout_and_byte_order(self, tmp_path: Path) -> None:
        array = np.arange(12, dtype=">i4").reshape(3, 4).T
        write_tensors(tmp_path / "a.safetensors", {"x": array})
        found, _ = read_tensors(tmp_path / "a.safetensors")
        assert found["x"].dtype == np.dtype("i4")
        assert np.array_equal(found["x"], array)

    def test_the_bytes_are_those_of_version_0_1(self) -> None:
        header = b'{"__metadata__":{"k":"v"},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        header += b'"a":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}'
        header += b" " * (-len(header) % 8)
        data = np.float32(1).tobytes() + b"\1\2"
        found = tensor_bytes({"a": np.array([1, 2], np.uint8), "b": np.ones(1, np.float32)}, {"k": "v"})
        assert found == len(header).to_bytes(8, "little") + header + data


class TestParts:
    def test_no_more_is_read_than_asked_for(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "a.safetensors", tensors())
        part = TensorFile(tmp_path / "a.safetensors").part("t.f4")
        assert not isinstance(part, np.ndarray)
        assert np.array_equal(part[1], tensors()["t.f4"][1])

    def test_a_file_of_nothing(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "a.safetensors", {})
        assert read_tensors(tmp_path / "a.safetensors") == ({}, {})

    def test_a_name_that_is_not_there(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "a.safetensors", {"x": np.zeros(1)})
        with pytest.raises(ArtefactError, match=r"has no tensor 'y'; it has x"):
            TensorFile(tmp_path / "a.safetensors").part("y")


class TestHostileFiles:
    @pytest.mark.parametrize(
        "header",
        [
            {"a": one(), "b": one(offsets=(2, 6))},
            {"a": one(offsets=(1, 5))},
            {"a": one(), "b": one(offsets=(5, 9))},
            {"a": one(), "b": one()},
            {"a": one(offsets=(4, 0))},
            {"a": one(shape=(-4,))},
            {"a": one(shape=(2.0, 2))},
            {"a": one(shape=(True, 4))},
            {"a": one(shape=(2**63,))},
            {"a": one(shape=(2**32, 2**32), offsets=(0, 0))},
            {"a": one(shape=(2**62, 2**62, 0), offsets=(0, 0))},
            {"a": {**one(), "dtype": 3}},
            {"a": "x"},
            {"a": one(), "__metadata__": {"x": 3}},
            {"a": one(), "__metadata__": "x"},
            {"a": one(shape=(2,), offsets=(0, 2))},
            [],
            b"{",
            b"\xff\xfe",
            b"[" * 200_000,
            b'{"a": ' + b"9" * 5000 + b"}",
        ],
    )
    def test_a_header_that_cannot_be(self, tmp_path: Path, header: Any) -> None:
        path = crafted(tmp_path / "bad.safetensors", header, bytes(4))
        with pytest.raises(ArtefactError, match=r"bad.safetensors' is not a whole"):
            read_tensors(path)

    @pytest.mark.parametrize("length", [2**64 - 1, 2**40, 17 * 2**20, 100])
    def test_a_header_longer_than_the_file(self, tmp_path: Path, length: int) -> None:
        with pytest.raises(ArtefactError, match=r"bad.safetensors' is not a whole"):
            read_tensors(crafted(tmp_path / "bad.safetensors", {"a": one()}, bytes(4), length))

    def test_cut_at_any_place(self, tmp_path: Path) -> None:
        whole = tensor_bytes({"a": np.arange(6, dtype=np.float32)}, {"b": "c"})
        for length in range(len(whole)):
            (tmp_path / "bad.safetensors").write_bytes(whole[:length])
            with pytest.raises(ArtefactError, match=r"bad.safetensors"):
                read_tensors(tmp_path / "bad.safetensors")
        (tmp_path / "bad.safetensors").write_bytes(whole + b"x")
        with pytest.raises(ArtefactError, match=r"bad.safetensors"):
            read_tensors(tmp_path / "bad.safetensors")

    def test_a_type_that_numpy_has_not(self, tmp_path: Path) -> None:
        path = crafted(tmp_path / "bad.safetensors", {"a": one("F4", (8,))}, bytes(4))
        assert TensorFile(path).forms["a"] == ("F4", (8,))
        with pytest.raises(ArtefactError, match=r"'a' .*bad.safetensors.* F4, which numpy has not"):
            read_tensors(path)

    def test_a_file_over_the_limit(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "a.safetensors", {"x": np.zeros(500)})
        with pytest.raises(ArtefactError, match=r"at most 1,000 are read here"):
            read_tensors(tmp_path / "a.safetensors", limit=1000)

    @pytest.mark.parametrize("name", ["nowhere.safetensors", "."])
    def test_what_is_no_file(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ArtefactError, match=r"Cannot read"):
            read_tensors(tmp_path / name)

    def test_a_pipe_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ArtefactError, match=r"Cannot read"):
            read_tensors(tmp_path / "pipe")


def test_the_package_reads_it(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", tensors(), {"about": "x"})
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert file.metadata() == {"about": "x"}
        assert all(np.array_equal(file.get_tensor(name), array) for name, array in tensors().items())
