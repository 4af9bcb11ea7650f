"""The stored set: the same bytes from every process, exact values back, and no file that is not what it says."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from dfqkit.images import BankDataset, ImageBank
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.labelled import LabelledImages
from tests._messages import raises_naming
from tests._toys import IMAGE, images, toy_teacher

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
import torch
from dfqkit.teacher.sources import build_model
from dfqkit.images import ImageBank
from dfqkit.teacher import Teacher
from dfqkit_export.images.spec import ImageSpec
image = ImageSpec(shape=(1, 16, 16), mean=(0.3,), std=(0.32,), classes=10)
teacher = Teacher.from_module(build_model("dfqkit.models:digits_cnn", 10), image)
images = torch.rand((5, 1, 16, 16), generator=torch.Generator().manual_seed(0))
ImageBank.collect(teacher, iter([images, images[:2]]), "test").save(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return toy_teacher("option_a")


@pytest.fixture(scope="module")
def bank(teacher: Teacher) -> ImageBank:
    return ImageBank.collect(teacher, iter([images(5), images(2, 3)]), "test")


@pytest.fixture
def file(bank: ImageBank, tmp_path: Path) -> Path:
    bank.save(tmp_path / "bank.safetensors")
    return tmp_path / "bank.safetensors"


def test_it_comes_back_as_it_was(bank: ImageBank, file: Path, teacher: Teacher) -> None:
    again = ImageBank.load(file, teacher)
    assert len(again) == 7
    assert torch.equal(again.images, bank.images)
    assert torch.equal(again.answers["logits"], bank.answers["logits"])
    assert (again.image, again.teacher, again.source) == (IMAGE, teacher.sha256, "test")


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")]),
        "OMP_NUM_THREADS": "1",
    }
    for name, seed in (("one", "1"), ("two", "2")):
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / name)],
            env=environment | {"PYTHONHASHSEED": seed},
            check=True,
            cwd=ROOT,
        )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_pixels_round_to_the_nearest_of_256_and_stay_inside(teacher: Teacher) -> None:
    plain = torch.tensor([-0.3, 0.0, 0.49 / 255, 0.51 / 255, 100.4 / 255, 100.6 / 255, 1.0, 1.7])
    batch = plain[:, None, None, None].expand(-1, *IMAGE.shape).clone()
    made = ImageBank.collect(teacher, iter([IMAGE.normalize(batch)]), "test")
    assert made.images.dtype == torch.uint8
    for code, expected in zip(made.images, [0, 0, 0, 1, 100, 101, 255, 255], strict=True):
        assert code.unique().tolist() == [expected]


def test_the_answers_are_those_to_the_stored_images(bank: ImageBank, teacher: Teacher) -> None:
    codes = bank.images.numpy().astype(np.float32) / np.float32(255)
    answers = teacher.logits(torch.from_numpy(IMAGE.normalize(codes)))
    # The same images in other batches: kernels may sum in another order.
    torch.testing.assert_close(bank.answers["logits"], answers, rtol=1e-4, atol=1e-5)
    assert bank.answers["logits"].dtype == torch.float32


def test_batches_are_normalised_like_real_images_and_in_order(bank: ImageBank) -> None:
    found = list(bank.batches(3))
    assert [len(part) for part, _ in found] == [3, 3, 1]
    assert torch.equal(torch.cat([answers["logits"] for _, answers in found]), bank.answers["logits"])
    pixels = bank.images.permute(0, 2, 3, 1).numpy()
    real = LabelledImages(images=pixels, labels=None, name="x", sha256="")
    for (ours, _), theirs in zip(found, real.batches(IMAGE, 3), strict=True):
        assert np.array_equal(ours.numpy(), theirs)
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (IMAGE.mean, IMAGE.std))
    by_hand = (bank.images.numpy().astype(np.float32) / np.float32(255) - mean) / std
    assert np.array_equal(np.concatenate([part.numpy() for part, _ in found]), by_hand)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused(value: float, teacher: Teacher) -> None:
    bad = images(2)
    bad[1, 0, 3, 3] = value
    with raises_naming(ArtefactError, "dfq", "not finite", "lr"):
        ImageBank.collect(teacher, iter([images(2), bad]), "dfq")


def test_another_teachers_bank_is_refused(file: Path, teacher: Teacher) -> None:
    other = toy_teacher("option_a", seed=1)
    with raises_naming(ArtefactError, teacher.sha256[:12], other.sha256[:12]):
        ImageBank.load(file, other)
    assert len(ImageBank.load(file)) == 7


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(file: Path, share: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ArtefactError, match=r"Cannot read the image bank .*bank.safetensors.*dfqkit synthesize"):
        ImageBank.load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"nowhere.safetensors"):
        ImageBank.load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize(
    "metadata", [None, {"imagebank": "[]"}, {"imagebank": "{"}, {"imagebank": json.dumps({"schema": 2})}]
)
def test_other_safetensors_files_are_refused(metadata: dict[str, str] | None, bank: ImageBank, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"images": bank.images, "logits": bank.answers["logits"]}, path, metadata)
    with pytest.raises(ArtefactError, match=r"other.safetensors"):
        ImageBank.load(path)


@pytest.mark.parametrize(
    "change", ["no images", "float images", "fewer logits", "other shape", "no image", "bad image"]
)
def test_a_header_that_its_tensors_contradict_is_refused(change: str, bank: ImageBank, tmp_path: Path) -> None:
    tensors = {"images": bank.images, "logits": bank.answers["logits"]}
    header = {"schema": 1, "image": IMAGE.to_dict(), "teacher": bank.teacher, "source": "test"}
    if change == "no images":
        del tensors["images"]
    elif change == "float images":
        tensors["images"] = bank.images.float()
    elif change == "fewer logits":
        tensors["logits"] = bank.answers["logits"][:3].clone()
    elif change == "other shape":
        tensors["images"] = bank.images[..., :5].clone()
    elif change == "no image":
        del header["image"]
    else:
        header["image"] = {"shape": [3, 16, 16]}
    path = tmp_path / "odd.safetensors"
    save_file(tensors, path, {"imagebank": json.dumps(header)})
    with pytest.raises(ArtefactError, match=r"odd.safetensors"):
        ImageBank.load(path)


def test_a_bank_made_of_views_is_saved_whole(bank: ImageBank, tmp_path: Path) -> None:
    turned = dataclasses.replace(bank, images=bank.images.flip(3).transpose(2, 3))
    turned.save(tmp_path / "v.safetensors")
    assert torch.equal(ImageBank.load(tmp_path / "v.safetensors").images, turned.images)


class TestDataset:
    def test_it_gives_what_batches_gives(self, bank: ImageBank, file: Path) -> None:
        data = BankDataset(file)
        assert len(data) == 7
        images, logits = (torch.stack(part) for part in zip(*(data[index] for index in range(7)), strict=True))
        assert torch.equal(images, next(bank.batches(7))[0])
        assert torch.equal(logits, bank.answers["logits"])
        assert torch.equal(data[-1][0], images[6])
        with pytest.raises(IndexError, match=r"allowed are 0 to 6"):
            _ = data[7]

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_loader_gives_every_image_once(self, workers: int, bank: ImageBank, file: Path) -> None:
        data = BankDataset(file)
        _ = data[0]  # its file is open when the workers begin
        rng = torch.Generator().manual_seed(0)
        parts = list(DataLoader(data, batch_size=3, shuffle=True, num_workers=workers, generator=rng))
        assert [len(images) for images, _ in parts] == [3, 3, 1]
        images, logits = (torch.cat(part) for part in zip(*parts, strict=True))
        order = [int((bank.answers["logits"] == row).all(1).nonzero()) for row in logits]
        assert sorted(order) == list(range(7))
        assert order != sorted(order)
        assert torch.equal(images, next(bank.batches(7))[0][order])

    def test_it_refuses_what_is_no_bank(self, tmp_path: Path) -> None:
        with pytest.raises(ArtefactError, match=r"it has no set.json"):
            BankDataset(tmp_path)


def test_the_package_has_no_other_names() -> None:
    import dfqkit.images as package

    with pytest.raises(AttributeError, match=r"no attribute 'nothing'"):
        _ = package.nothing
