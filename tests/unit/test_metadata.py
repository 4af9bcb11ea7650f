"""Metadata: targets drawn from the records, the three losses re-derived, and what becomes of a wrong file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dfqkit.config.files import find_file
from dfqkit.config.reading import load_recipe
from dfqkit.config.synthesis import Demand
from dfqkit.records.file import TOP, ActivationRecords, reading
from dfqkit.records.recording import RecordOptions, record
from dfqkit.run.context import teacher_of
from dfqkit.seeds import derive
from dfqkit.synthesis.methods.metadata import MetadataConfig
from dfqkit.synthesis.methods.metadata.method import Metadata
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError, RecipeError
from dfqkit_export.images.labelled import LabelledImages
from tests._hooks import hooks_on
from tests._messages import raises_naming
from tests._toys import IMAGE, toy_teacher

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def records(teacher: Teacher) -> ActivationRecords:
    rng = np.random.default_rng(0)
    # Classes of different brightness, so that their records differ.
    labels = np.arange(100) % IMAGE.classes
    pixels = rng.integers(0, 90, (100, 16, 16, 3)) + 40 * labels[:, None, None, None]
    images = LabelledImages(images=pixels.astype(np.uint8), labels=labels, name="noise", sha256="")
    return record(teacher, images, RecordOptions(diagonal_above=10, spectrum=0.2))


@pytest.fixture(scope="module")
def path(records: ActivationRecords, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("records") / "r.safetensors"
    records.save(path)
    return path


def make(teacher: Teacher, path: Path, seed: int = 0, **changes: object) -> Metadata:
    config = MetadataConfig.model_validate({"records": str(path), "batch": 10, "steps": 4} | changes)
    return Metadata(config, teacher, derive(seed, "metadata"), Demand(training=20))


def answers(teacher: Teacher, x: torch.Tensor, names: list[str]) -> dict[str, np.ndarray]:
    with torch.no_grad(), reading(teacher.model, names) as read:
        logits = teacher.model(x)
    return {**{name: read[name].double().numpy() for name in names}, TOP: logits.double().numpy() / 8}


def test_the_loss_of_the_top_layer(teacher: Teacher, path: Path) -> None:
    method = make(teacher, path, loss="top")
    method._begin()
    t = teacher.logits(method.x.detach()).double().numpy() / 8
    expected = np.mean((method.target.numpy() - np.maximum(t, 0)) ** 2)
    assert float(method.target.min()) == 0
    assert method._step([], 0, 4) == pytest.approx({"top": expected}, rel=1e-4)


def test_the_loss_of_all_layers(teacher: Teacher, path: Path, records: ActivationRecords) -> None:
    method = make(teacher, path)
    method._begin()
    names = list(records.layers)
    found = answers(teacher, method.x.detach(), names[:-1])
    expected, start = 0.0, 0
    for name in names:
        units = found[name].shape[1]
        drawn = method.target[:, start : start + units].double().numpy()
        expected += np.mean((drawn - np.maximum(found[name], 0)) ** 2) / units
        start += units
    assert start == method.target.shape[1]
    assert float(method.target.min()) == 0
    assert method._step([], 0, 4) == pytest.approx({"all": expected}, rel=1e-4)


def test_the_spectral_loss(teacher: Teacher, path: Path, records: ActivationRecords) -> None:
    method = make(teacher, path, loss="spectral")
    method._begin()
    found = answers(teacher, method.x.detach(), list(records.layers)[:-1])
    expected, start = 0.0, 0
    for pair in records.pairs:
        kept = pair.basis.shape[1]
        b = method.target[:, start : start + kept].double().numpy()
        projected = np.hstack([found[pair.first], found[pair.second]]) @ pair.basis.double().numpy()
        expected += np.mean(((projected - b) ** 2).sum(1)) / kept
        start += kept
    assert start == method.target.shape[1] == sum(pair.basis.shape[1] for pair in records.pairs)
    assert float(method.target.min()) < 0
    assert method._step([], 0, 4) == pytest.approx({"spectral": expected}, rel=1e-4)


@pytest.mark.parametrize("width", [8, 12])
def test_targets_have_the_recorded_moments_of_their_class(
    teacher: Teacher, path: Path, records: ActivationRecords, width: int
) -> None:
    """Of a layer with a full covariance (8 units) and of one with variances (12)."""
    index, moments = next((i, m) for i, m in enumerate(records.layers.values()) if m.mean.shape[1] == width)
    assert moments.covariance.dim() == (3 if width == 8 else 2)
    labels = torch.arange(IMAGE.classes).repeat_interleave(20_000)
    drawn = make(teacher, path).sources[index].draw(labels, torch.Generator().manual_seed(0)).double()
    for label in (0, 4):
        own = drawn[labels == label].numpy()
        stored = moments.covariance[label].double().numpy()
        full = stored if width == 8 else np.diag(stored)
        deviation = np.sqrt(np.diag(full))
        np.testing.assert_allclose((own.mean(0) - moments.mean[label].numpy()) / deviation, 0, atol=0.04)
        np.testing.assert_allclose((np.cov(own.T) - full) / np.outer(deviation, deviation), 0, atol=0.04)


def test_every_class_gets_its_share(teacher: Teacher, path: Path, records: ActivationRecords) -> None:
    method = make(teacher, path, loss="top")
    given: list[torch.Tensor] = []
    inner = method._assigned_labels

    def note() -> torch.Tensor:
        given.append(inner())
        return given[-1]

    method._assigned_labels = note  # type: ignore[method-assign]
    method.synthesize()
    assert sorted(given[0].tolist()) == sorted([*range(5)] * 2)


@pytest.mark.parametrize("loss", ["top", "all", "spectral"])
def test_images_come_to_the_records(teacher: Teacher, path: Path, loss: str) -> None:
    method = make(teacher, path, loss=loss, steps=40)
    terms = [method.synthesize()[loss] for _ in range(40)]
    assert terms[-1] < 0.8 * terms[0]


@pytest.mark.parametrize("loss", ["all", "spectral"])
def test_continuing_within_a_batch_keeps_its_targets(teacher: Teacher, path: Path, loss: str) -> None:
    straight = make(teacher, path, loss=loss)
    terms = [straight.synthesize() for _ in range(8)]
    first, second = make(teacher, path, loss=loss), make(teacher, path, seed=9, loss=loss)
    found = [first.synthesize() for _ in range(6)]
    second.load_state_dict(first.state_dict())
    assert found + [second.synthesize() for _ in range(2)] == terms


def test_nothing_is_left_on_the_teacher(teacher: Teacher, path: Path) -> None:
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    make(teacher, path).synthesize()
    assert all(torch.equal(before[name], value) for name, value in teacher.model.state_dict().items())
    assert not hooks_on(teacher.model)


def test_another_teachers_records_are_refused(path: Path) -> None:
    with pytest.raises(ArtefactError, match="records of another teacher"):
        make(toy_teacher("residual", seed=1), path)


def test_the_file_is_looked_up_and_its_absence_explained(tmp_path: Path, path: Path) -> None:
    config = MetadataConfig(records=path.name, start_from="torchvision:MNIST:x")
    found = config.resolved(lambda name: str(find_file(name, path.parent)))
    assert (found.records, found.start_from) == (str(path), "torchvision:MNIST:x")
    with raises_naming(RecipeError, "r.safetensors", "dfqkit record RECIPE --data"):
        config.resolved(lambda name: str(find_file(name, tmp_path)))
    with pytest.raises(ValidationError, match="records"):
        MetadataConfig.model_validate({})


def test_records_without_pairs_cannot_be_spectral(teacher: Teacher, records: ActivationRecords, tmp_path: Path) -> None:
    import dataclasses

    dataclasses.replace(records, pairs=()).save(tmp_path / "r.safetensors")
    with pytest.raises(ArtefactError, match="no pair of layers"):
        make(teacher, tmp_path / "r.safetensors", loss="spectral")
    assert "all" in make(teacher, tmp_path / "r.safetensors").synthesize()


def test_the_shipped_records_belong_to_the_shipped_teacher() -> None:
    recipe = load_recipe("digits/dfq-w8a8-ort")
    stored = ActivationRecords.load(ROOT / "recipes" / "digits" / "records.safetensors", teacher_of(recipe))
    assert int(stored.counts.sum()) == 1257  # the training split
    assert len(stored.pairs) == 9
