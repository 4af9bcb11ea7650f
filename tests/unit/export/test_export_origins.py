"""Where a bundle's images came from, and that none of real data is shipped where only synthetic ones may be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dfqkit_export.bundle import Order, write_bundle
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.likeness import copied
from dfqkit_export.report import Report
from tests._messages import names
from tests.unit.export._bundles import codes, list_run, write_run, write_set
from tests.unit.export.conftest import QdqBuilder

Pixels = NDArray[np.uint8]


def pictures(n: int, seed: int, side: int = 16) -> Pixels:
    """Smooth pictures of three colours with edges, as different from each other as photographs are."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 1, side)
    found = []
    for _ in range(n):
        waves = []
        y, x = np.meshgrid(grid, grid, indexing="ij")
        for _ in range(5):
            a, b, c = rng.uniform(-3, 3), rng.uniform(-3, 3), rng.uniform(0, 6)
            waves.append(rng.normal() * np.sin(2 * np.pi * (a * y + b * x) + c))
        grey = np.sum(waves, axis=0)
        grey = (grey - grey.min()) / np.ptp(grey)
        found.append([60 + 140 * grey * tint for tint in rng.uniform(0.6, 1, 3)])
    return np.clip(np.rint(found), 0, 255).astype(np.uint8)


def cropped(images: Pixels) -> Pixels:
    from PIL import Image

    side = images.shape[2]
    inner = (1, 1, side - 1, side - 1)
    turned = [Image.fromarray(image.transpose(1, 2, 0)).crop(inner).resize((side, side)) for image in images]
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in turned])


def noisy(images: Pixels) -> Pixels:
    return np.clip(images + np.random.default_rng(0).normal(0, 6, images.shape), 0, 255).astype(np.uint8)


COPIES = {
    "exact": lambda x: x,
    "noise": noisy,
    "moved": lambda x: np.roll(x, 1, 3),
    "cropped": cropped,
    "mirrored": lambda x: x[..., ::-1],
    "upside_down": lambda x: x[..., ::-1, :],
    "darker": lambda x: (x * 0.6).astype(np.uint8),
    "brighter": lambda x: np.clip(x * 1.1 + 15, 0, 255).astype(np.uint8),
    "grey": lambda x: np.repeat(x.mean(1, keepdims=True), 3, 1).astype(np.uint8),
    "colours_swapped": lambda x: x[:, ::-1],
    "mirrored_darker_noisy": lambda x: noisy((x[..., ::-1] * 0.7).astype(np.uint8)),
}


@pytest.mark.parametrize("side", [12, 40])
@pytest.mark.parametrize("kind", COPIES)
def test_what_was_done_to_a_picture_hides_no_copy(kind: str, side: int) -> None:
    known = pictures(40, 1, side)
    assert copied(COPIES[kind](known[:8]), known).all()


@pytest.mark.parametrize("side", [12, 40])
def test_other_pictures_and_noise_are_no_copies(side: int) -> None:
    known = pictures(120, 1, side)
    noise = np.random.default_rng(3).integers(0, 256, (30, 3, side, side)).astype(np.uint8)
    assert not copied(np.concatenate([pictures(60, 2, side), noise]), known).any()


def test_an_image_of_one_grey_is_a_copy_of_itself_alone() -> None:
    grey = np.full((2, 3, 12, 12), 90, np.uint8)
    grey[1] = 91
    assert copied(grey, np.concatenate([pictures(5, 1, 12), grey[:1]])).tolist() == [True, False]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", QdqBuilder)


def real(path: Path, images: Pixels) -> Path:
    np.savez(path, images=images.transpose(0, 2, 3, 1), labels=np.arange(len(images)) % 10)
    return path


def told(bundle: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((bundle / "manifest.json").read_text())["images"]
    return found


def name_validation(run: Path, path: str) -> None:
    (run / "recipe.yaml").write_text(json.dumps({"validate": {"data": path}, "floors": [{"data": "real"}]}))


def test_a_bundle_says_where_each_image_came_from(run: Path, tmp_path: Path) -> None:
    name_validation(run, str(real(tmp_path / "test.npz", codes(50, seed=5))))
    write_bundle(Order(run=run, out=tmp_path / "b", synthetic_only=True))
    images = told(tmp_path / "b")
    assert images["origins"] == ["synthetic:dfq"]
    assert images["compared_with"] == ["test.npz"]
    assert set(images["sentinel"]) == set(images["samples"]) == {0}  # type: ignore[call-overload]
    assert "synthetic:dfq" in (tmp_path / "b" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("kind", ["exact", "mirrored_darker_noisy"])
def test_a_picture_of_the_validation_data_is_not_shipped(kind: str, run: Path, tmp_path: Path) -> None:
    pool = codes(60, seed=5)
    name_validation(run, str(real(tmp_path / "test.npz", pool)))
    hidden = COPIES[kind](pool[:40])
    write_set(run / "images" / "grading.safetensors", np.concatenate([codes(56), hidden]), run / "teacher.onnx")
    list_run(run)
    with pytest.raises(ArtefactError) as caught:
        write_bundle(Order(run=run, out=tmp_path / "b", synthetic_only=True))
    names(str(caught.value), "test.npz", "pictures", "--sentinel")
    assert not (tmp_path / "b").exists()
    write_bundle(Order(run=run, out=tmp_path / "b", real=(str(tmp_path / "test.npz"),)))
    assert told(tmp_path / "b")["origins"] == ["synthetic:dfq", "real:test.npz"]


def test_data_that_cannot_be_compared_with_is_no_proof(run: Path, tmp_path: Path) -> None:
    name_validation(run, "lost.npz")
    with pytest.raises(ArtefactError, match=r"lost\.npz"):
        write_bundle(Order(run=run, out=tmp_path / "b", synthetic_only=True))
    (run / "recipe.yaml").write_text("schema: !!python/object/apply:os.system [true]\n")
    with pytest.raises(ArtefactError, match="recipe"):
        write_bundle(Order(run=run, out=tmp_path / "b", synthetic_only=True))
    write_bundle(Order(run=run, out=tmp_path / "b"))


@pytest.mark.parametrize("free", [{"data_free": False, "real_data": "similar images"}, {"data_free": None}, {}])
def test_images_that_may_be_drawn_from_real_ones_are_of_unknown_origin(
    free: dict[str, object], run: Path, tmp_path: Path
) -> None:
    report = Report.from_json((run / "report.json").read_text())
    report.synthesis.clear()
    report.synthesis.update(free)
    (run / "report.json").write_text(report.to_json())
    (run / "recipe.yaml").write_text("schema: 1\n")
    list_run(run)
    with pytest.raises(ArtefactError, match="may have drawn"):
        write_bundle(Order(run=run, out=tmp_path / "b", synthetic_only=True))
    write_bundle(Order(run=run, out=tmp_path / "b"))
    assert told(tmp_path / "b")["origins"] == ["unknown:dfq"]


def test_images_that_were_given_are_named_after_their_set(run: Path, tmp_path: Path) -> None:
    report = Report.from_json((run / "report.json").read_text())
    report.synthesis.update(data_free=False, real_data="similar images")
    (run / "report.json").write_text(report.to_json())
    given = real(tmp_path / "holiday.npz", codes(96))
    (run / "recipe.yaml").write_text(json.dumps({"synthesis": {"method": "images", "path": str(given)}}))
    list_run(run)
    write_bundle(Order(run=run, out=tmp_path / "b"))
    assert told(tmp_path / "b")["origins"] == ["real:holiday.npz"]
