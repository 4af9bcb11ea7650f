"""ZeroQ and the hard-sample terms on its pixels: every term re-derived, options, and going on where it stopped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.methods.zeroq import ZeroQConfig
from dfqkit.synthesis.methods.zeroq.method import ZeroQ
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import RecipeError
from dfqkit_export.images.spec import ImageSpec
from tests._toys import IMAGE, Head, images

Array = NDArray[np.float64]
BATCH = 6


def make(teacher: Teacher, seed: int = 0, start: Tensor | None = None, **changes: object) -> ZeroQ:
    config = ZeroQConfig.model_validate({"batch": BATCH, "steps": 6, "lr": 0.1, **changes})
    made = ZeroQ(config, teacher, derive(seed, "zeroq"), Demand(training=2 * BATCH))
    if start is not None:
        made._start = lambda: start.clone()  # type: ignore[method-assign]
    return made


def read(teacher: Teacher, x: Tensor) -> tuple[list[tuple[Array, Array, Array]], Array, Array]:
    """Input, running mean and running variance of every BatchNorm, penultimate features and logits, in float64."""
    model = Teacher.from_module(teacher.model, IMAGE).model.double()
    norms: list[tuple[Array, Array, Array]] = []
    features: list[Array] = []
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(
                lambda m, i, _: norms.append((i[0].numpy(), m.running_mean.numpy(), m.running_var.numpy()))
            )
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _m, i, _o: features.append(i[0].numpy()))
    with torch.no_grad():
        logits = model(x.double()).numpy()
    return norms, features[-1], logits


def deviation(value: Array, mean: Array, variance: Array, form: str, axes: tuple[int, ...]) -> float:
    found_mean, found_variance = value.mean(axes), value.var(axes)
    if form == "l2":
        return float(np.linalg.norm(found_mean - mean) + np.linalg.norm(found_variance - variance))
    shift = ((found_mean - mean) ** 2).mean()
    if form == "normals":
        floor = 1e-3 * variance.mean()
        shift, ratio = found_mean - mean, (found_variance + floor) / (variance + floor)
        return float(0.5 * (shift**2 / (variance + floor) + ratio - np.log(ratio) - 1).mean())
    if form == "std":
        return float(shift + ((np.sqrt(found_variance) - np.sqrt(variance)) ** 2).mean())
    return float(shift + ((found_variance - variance) ** 2).mean())


@pytest.mark.parametrize(
    ("form", "statistics"),
    [("l2", "batch"), *((form, statistics) for form in ("std", "mse", "normals") for statistics in ("batch", "image"))],
)
def test_statistics_of_layers_and_of_the_input(teacher: Teacher, form: str, statistics: str) -> None:
    x = images(BATCH)
    found = make(teacher, start=x, bn=form, statistics=statistics).synthesize()
    axes = (0, 2, 3) if statistics == "batch" else (2, 3)
    norms, *_ = read(teacher, x)
    layers = [deviation(value, mean, variance, form, axes) for value, mean, variance in norms]
    of_input = deviation(x.double().numpy(), np.zeros(3), np.ones(3), form, axes)
    wanted = {"bn": sum(layers) / (len(layers) if form in ("mse", "normals") else 1), "input": of_input}
    assert found == pytest.approx(wanted, rel=1e-4)


def test_per_image_statistics_are_another_loss(teacher: Teacher) -> None:
    x = images(BATCH) * 0.2 + torch.linspace(-1, 1, BATCH)[:, None, None, None]  # dark to bright, each without contrast
    batch, image = (make(teacher, start=x, statistics=kind).synthesize()["input"] for kind in ("batch", "image"))
    assert image > 1.5 * batch


def test_optimising_lowers_the_statistics_without_labels(teacher: Teacher) -> None:
    made = make(teacher, batch=32, steps=60)
    terms = [made.synthesize() for _ in range(60)]
    assert terms[-1]["bn"] < 0.5 * terms[0]["bn"]
    assert set(terms[0]) == {"bn", "input"}
    assert not len(made.labels)


def probabilities(logits: Array, labels: Tensor) -> Array:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return (e / e.sum(1, keepdims=True))[np.arange(len(logits)), labels.numpy()]


def test_label_terms(teacher: Teacher) -> None:
    x, weights = images(BATCH), {"ce": 1, "hard_sample": 10, "soft_label_error": 1, "input": 0}
    made = make(teacher, start=x, weights=weights, gamma=1.5, soft_from=0.6)
    found = made.synthesize()
    *_, logits = read(teacher, x)
    p = probabilities(logits, made.labels)
    half, targets = made.softened.numpy(), made.targets.numpy()
    assert len(half) == len(set(half.tolist())) == BATCH // 2
    assert ((targets >= 0.6) & (targets <= 1)).all()
    assert len(set(targets.tolist())) == BATCH // 2
    assert set(found) == {"bn", "ce", "hard_sample", "soft_label_error"}
    assert found["ce"] == pytest.approx(float(-np.log(p).mean()), rel=1e-4)
    assert found["hard_sample"] == pytest.approx(float(((1 - p) ** 1.5 * -np.log(p)).mean()), rel=1e-4)
    assert found["soft_label_error"] == pytest.approx(float(((p[half] - targets) ** 2).mean()), rel=1e-4)


def test_the_margin_is_to_the_mean_of_earlier_images_of_the_class(teacher: Teacher) -> None:
    made = make(teacher, weights={"margin": 1.0}, lower=0.3, upper=0.4, steps=1)
    assert made.synthesize()["margin"] == 0.0, "there are no earlier images"
    first, labels = made.best.clone(), made.labels.clone()
    x = images(BATCH, 7)
    made._start = lambda: x.clone()  # type: ignore[method-assign]
    found = made.synthesize()["margin"]
    _, earlier, _ = read(teacher, first)
    _, features, _ = read(teacher, x)
    hinges = []
    for feature, label in zip(features, made.labels.tolist(), strict=True):
        of_class = earlier[labels.numpy() == label]
        if len(of_class):
            centre = of_class.mean(0)
            d = 1 - feature @ centre / np.linalg.norm(feature) / np.linalg.norm(centre)
            hinges.append(max(0, 0.3 - d) + max(0, d - 0.4))
    assert len(hinges) >= 1
    assert found > 0
    assert found == pytest.approx(float(np.mean(hinges)), rel=1e-4)


def test_the_margin_reads_maps_where_a_convolution_ends_the_network() -> None:
    image = ImageSpec(shape=(1, 10, 7), mean=(0.5,), std=(0.5,), classes=3)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    made = make(Teacher.from_module(model, image), weights={"margin": 1.0}, steps=1)
    for _ in range(2):
        made.synthesize()
    assert made.sums.shape == (3, 4)
    assert float(made.counts.sum()) == 2 * BATCH


def test_the_margin_alone_needs_features() -> None:
    assert ZeroQConfig().needed == {"batchnorm"}
    assert ZeroQConfig.model_validate({"weights": {"margin": 1}}).needed == {"batchnorm", "classes", "features"}
    assert ZeroQConfig.model_validate({"weights": {"ce": 1}}).needed == {"batchnorm", "classes"}


def test_a_crop_shows_a_part_of_the_batch_enlarged(teacher: Teacher) -> None:
    height, width = 16, 16
    ramp = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).float()
    batch = torch.cat([ramp, torch.zeros(1, height, width)])[None].repeat(2, 1, 1, 1)
    made, areas, plain = make(teacher, crop=0.5), [], 0
    for _ in range(300):
        seen = made._transform(batch)
        assert seen.shape == batch.shape
        if seen is batch:
            plain += 1
            continue
        rows, columns = seen[0, 0, :, 0], seen[0, 1, 0]
        assert torch.equal(seen[0], seen[1]), "one part for the whole batch"
        top, bottom, left, right = (float(v) for v in (rows[0], rows[-1], columns[0], columns[-1]))
        assert 0 <= top <= bottom <= height - 1
        h, w = round(bottom - top) + 1, round(right - left) + 1
        areas.append(h * w / (height * width))
        box = batch[:, :, round(top) : round(top) + h, round(left) : round(left) + w]
        wanted = nn.functional.interpolate(box, (height, width), mode="bilinear", align_corners=False)
        assert torch.allclose(seen, wanted, atol=1e-4)
    assert 110 < plain < 190
    assert 0.4 < min(areas) < 0.6
    assert max(areas) > 0.9
    assert make(teacher)._transform(batch) is batch


def test_the_learning_rate_falls_on_a_plateau_unless_told_otherwise(teacher: Teacher) -> None:
    assert ZeroQConfig().decay == "plateau"
    assert ZeroQConfig.model_validate({"decay": "cosine"}).decay == "cosine"


@pytest.mark.parametrize("stop", [1, 6, 8])
def test_resuming_is_bitwise_the_same(teacher: Teacher, stop: int) -> None:
    options = {
        "weights": {"hard_sample": 1, "soft_label_error": 1, "margin": 1}, "crop": 0.5, "flip": True, "patience": 0.1,
    }  # fmt: skip
    straight, first, resumed = (make(teacher, seed, **options) for seed in (0, 0, 5))
    terms = [straight.synthesize() for _ in range(11)]
    before = [first.synthesize() for _ in range(stop)]
    state = first.state_dict()
    resumed.load_state_dict(state)
    assert before + [resumed.synthesize() for _ in range(11 - stop)] == terms
    wanted, found = straight.state_dict(), resumed.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lower": 0.9}, "must not be above upper"),
        ({"statistics": "image", "bn": "l2"}, "goes with bn: std, mse or normals"),
        ({"weights": {"bns": 1}}, "bns"),
        ({"crop": 1.5}, "crop"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ZeroQConfig.model_validate(options)


def test_vectors_have_no_per_image_statistics() -> None:
    image = ImageSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.5,), classes=IMAGE.classes)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Head(4), nn.BatchNorm1d(IMAGE.classes)).eval()
    made = make(Teacher.from_module(model, image), statistics="image")
    assert made.synthesize()["bn"] > 0


def test_a_teacher_of_vectors_alone_has_no_per_image_statistics() -> None:
    image = ImageSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.5,), classes=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).eval()
    teacher = Teacher.from_module(model, image, "vectors")
    assert make(teacher).synthesize()["bn"] > 0
    with pytest.raises(RecipeError, match=r"'vectors' normalises vectors only.*statistics: batch"):
        make(teacher, statistics="image")


class Again(nn.Module):
    """One BatchNorm, called once or twice."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.norm, self.head = times, nn.BatchNorm2d(3), Head(3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.norm(x) + 0.5
        return self.head(x)


@pytest.mark.parametrize("form", ["std", "mse"])
@pytest.mark.parametrize("statistics", ["batch", "image"])
def test_a_layer_that_is_called_twice_counts_twice(form: str, statistics: str) -> None:
    x = images(BATCH)
    model = Again(2).eval()
    made = make(Teacher.from_module(model, IMAGE), start=x, bn=form, statistics=statistics)
    norm, axes = model.norm, (0, 2, 3) if statistics == "batch" else (2, 3)
    inputs = [x, norm(x) + 0.5]
    centre, spread = (v.double().numpy() for v in (norm.running_mean, norm.running_var))  # type: ignore[union-attr]
    found = [deviation(v.detach().double().numpy(), centre, spread, form, axes) for v in inputs]
    assert made.synthesize()["bn"] == pytest.approx(sum(found) / (2 if form == "mse" else 1), rel=1e-4)
