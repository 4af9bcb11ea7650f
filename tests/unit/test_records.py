"""Activation records: moments and graphs against numpy, the file, and the command that makes them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfqkit.cli import main
from dfqkit.records import recording
from dfqkit.records.file import TOP, ActivationRecords, Moments, pooled, reading
from dfqkit.records.recording import RecordOptions, graph_basis, record
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError, TeacherError
from dfqkit_export.images.labelled import LabelledImages
from tests._hooks import hooks_on
from tests._messages import names, raises_naming
from tests._toys import IMAGE, conv_bn, randomise, toy_teacher

ROOT = Path(__file__).parents[2]
RECIPE = "digits/dfq-w8a8-ort"
Array = NDArray[np.float64]
Output = pytest.CaptureFixture[str]


class Net(nn.Module):
    """Two convolutions (the second in groups), one flattened and one plain linear layer, activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one = conv_bn(3, 4, stride=2)
        self.two = nn.Conv2d(4, 6, 3, stride=4, padding=1, groups=2)
        self.hidden, self.head = nn.Linear(24, 7), nn.Linear(7, IMAGE.classes)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.two(self.relu(self.one(x))))
        return self.head(self.relu(self.hidden(x.flatten(1))))


def labelled(n: int = 60, seed: int = 0, labels: bool = True) -> LabelledImages:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    shown = np.arange(n) % IMAGE.classes
    return LabelledImages(images=pixels, labels=rng.permutation(shown) if labels else None, name="noise", sha256="")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    with torch.random.fork_rng(devices=[]):
        return Teacher.from_module(randomise(Net()), IMAGE, "net")


@pytest.fixture(scope="module")
def records(teacher: Teacher) -> ActivationRecords:
    return record(teacher, labelled(), RecordOptions(batch=16, spectrum=0.3))


def activations(teacher: Teacher, images: LabelledImages) -> dict[str, Array]:
    """Every layer's outputs before the activation, step by step without hooks."""
    model = teacher.model
    x = torch.cat([torch.from_numpy(batch) for batch in images.batches(IMAGE, 64)])
    with torch.no_grad():
        one = model.get_submodule("one")(x)
        two = model.get_submodule("two")(one.relu())
        hidden = model.get_submodule("hidden")(two.relu().flatten(1))
        top = model.get_submodule("head")(hidden.relu()) / 8
    found = {"one.1": one.mean((2, 3)), "two": two.mean((2, 3)), "hidden": hidden, TOP: top}
    return {name: value.double().numpy() for name, value in found.items()}


def edges(teacher: Teacher) -> dict[tuple[str, str], Array]:
    """|W| between layers, written out."""
    weight = {name: p.detach().double().numpy() for name, p in teacher.model.named_parameters()}
    two = np.zeros((6, 4))
    for out in range(6):
        for each in range(2):
            two[out, 2 * (out // 3) + each] = np.abs(weight["two.weight"][out, each]).sum()
    hidden = np.abs(weight["hidden.weight"]).reshape(7, 6, 4).sum(2)
    return {("one.1", "two"): two, ("two", "hidden"): hidden, ("hidden", TOP): np.abs(weight["head.weight"])}


def laplacian(weights: Array) -> Array:
    second, first = weights.shape
    adjacency = np.block([[np.zeros((first, first)), weights.T], [weights, np.zeros((second, second))]])
    return np.diag(adjacency.sum(0)) - adjacency


def test_moments_are_those_of_numpy(teacher: Teacher, records: ActivationRecords) -> None:
    images = labelled()
    expected = activations(teacher, images)
    assert list(records.layers) == list(expected) == ["one.1", "two", "hidden", TOP]
    assert records.counts.tolist() == [12] * 5
    for name, values in expected.items():
        moments = records.layers[name]
        for label in range(IMAGE.classes):
            own = values[images.labels == label]
            np.testing.assert_allclose(moments.mean[label], own.mean(0), atol=1e-5)
            np.testing.assert_allclose(moments.covariance[label], np.cov(own.T), atol=1e-5)


def test_the_size_of_batches_changes_nothing(teacher: Teacher, records: ActivationRecords) -> None:
    other = record(teacher, labelled(), RecordOptions(batch=7, spectrum=0.3))
    for name, moments in records.layers.items():
        torch.testing.assert_close(other.layers[name].covariance, moments.covariance, rtol=1e-4, atol=1e-6)


def test_wide_layers_keep_variances(teacher: Teacher, records: ActivationRecords) -> None:
    options = RecordOptions(spectrum=0.3, diagonal_above=5)
    narrow = record(teacher, labelled(), options).layers
    assert [m.covariance.dim() for m in narrow.values()] == [3, 2, 2, 3]
    full = records.layers["hidden"].covariance.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(narrow["hidden"].covariance, full, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(narrow["hidden"].factors(), full.sqrt(), rtol=1e-4, atol=1e-5)


def test_pairs_hold_the_moments_in_the_graphs_lowest_frequencies(teacher: Teacher, records: ActivationRecords) -> None:
    images = labelled()
    values, graphs = activations(teacher, images), edges(teacher)
    assert [(pair.first, pair.second) for pair in records.pairs] == list(graphs)
    for pair, weights in zip(records.pairs, graphs.values(), strict=True):
        kept = math.ceil(0.3 * sum(weights.shape))
        assert pair.basis.shape == (sum(weights.shape), kept)
        # Vectors of a shared frequency (two groups: two zeros) are settled up to a rotation; what they solve is not.
        basis, graph = pair.basis.double().numpy(), laplacian(weights)
        np.testing.assert_allclose(basis.T @ basis, np.eye(kept), atol=1e-6)
        np.testing.assert_allclose(graph @ basis, basis * np.linalg.eigh(graph)[0][:kept], atol=1e-5)
        joined = np.hstack([values[pair.first], values[pair.second]]) @ basis
        own = joined[images.labels == 3]
        np.testing.assert_allclose(pair.moments.mean[3], own.mean(0), atol=1e-5)
        np.testing.assert_allclose(pair.moments.covariance[3], np.cov(own.T).reshape(kept, kept), atol=1e-5)


def test_the_smoothest_vector_of_a_connected_graph_is_constant_and_signs_are_settled() -> None:
    weights = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) + 0.1
    basis = graph_basis(weights, 0.5)
    expected = np.linalg.eigh(laplacian(weights.double().numpy()))[1][:, :5]
    np.testing.assert_allclose(basis.abs().numpy(), np.abs(expected), atol=1e-10)
    np.testing.assert_allclose(basis[:, 0], np.full(10, 10**-0.5), atol=1e-10)
    np.testing.assert_allclose(basis.T @ basis, np.eye(5), atol=1e-12)
    assert bool((basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all())


def test_a_shortcut_pairs_with_the_nearest_layer_of_that_width() -> None:
    pairs = record(toy_teacher("residual"), labelled()).pairs
    assert ("stem.1", "a1.1") in {(pair.first, pair.second) for pair in pairs}
    assert ("down.1", TOP) in {(pair.first, pair.second) for pair in pairs}


@pytest.mark.parametrize(
    ("layer", "shape", "axes"),
    [
        (nn.Conv2d(3, 4, 1), (2, 4, 3, 5), (2, 3)),
        (nn.Linear(3, 4), (2, 6, 4), (1,)),
        (nn.Linear(3, 4), (2, 3, 5, 4), (1, 2)),
        (nn.Linear(3, 4), (2, 4), ()),
    ],
)
def test_pooling_averages_over_positions(layer: nn.Module, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    found = pooled(layer, x).numpy()
    assert found.shape == (2, 4)
    np.testing.assert_allclose(found, x.numpy().mean(axes) if axes else x.numpy(), rtol=1e-5)


def test_reading_has_gradient_and_leaves_no_hook(teacher: Teacher) -> None:
    x = torch.rand((2, *IMAGE.shape), requires_grad=True)
    with reading(teacher.model, ["one.1", "hidden"]) as read:
        teacher.model(x)
    assert read["one.1"].shape == (2, 4)
    assert bool((read["hidden"] < 0).any()), "read after the activation in place"
    assert bool(torch.autograd.grad(read["hidden"].sum(), x)[0].any())
    assert not hooks_on(teacher.model)


def test_factors_are_cholesky_also_of_singular_covariances() -> None:
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 4, 6, generator=rng)
    singular = rows.transpose(1, 2) @ rows
    singular[2] = 0
    factors = Moments(mean=torch.zeros(3, 6), covariance=singular).factors()
    assert bool((factors.triu(1) == 0).all())
    torch.testing.assert_close(factors @ factors.transpose(1, 2), singular, atol=1e-4, rtol=1e-4)
    with pytest.raises(ArtefactError, match="no covariance"):
        Moments(mean=torch.zeros(1, 2), covariance=torch.tensor([[[1.0, 5.0], [5.0, -1.0]]])).factors()


def test_recording_leaves_the_teacher_as_it_was(teacher: Teacher) -> None:
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    record(teacher, labelled(20))
    assert all(torch.equal(before[name], value) for name, value in teacher.model.state_dict().items())
    assert not hooks_on(teacher.model)
    assert not any(m.training for m in teacher.model.modules())


def test_a_limit_takes_the_first_of_every_class(teacher: Teacher) -> None:
    images = labelled()
    limited = record(teacher, images, per_class=3)
    keep = np.sort(np.concatenate([np.flatnonzero(images.labels == label)[:3] for label in range(5)]))
    assert images.labels is not None
    by_hand = record(teacher, dataclasses.replace(images, images=images.images[keep], labels=images.labels[keep]))
    assert limited.counts.tolist() == [3] * 5
    assert torch.equal(limited.layers["two"].mean, by_hand.layers["two"].mean)


def test_images_without_labels_or_of_too_few_classes_are_refused(teacher: Teacher) -> None:
    with pytest.raises(ArtefactError, match="'noise' have no labels"):
        record(teacher, labelled(labels=False))
    images = labelled()
    assert images.labels is not None
    kept = images.labels < 3
    few = dataclasses.replace(images, images=images.images[kept], labels=images.labels[kept])
    with raises_naming(ArtefactError, "2 of the teacher's 5 classes", "(3, 4)"):
        record(teacher, few)
    with raises_naming(ArtefactError, "two images"):
        record(teacher, images, per_class=1)


def test_what_would_not_fit_into_memory_is_refused(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfqkit.records.recording.MEMORY", 1000)
    with pytest.raises(ArtefactError, match="lower --diagonal-above"):
        record(teacher, labelled(20))


def test_the_records_of_pairs_take_memory_too(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted before any eigenvector is computed, and exactly what the streams hold."""
    made: list[int] = []

    class Counted(recording.Stream):
        def __init__(self, *args: int) -> None:
            super().__init__(*args)
            made.append(self.squares.numel() * self.squares.element_size())

    monkeypatch.setattr(recording, "Stream", Counted)
    found = record(teacher, labelled(20), RecordOptions(spectrum=1.0))
    assert len(made) == len(found.layers) + len(found.pairs)
    total = sum(made)
    monkeypatch.setattr(recording, "MEMORY", total)
    record(teacher, labelled(20), RecordOptions(spectrum=1.0))
    monkeypatch.setattr(recording, "MEMORY", total - 1)
    monkeypatch.setattr(recording, "graph_basis", lambda *_: pytest.fail("computed before"))
    with raises_naming(ArtefactError, f"{len(found.pairs)} pairs of layers"):
        record(teacher, labelled(20), RecordOptions(spectrum=1.0))


def test_a_teacher_whose_last_layer_is_not_its_answer_is_refused() -> None:
    class Scaled(Net):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    with torch.random.fork_rng(devices=[]):
        model = randomise(Scaled())
    with raises_naming(TeacherError, "linear layer"):
        record(Teacher.from_module(model, IMAGE), labelled(20))


class TestFile:
    @pytest.fixture
    def path(self, records: ActivationRecords, tmp_path: Path) -> Path:
        records.save(tmp_path / "r.safetensors")
        return tmp_path / "r.safetensors"

    def test_exact_values_come_back(self, teacher: Teacher, records: ActivationRecords, path: Path) -> None:
        loaded = ActivationRecords.load(path, teacher)
        assert list(loaded.layers) == list(records.layers)
        for name, moments in records.layers.items():
            assert torch.equal(loaded.layers[name].mean, moments.mean)
            assert torch.equal(loaded.layers[name].covariance.tril(), moments.covariance.tril())
            assert torch.equal(loaded.layers[name].covariance, loaded.layers[name].covariance.transpose(1, 2))
        for found, pair in zip(loaded.pairs, records.pairs, strict=True):
            assert (found.first, found.second) == (pair.first, pair.second)
            assert torch.equal(found.basis, pair.basis)
        assert torch.equal(loaded.counts, records.counts)
        assert (loaded.temperature, loaded.image, loaded.teacher) == (8.0, IMAGE, teacher.sha256)

    def test_the_same_records_are_the_same_bytes(self, records: ActivationRecords, path: Path) -> None:
        other = path.with_name("other.safetensors")
        assert records.save(other) == len(other.read_bytes())
        assert other.read_bytes() == path.read_bytes()

    def test_variances_come_back(self, teacher: Teacher, tmp_path: Path) -> None:
        narrow = record(teacher, labelled(20), RecordOptions(diagonal_above=4))
        narrow.save(tmp_path / "r.safetensors")
        loaded = ActivationRecords.load(tmp_path / "r.safetensors", teacher)
        assert torch.equal(loaded.layers["two"].covariance, narrow.layers["two"].covariance)

    def test_another_teachers_records_are_refused(self, path: Path) -> None:
        with pytest.raises(ArtefactError, match=r"records of another teacher .* `dfqkit record"):
            ActivationRecords.load(path, toy_teacher("residual"))

    def test_missing_damaged_and_foreign_files_say_what_makes_one(self, teacher: Teacher, tmp_path: Path) -> None:
        broken, foreign = tmp_path / "broken.safetensors", tmp_path / "foreign.safetensors"
        broken.write_bytes(b"no tensors")
        save_file({"x": torch.zeros(1)}, foreign)
        for path in (tmp_path / "none.safetensors", broken, foreign):
            with pytest.raises(ArtefactError, match=re.escape(str(path)) + r".*`dfqkit record RECIPE --data"):
                ActivationRecords.load(path, teacher)

    @pytest.mark.parametrize("damage", ["shape", "nan", "missing", "layers"])
    def test_a_file_that_contradicts_itself_is_refused(self, teacher: Teacher, path: Path, damage: str) -> None:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["records"])
        if damage == "shape":
            tensors["layer.0.mean"] = tensors["layer.0.mean"][:, 1:].contiguous()
        elif damage == "nan":
            tensors["layer.1.mean"][0, 0] = math.nan
        elif damage == "missing":
            del tensors["pair.1.basis"]
        else:
            header["layers"][-1] = "other"
        save_file(tensors, path, metadata={"records": json.dumps(header)})
        with pytest.raises(ArtefactError, match="contradict themselves"):
            ActivationRecords.load(path, teacher)


class TestCommand:
    @pytest.fixture(autouse=True)
    def _threads(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.delenv("DFQKIT_ASSETS", raising=False)
        threads = torch.get_num_threads()
        yield
        torch.set_num_threads(threads)

    @staticmethod
    def digits(path: Path, *, labels: bool = True, classes: int = 10) -> Path:
        rng = np.random.default_rng(0)
        arrays = {"images": rng.integers(0, 256, (40, 16, 16), dtype=np.uint8)}
        if labels:
            arrays["labels"] = np.arange(40) % classes
        np.savez(path, **arrays)
        return path

    def test_digits_from_end_to_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
        from dfqkit.config.reading import load_recipe
        from dfqkit.run.context import teacher_of

        self.digits(tmp_path / "train.npz")
        monkeypatch.setenv("DFQKIT_ASSETS", str(tmp_path))  # --data may lie there
        out = tmp_path / "new" / "r.safetensors"
        assert main(["record", RECIPE, "--data", "train.npz", "--out", str(out), "--per-class", "3", "-q"]) == 0
        shown = capsys.readouterr()
        assert "10 layers and 9 pairs of 'digits_cnn', 3 to 3 images of each of 10 classes" in shown.out
        assert shown.err == ""
        loaded = ActivationRecords.load(out, teacher_of(load_recipe(RECIPE)))
        assert loaded.source == "train"
        assert next(iter(loaded.layers)) == "bn"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "required: --data, --out"),
            (["--data", "x.npz", "--out", "r.bin"], "takes a .safetensors file, found 'r.bin'"),
            (["--data", "torchvision:MNIST:x", "--out", "r.safetensors"], "is a test split"),
            (["--data", "none.npz", "--out", "r.safetensors"], "'none.npz' does not exist"),
        ],
    )
    def test_what_is_wrong_is_said(self, arguments: list[str], message: str, capsys: Output) -> None:
        assert main(["record", RECIPE, *arguments]) == 2
        assert message in capsys.readouterr().err

    def test_unlabelled_images_and_too_few_classes(self, tmp_path: Path, capsys: Output) -> None:
        for name, settings, message in (
            ("plain", {"labels": False}, "'plain' have no labels"),
            ("few", {"classes": 8}, "fewer of 2 of the teacher's 10 classes (8, 9)"),
        ):
            data = self.digits(tmp_path / f"{name}.npz", **settings)  # type: ignore[arg-type]
            out = tmp_path / "r.safetensors"
            assert main(["record", RECIPE, "--data", str(data), "--out", str(out), "-q"]) == 2
            assert message in capsys.readouterr().err
            assert not out.exists()

    def test_recording_what_is_measured_on_is_warned_of(self, tmp_path: Path, capsys: Output) -> None:
        data = ROOT / "recipes" / "digits" / "test.npz"
        out = str(tmp_path / "r.safetensors")
        assert main(["record", RECIPE, "--data", str(data), "--out", out, "--per-class", "4", "-q"]) == 0
        names(capsys.readouterr().err, "measures on")
