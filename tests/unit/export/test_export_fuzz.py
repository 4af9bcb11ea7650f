"""Damaged files of every form end in a message: a share of what `benchmarks/fuzz.py` does."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.labelled import load_images
from tests._fuzz import Corpus, make_corpus
from tests._messages import names
from tests.benchmarks.fuzz import attempt
from tests.unit.export._bundles import SPEC


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def damaged(corpus: Corpus, seeds: range, folder: Path) -> list[str]:
    found = []
    for seed in seeds:
        (folder / str(seed)).mkdir()
        _, command, wrong = attempt(corpus, seed, folder / str(seed))
        found += [f"{seed}: {command}\n{wrong}"] if wrong else []
    return found


def test_a_damaged_file_ends_in_a_message(corpus: Corpus, tmp_path: Path) -> None:
    assert damaged(corpus, range(20_000, 20_024), tmp_path) == []


@pytest.mark.slow
def test_many_damaged_files_end_in_messages(corpus: Corpus, tmp_path: Path) -> None:
    assert damaged(corpus, range(30_000, 30_400), tmp_path) == []


HEADS = {
    "a shape that memory cannot hold": "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }",
    "a negative shape": "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8, 3), }",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (1, 8, 8, 3), }",
    "no header": "{'descr': ((((",
    "a NUL": "{'descr': '\x00'}",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_arrays_that_are_none_are_refused(head: str, suffix: str, tmp_path: Path) -> None:
    from dfqkit_export.comparison.inputs import _stored_arrays

    text = f"{head}\n".encode()
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)
    path = tmp_path / f"images{suffix}"
    if suffix == ".npy":
        path.write_bytes(data)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", data)
        with pytest.raises(ArtefactError, match="cannot be read"):
            load_images(str(path), SPEC)
    with pytest.raises(ArtefactError, match="cannot be read as images"):
        _stored_arrays(path)


def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((300, 1024, 1024, 1), np.uint8))
    with pytest.raises(ArtefactError) as caught:
        load_images(str(tmp_path / "bomb.npz"), SPEC)
    names(str(caught.value), "bomb.npz", "claims", "bytes")


@pytest.mark.parametrize("table", ["filename,label\n" + "a" * 200_000 + ",0\n", "f" * 200_000 + ",label\n"])
def test_a_table_with_a_field_over_the_limit_is_refused(table: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("labels.csv", table)
    with pytest.raises(ArtefactError, match=r"labels\.csv.*(no table|columns)"):
        load_images(str(tmp_path / "images.zip"), SPEC)
