"""Similar images: every form is read, nothing plays two parts, and too few are named before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dfqkit.config.reading import load_recipe
from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.methods.images import ImagesConfig
from dfqkit.synthesis.methods.images import method as module
from dfqkit.synthesis.methods.images.method import Images
from dfqkit_export.errors import ArtefactError, RecipeError
from dfqkit_export.images.labelled import load_images
from tests._messages import raises_naming
from tests._toys import IMAGE, toy_teacher

COUNT = 40
MAIN, GRADING = Demand(training=16, fresh=10), Demand(training=0, fresh=14)


def pixels(count: int = COUNT, seed: int = 0, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    np.savez(tmp_path / "similar.npz", images=pixels(), labels=np.arange(COUNT) * 1000)
    return tmp_path / "similar.npz"


def make(path: Path | str, demand: Demand = MAIN, seed: int = 0, **options: object) -> Images:
    config = ImagesConfig(path=str(path), **options)  # type: ignore[arg-type]
    return Images(config, toy_teacher(), derive(seed, "images"), demand)


def codes(batch: Tensor) -> list[bytes]:
    """Images as the bytes of their pixels, so that they can be told apart and found again."""
    plain = (IMAGE.denormalize(batch) * 255).round().to(torch.uint8)
    return [image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in plain]


def test_they_are_the_files_own_pixels_whatever_their_labels(archive: Path) -> None:
    source = make(archive)
    known = {image.tobytes() for image in pixels()}
    drawn = [*codes(source.training_batch(16)), *codes(source.sample(10))]
    assert len(set(drawn)) == 26
    assert set(drawn) <= known
    batch = make(archive).sample(3)
    assert batch.shape == (3, 3, 16, 16)
    assert batch.dtype == torch.float32


def test_fresh_images_come_once_and_never_train(archive: Path) -> None:
    source = make(archive)
    fresh = codes(source.sample(4)) + codes(source.sample(6))
    assert len(set(fresh)) == 10
    assert source.available == 0
    trained = [image for _ in range(5) for image in codes(source.training_batch(16))]
    assert len(set(trained)) == 16
    assert not set(trained) & set(fresh)
    with pytest.raises(ArtefactError, match=r"Asked for 1 fresh images, but 0 of 10 are left"):
        source.sample(1)


def test_asking_for_more_brings_none(archive: Path) -> None:
    source = make(archive)
    source.sample(3)
    source.ask(30)
    assert source.available == 7
    assert len(source.sample(7)) == 7
    with pytest.raises(ArtefactError, match=r"Asked for 1 fresh images, but 0 of 10 are left"):
        source.sample(1)


def test_every_training_image_comes_once_before_any_comes_again(archive: Path) -> None:
    source = make(archive)
    drawn = [image for n in (5, 7, 30, 6) for image in codes(source.training_batch(n))]
    for start in (0, 16, 32):
        assert len(set(drawn[start : start + 16])) == 16
    assert drawn[:16] != drawn[16:32]


def test_the_source_that_grades_gets_others(archive: Path) -> None:
    main = make(archive, Demand(training=16, fresh=10, beside=GRADING))
    config = main.config.grading()
    grader = Images(config, main.teacher, derive(0, "grading"), Demand(training=0, fresh=14, beside=MAIN))
    graded = codes(grader.sample(14))
    assert len(set(graded)) == 14
    assert not set(graded) & set(codes(main.training_batch(16)) + codes(main.sample(10)))
    with pytest.raises(ArtefactError, match=r"no training images"):
        grader.training_batch(1)


def test_who_gets_what_does_not_depend_on_names_or_order(tmp_path: Path) -> None:
    order = np.random.default_rng(5).permutation(COUNT)
    for name, content in (("a", pixels()), ("b", pixels()[order])):
        np.savez(tmp_path / f"{name}.npz", images=content)
    drawn = [set(codes(make(tmp_path / f"{n}.npz").sample(10))) for n in "ab"]
    assert drawn[0] == drawn[1]


def test_equal_images_count_once(tmp_path: Path, archive: Path) -> None:
    np.savez(tmp_path / "twice.npz", images=np.concatenate([pixels(20), pixels(20), pixels(20, seed=3)]))
    both = Demand(training=16, fresh=10, beside=GRADING)
    source = make(tmp_path / "twice.npz", both)
    drawn = codes(source.training_batch(16)) + codes(source.sample(10))
    assert len(set(drawn)) == 26
    np.savez(tmp_path / "copies.npz", images=np.concatenate([pixels(20)] * 3))
    with pytest.raises(ArtefactError, match=r"has 20 different images, but 26 are needed"):
        make(tmp_path / "copies.npz")


def test_too_few_say_how_many_are_needed_and_for_what(archive: Path) -> None:
    with pytest.raises(
        ArtefactError,
        match=r"similar.npz' has 40 different images, but 41 are needed: 16 to train on, 11 fresh ones and 14 for the "
        r"synthesizer beside it. Give more",
    ):
        make(archive, Demand(training=16, fresh=11, beside=GRADING))
    with pytest.raises(ArtefactError, match=r"limit 20, has 20 .*26 are needed"):
        make(archive, limit=20)
    assert make(archive, Demand(training=16, fresh=10, beside=GRADING)).available == 10


def test_no_more_is_read_than_both_synthesizers_need(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int | None] = []

    def watched(*args: object, **options: object) -> object:
        limits.append(options["limit"])  # type: ignore[arg-type]
        return load_images(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "load_images", watched)
    nothing = Demand(training=0, fresh=0)
    assert make(archive, Demand(training=6, fresh=4, beside=nothing)).pixels.dtype == torch.uint8
    make(archive, Demand(training=6, fresh=4, beside=GRADING))
    make(archive, Demand(training=6, fresh=4, beside=nothing), limit=30)
    make(archive, Demand(training=6, fresh=4))  # not known what else is needed
    assert limits == [10, 24, 10, None]
    assert len(make(archive, Demand(training=6, fresh=4)).pixels) == 10


def test_folders_are_resized_and_cropped_as_for_validation(tmp_path: Path) -> None:
    for index, image in enumerate(pixels(6, size=24)):
        folder = tmp_path / "photos" / f"class{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:, :20]).save(folder / f"{index}.png")
    source = make(tmp_path / "photos", Demand(training=4, fresh=2), resize=18, crop=16)
    expected = load_images(tmp_path / "photos", IMAGE, resize=18, crop=16).images
    drawn = codes(source.training_batch(4)) + codes(source.sample(2))
    assert sorted(drawn) == sorted(image.tobytes() for image in expected)
    with pytest.raises(ArtefactError, match=r"24x20 pixels.*Add resize and crop"):
        make(tmp_path / "photos", Demand(training=4, fresh=2))


def test_seeds_state_and_resuming(archive: Path) -> None:
    first, same, other = make(archive), make(archive), make(archive, seed=7)
    assert codes(first.training_batch(5)) == codes(same.training_batch(5))
    assert codes(first.sample(3)) == codes(same.sample(3))
    state = first.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) < 6000, "images in the state"
    expected = [first.training_batch(30), first.sample(7)]
    assert codes(expected[1]) != codes(other.sample(7))
    other.load_state_dict(state)
    assert torch.equal(other.training_batch(30), expected[0])
    assert torch.equal(other.sample(7), expected[1])
    assert (first.warmup_rounds, first.cost, first.synthesize()) == (0, 0, {})


def test_a_run_that_goes_on_with_other_images_is_stopped(tmp_path: Path, archive: Path) -> None:
    state = make(archive).state_dict()
    np.savez(archive, images=pixels(seed=9))
    with raises_naming(ArtefactError, "this run began with"):
        make(archive).load_state_dict(state)


def test_a_recipe_names_them_like_every_other_file(tmp_path: Path) -> None:
    config = ImagesConfig(path="similar")
    assert config.resolved(lambda name: f"/found/{name}").path == "/found/similar"
    installed = ImagesConfig(path="torchvision:CIFAR10:/data")
    assert installed.resolved(lambda name: f"/found/{name}") == installed
    assert config.needed == {"images"}
    recipe = load_recipe("digits/dfq-w8a8-ort", ["synthesis={method: images, path: test.npz, limit: 9}"])
    assert json.loads(recipe.model_dump_json())["synthesis"]["limit"] == 9
    with pytest.raises(RecipeError, match=r"synthesis.path: is missing"):
        load_recipe("digits/dfq-w8a8-ort", ["synthesis={method: images}"])


def test_with_torchs_global_state_left_alone(archive: Path) -> None:
    before = torch.get_rng_state()
    make(archive).training_batch(20)
    assert torch.equal(before, torch.get_rng_state())
