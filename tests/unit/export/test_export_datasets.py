from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.labelled import load_images
from dfqkit_export.images.spec import ImageSpec
from tests._messages import raises_naming

RGB = ImageSpec(shape=(3, 6, 6), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), classes=4)
GREY = ImageSpec(shape=(1, 6, 6), mean=(0.5,), std=(0.5,), classes=4)
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def pixels(n: int, *shape: int) -> Pixels:
    return np.random.default_rng(n).integers(0, 256, (n, *shape)).astype(np.uint8)


def png(array: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path: Path, entries: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_npz_with_labels(tmp_path: Path) -> None:
    images, labels = pixels(5, 6, 6, 3), np.array([0, 1, 2, 3, 0])
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    loaded = load_images(tmp_path / "set.npz", RGB)
    np.testing.assert_array_equal(loaded.images, images)
    assert loaded.labels is not None
    assert loaded.labels.dtype == np.int64
    np.testing.assert_array_equal(loaded.labels, labels)
    assert (loaded.name, len(loaded)) == ("set", 5)


def test_npz_grey_without_labels_and_with_a_limit_spread_over_all(tmp_path: Path) -> None:
    images = pixels(5, 6, 6)
    np.savez(tmp_path / "set.npz", images=images)
    loaded = load_images(tmp_path / "set.npz", GREY, limit=3)
    np.testing.assert_array_equal(loaded.images[..., 0], images[[0, 2, 4]])
    assert loaded.labels is None


def test_batches_are_normalised_and_in_order(tmp_path: Path) -> None:
    images = pixels(5, 6, 6, 3)
    np.savez(tmp_path / "set.npz", images=images)
    batches = list(load_images(tmp_path / "set.npz", RGB).batches(RGB, 2))
    assert [batch.shape for batch in batches] == [(2, 3, 6, 6), (2, 3, 6, 6), (1, 3, 6, 6)]
    joined = np.concatenate(batches)
    assert joined.dtype == np.float32
    expected = (images.transpose(0, 3, 1, 2) / 255.0 - 0.5) / 0.25
    np.testing.assert_allclose(joined, expected, atol=1e-6)


def test_batches_refuse_a_specification_of_another_shape(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=pixels(2, 6, 6, 3))
    loaded = load_images(tmp_path / "set.npz", RGB)
    with pytest.raises(ArtefactError, match=r"3 channel\(s\)"):
        next(loaded.batches(GREY, 2))
    with pytest.raises(ArtefactError, match="Batch size"):
        next(loaded.batches(RGB, 0))


def test_class_folders_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    images = pixels(3, 6, 6, 3)
    for name, image in zip(("dog/b.png", "cat/a.png", "dog/a.png"), images, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(image))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    loaded = load_images(tmp_path, RGB)
    np.testing.assert_array_equal(loaded.images, images[[1, 2, 0]])
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 1, 1]


def test_folders_named_by_integers_keep_their_number(tmp_path: Path) -> None:
    spec = ImageSpec(shape=(1, 6, 6), mean=(0.5,), std=(0.5,), classes=11)
    for name, image in zip(("10", "2"), pixels(2, 6, 6), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(png(image))
    loaded = load_images(tmp_path, spec)
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [2, 10]


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    images = pixels(2, 6, 6, 3)
    for index, image in enumerate(images):
        (tmp_path / f"{index}.png").write_bytes(png(image))
    loaded = load_images(str(tmp_path), RGB)
    assert loaded.labels is None
    np.testing.assert_array_equal(loaded.images, images)


def test_flat_and_class_folders_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "x.png").write_bytes(png(pixels(1, 6, 6, 3)[0]))
    with pytest.raises(ArtefactError, match="not clear"):
        load_images(tmp_path, RGB)


def test_zip_with_and_without_folder_in_the_names(tmp_path: Path) -> None:
    images = pixels(2, 6, 6, 3)
    table = "filename,label,wnid\nb.png,3,n1\nimages/a.png,1,n2\n"
    path = write_zip(
        tmp_path / "set.zip", {"labels.csv": table, "images/a.png": png(images[0]), "images/b.png": png(images[1])}
    )
    loaded = load_images(path, RGB)
    np.testing.assert_array_equal(loaded.images, images[::-1])
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [3, 1]


def test_equal_content_has_an_equal_hash_whatever_the_container(tmp_path: Path) -> None:
    images, labels = pixels(2, 6, 6, 3), np.array([3, 1], np.int32)
    np.savez_compressed(tmp_path / "set.npz", images=images, labels=labels)
    table = "filename,label\na.png,3\nb.png,1\n"
    path = write_zip(tmp_path / "s.zip", {"labels.csv": table, "a.png": png(images[0]), "b.png": png(images[1])})
    first, second = load_images(tmp_path / "set.npz", RGB), load_images(path, RGB)
    assert first.sha256 == second.sha256
    np.savez(tmp_path / "other.npz", images=images, labels=labels[::-1])
    assert load_images(tmp_path / "other.npz", RGB).sha256 != first.sha256


def test_resize_and_crop_equal_torchvision(tmp_path: Path) -> None:
    from torchvision.transforms import functional as oracle

    image = pixels(1, 31, 45, 3)[0]
    (tmp_path / "x.png").write_bytes(png(image))
    spec = ImageSpec(shape=(3, 15, 15), mean=(0.5,) * 3, std=(0.5,) * 3, classes=4)
    loaded = load_images(tmp_path, spec, resize=18, crop=15)
    resized = oracle.resize(Image.fromarray(image), 18, interpolation=oracle.InterpolationMode.BICUBIC)
    np.testing.assert_array_equal(loaded.images[0], np.array(oracle.center_crop(resized, [15, 15])))


def test_npz_is_preprocessed_too(tmp_path: Path) -> None:
    images = pixels(2, 8, 8, 3)
    np.savez(tmp_path / "set.npz", images=images)
    np.testing.assert_array_equal(load_images(tmp_path / "set.npz", RGB, crop=6).images, images[:, 1:7, 1:7])


def test_torchvision_test_split_is_read_and_never_downloaded(tmp_path: Path) -> None:
    images, labels = pixels(3, 6, 6), np.array([2, 0, 1], np.uint8)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, part, count in (("train", slice(0, 1), 1), ("t10k", slice(0, 3), 3)):
        header = struct.pack(">iiii", 2051, count, 6, 6)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + images[part].tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + labels[part].tobytes())
    loaded = load_images(f"torchvision:MNIST:{tmp_path}", GREY)
    np.testing.assert_array_equal(loaded.images[..., 0], images)
    assert loaded.labels is not None
    assert (loaded.labels.tolist(), loaded.name) == ([2, 0, 1], "MNIST")
    with pytest.raises(ArtefactError, match="Nothing is downloaded"):
        load_images(f"torchvision:CIFAR10:{tmp_path}", RGB)
    assert not (tmp_path / "cifar-10-python.tar.gz").exists()


@pytest.mark.parametrize(
    ("source", "words"), [("torchvision:MNIST", "not complete"), ("torchvision:Nope:/x", "no data set")]
)
def test_torchvision_names_are_checked(source: str, words: str) -> None:
    with pytest.raises(ArtefactError, match=words):
        load_images(source, GREY)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((2, 6, 6, 3), np.float32)}, "float32, allowed is uint8"),
        ({"images": np.zeros((0, 6, 6, 3), np.uint8)}, "has shape"),
        ({"images": np.zeros((6, 6), np.uint8)}, "has shape"),
        ({"pixels": np.zeros((2, 6, 6, 3), np.uint8)}, "no array 'images'"),
        ({"images": np.zeros((2, 6, 6, 3), np.uint8), "labels": np.array([0.0, 1.0])}, "float64"),
        ({"images": np.zeros((2, 6, 6, 3), np.uint8), "labels": np.array([0])}, r"\(2,\), one for each image"),
        ({"images": np.zeros((2, 6, 6, 3), np.uint8), "labels": np.array([0, 4])}, r"\[0, 4\)"),
        ({"images": np.zeros((2, 6, 6, 3), np.uint8), "labels": np.array([-1, 0])}, "from -1"),
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, "Add resize and crop: 6"),
        ({"images": np.zeros((2, 6, 6, 1), np.uint8)}, r"1 channel\(s\)"),
        ({"images": np.array([None, {}], dtype=object)}, "Object arrays"),
    ],
)
def test_bad_npz_is_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ArtefactError, match=words):
        load_images(tmp_path / "set.npz", RGB)


@pytest.mark.parametrize("keep", [0, 10, 150, -30])
@pytest.mark.parametrize("kind", ["npz", "zip"])
def test_truncated_archives_are_refused(tmp_path: Path, kind: str, keep: int) -> None:
    path = tmp_path / f"set.{kind}"
    if kind == "npz":
        np.savez(path, images=pixels(4, 6, 6, 3))
    else:
        write_zip(path, {"labels.csv": "filename,label\na.png,0\n", "a.png": png(pixels(1, 6, 6, 3)[0])})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_images(path, RGB)


def test_corrupt_entry_of_an_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=pixels(4, 6, 6, 3))
    data = bytearray(path.read_bytes())
    data[300] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(ArtefactError, match="CRC"):
        load_images(path, RGB)


def test_truncated_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "half.png").write_bytes(png(pixels(1, 6, 6, 3)[0])[:60])
    with pytest.raises(ArtefactError, match=r"half\.png"):
        load_images(tmp_path, RGB)


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((6, 6), 4000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ArtefactError, match="8 bits"):
        load_images(tmp_path, GREY)


def test_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    for side in (6, 8):
        (tmp_path / f"{side}.png").write_bytes(png(pixels(1, side, side, 3)[0]))
    with pytest.raises(ArtefactError, match=r"8\.png.*differ|differ.*8\.png"):
        load_images(tmp_path, RGB)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("filename,label\n../secret.png,0\n", "lies outside"),
        ("filename,label\n/etc/secret.png,0\n", "lies outside"),
        ("filename,label\nC:\\\\secret.png,0\n", "lies outside"),
        ("filename,label\nmissing.png,0\n", "no such entry"),
        ("filename,label\na.png,cat\n", "line 2: label 'cat'"),
        ("name,label\na.png,0\n", "needed are"),
        ("filename,label\n", "holds no images"),
        ("filename,label\ntwice.png,0\n", "2 entries"),
    ],
)
def test_bad_label_tables_are_refused(tmp_path: Path, table: str, words: str) -> None:
    image = png(pixels(1, 6, 6, 3)[0])
    (tmp_path / "secret.png").write_bytes(image)
    entries = {"labels.csv": table, "a.png": image, "x/twice.png": image, "y/twice.png": image}
    with pytest.raises(ArtefactError, match=words):
        load_images(write_zip(tmp_path / "set.zip", entries), RGB)


def test_archive_members_outside_of_the_archive_are_refused(tmp_path: Path) -> None:
    entries = {"labels.csv": "filename,label\na.png,0\n", "../a.png": png(pixels(1, 6, 6, 3)[0])}
    with pytest.raises(ArtefactError, match="lies outside"):
        load_images(write_zip(tmp_path / "set.zip", entries), RGB)


def test_missing_sources_and_unknown_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        load_images(tmp_path / "nowhere.npz", RGB)
    (tmp_path / "set.h5").write_bytes(b"x")
    with pytest.raises(ArtefactError, match=r"unknown type '\.h5'"):
        load_images(tmp_path / "set.h5", RGB)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match="holds no images"):
        load_images(tmp_path / "empty", RGB)


@pytest.mark.parametrize("option", ["resize", "crop", "limit"])
def test_options_below_one_are_refused(tmp_path: Path, option: str) -> None:
    options: dict[str, Any] = {option: 0}
    with raises_naming(ArtefactError, option, "at least 1"):
        load_images(tmp_path, RGB, **options)


def test_a_crop_larger_than_the_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(pixels(1, 5, 5, 3)[0]))
    with pytest.raises(ArtefactError, match="larger than image"):
        load_images(tmp_path, RGB, crop=6)
