"""Pixels under Adam: where they start, what the teacher sees, the best that is kept, and going on where it stopped."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfqkit.config.pools import PixelConfig
from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.drawing import Deck
from dfqkit.synthesis.pixels import PixelSynthesizer, Stage
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError, TeacherError
from tests._messages import names
from tests._toys import IMAGE, toy_teacher

SMALL = PixelConfig(method="probe", batch=4, steps=8)
DEMAND = Demand(training=6, fresh=2)


class Probe(PixelSynthesizer):
    """Cross entropy with assigned labels, and a record of everything."""

    of_batch = ("labels",)

    def _set_up(self) -> None:
        super()._set_up()
        self.weights = {"ce": 1.0, "size": 0.0}
        self.labels = torch.zeros(0, dtype=torch.int64)
        self.seen: list[Tensor] = []
        self.before: list[Tensor] = []

    def _draw(self) -> None:
        self.labels = self._assigned_labels()

    def _terms(self, images: Tensor, students: Sequence[nn.Module]) -> dict[str, Tensor]:
        self.seen.append(images.detach().clone())
        return {"ce": nn.functional.cross_entropy(self.teacher.model(images), self.labels)}

    def _image_terms(self, x: Tensor) -> dict[str, Tensor]:
        self.before.append(x.detach().clone())
        return {"size": x.square().mean()}


class Staged(Probe):
    """Two stages, the first on half of the size."""

    def _stages(self, steps: int) -> tuple[Stage, ...]:
        first = Stage(start=0, stop=steps // 2, jitter=0, clamp=False, betas=(0.5, 0.9), shrink=2)
        return first, Stage(start=steps // 2, stop=steps, jitter=0, clamp=True)


def probe(teacher: Teacher, seed: int = 0, kind: type[Probe] = Probe, **changes: object) -> Probe:
    return kind(SMALL.model_copy(update=changes), teacher, derive(seed, "probe"), DEMAND)


def codes(images: Tensor) -> Tensor:
    return (IMAGE.denormalize(images) * 255).round().clamp(0, 255).to(torch.uint8)


def test_the_best_batch_is_the_one_that_was_judged_best(teacher: Teacher) -> None:
    made = probe(teacher, lr=0.5)
    values = iter([5.0, 4.0, 1.0, 3.0, 2.0, 6.0, 7.0, 8.0])
    made._terms = lambda images, students: {"ce": images.mean() * 1e-6 + next(values)}  # type: ignore[method-assign]
    for _ in range(8):
        made.synthesize()
        if made.at:
            best = min(made.at, 3) - 1
            assert torch.equal(made.best, made.before[best])
            assert not torch.equal(made.best, made.x), "a reference, or compared with the successor"
    stored = torch.cat([made.training, made.fresh]).flatten(1)
    wanted = codes(made.before[2]).flatten(1)
    assert {tuple(row) for row in stored.tolist()} == {tuple(row) for row in wanted.tolist()}


def test_a_step_is_adam_on_the_weighted_sum(teacher: Teacher) -> None:
    made = probe(teacher, lr=0.1, clamp=False)
    made.weights = {"ce": 0.5, "size": 2.0}
    terms = made.synthesize()
    x = made.before[0].clone().requires_grad_(True)
    ce, size = nn.functional.cross_entropy(teacher.model(x), made.labels), x.square().mean()
    adam = torch.optim.Adam([x], lr=0.1)
    (0.5 * ce + 2.0 * size).backward()
    adam.step()
    assert terms == {"ce": ce.item(), "size": size.item()}
    assert torch.allclose(made.x, x, atol=1e-6)


def test_every_stage_has_its_own_adam_and_its_own_best(teacher: Teacher) -> None:
    made = probe(teacher, kind=Staged, lr=0.3)
    shapes, betas, ages = [], [], []
    for step in range(7):
        loss = made.synthesize()["ce"]
        shapes.append(tuple(made.seen[-1].shape[2:]))
        betas.append(made.optimizer.param_groups[0]["betas"])
        ages.append(int(made.optimizer.state[made.x]["step"]))
        if step == 4:
            assert made.best_loss == loss, "the first stage's best was carried over"
    assert shapes == [(8, 8)] * 4 + [(16, 16)] * 3
    assert betas == [(0.5, 0.9)] * 4 + [(0.9, 0.999)] * 3
    assert ages == [1, 2, 3, 4, 1, 2, 3]
    assert torch.equal(made.seen[0], nn.functional.avg_pool2d(made.before[0], 2))
    assert float((made.before[3] - made.high).max()) > 0, "clamped in a stage that does not"
    assert torch.equal(made.x.clamp(made.low, made.high), made.x)


def test_learning_rates(teacher: Teacher) -> None:
    constant = probe(teacher, lr=0.2)
    assert [constant._lr(k, 40) for k in range(40)] == [0.2] * 40
    rising = probe(teacher, lr=0.2, decay="cosine", warmup=4)
    rates = [rising._lr(k, 40) for k in range(40)]
    assert rates[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert rates[4:] == pytest.approx([0.1 * (1 + math.cos(math.pi * k / 36)) for k in range(36)])
    assert [round(rising._lr(k, 10), 4) for k in range(2)] == [0.2, 0.2], "the warm-up is at most a tenth"


def test_a_plateau_lowers_the_rate_and_not_below_the_floor(teacher: Teacher) -> None:
    made = probe(teacher, decay="plateau", patience=0.1, lr=0.01, steps=20)
    made._terms = lambda images, students: {"ce": images.sum() * 0 + 1}  # type: ignore[method-assign]
    rates = []
    for _ in range(19):
        made.synthesize()
        rates.append(made.optimizer.param_groups[0]["lr"])
    # The first value is a best; then the third step without one is more than 0.1 * 20.
    assert rates[:7] == pytest.approx([0.01] * 3 + [1e-3] * 3 + [1e-4])
    assert min(rates) == pytest.approx(1e-4)


def test_what_the_teacher_sees_is_shifted_and_mirrored(teacher: Teacher) -> None:
    made = probe(teacher, jitter=2, flip=True, lr=1e-3, steps=40)
    shifts = set()
    for _ in range(30):
        made.synthesize()
        seen, x = made.seen[-1], made.before[-1]
        shifts |= {
            (dy, dx, mirrored)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            for mirrored in (False, True)
            if torch.equal(x.roll((dy, dx), (2, 3)).flip(3) if mirrored else x.roll((dy, dx), (2, 3)), seen)
        }
    assert {mirrored for *_, mirrored in shifts} == {False, True}
    assert {dy for dy, *_ in shifts} == {dx for _, dx, _ in shifts} == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize(("side", "last"), [(64, False), (72, True)])
def test_large_images_have_their_channels_last(side: int, last: bool) -> None:
    image = dataclasses.replace(IMAGE, shape=(3, side, side))
    made = probe(dataclasses.replace(toy_teacher("residual"), image=image))
    made.synthesize()
    assert made.seen[-1].is_contiguous(memory_format=torch.channels_last) == last
    assert torch.equal(made.seen[-1], made.before[-1])


@pytest.mark.parametrize("start", ["normal", "uniform", "procedural"])
def test_pixels_start_and_stay_within_each_channels_bounds(teacher: Teacher, start: str) -> None:
    made = probe(teacher, start=start, lr=5.0, batch=16)
    for _ in range(4):
        made.synthesize()
    for batch in (made.before[0], made.x.detach()):
        plain = IMAGE.denormalize(batch)
        assert float(plain.min()) > -1e-6
        assert float(plain.max()) < 1 + 1e-6
    first = IMAGE.denormalize(made.before[0])
    at_bounds = ((first < 1e-6) | (first > 1 - 1e-6)).double().mean()
    assert (at_bounds > 0.01) == (start != "uniform")
    alike = float((first[..., 1:] - first[..., :-1]).abs().mean())
    assert (alike < 0.15) == (start == "procedural")
    assert float(probe(teacher, clamp=False, batch=64)._start().std()) == pytest.approx(1, abs=0.02)


def test_labels_are_even_over_batches(teacher: Teacher) -> None:
    made = probe(teacher, batch=4)
    drawn = torch.cat([made._assigned_labels() for _ in range(5)])
    assert torch.bincount(drawn).tolist() == [4] * 5
    assert drawn.tolist() != sorted(drawn.tolist())


def test_labels_come_as_often_as_the_biases_of_the_head_say(teacher: Teacher) -> None:
    shares = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625])
    (head,) = (layer for layer in teacher.model.modules() if isinstance(layer, nn.Linear))
    assert head.bias is not None
    before = head.bias.detach().clone()
    with torch.no_grad():
        head.bias.copy_(shares.log() + 3.0)  # what all of them share says nothing
    try:
        made = probe(teacher, batch=25, classes="head_bias")
        drawn = torch.cat([made._assigned_labels() for _ in range(2)])
        assert torch.bincount(drawn).tolist() == [25, 13, 6, 3, 3]  # 12.5 has the largest rest
        assert drawn.tolist() != sorted(drawn.tolist())
        head.bias = None
        with pytest.raises(TeacherError, match=r"has none. Use classes: even"):
            probe(teacher, classes="head_bias")
    finally:
        head.bias = nn.Parameter(before)
    assert "linear_head" in SMALL.model_copy(update={"classes": "head_bias"}).needed - SMALL.needed


def test_the_first_steps_at_half_the_size_cost_a_quarter(teacher: Teacher) -> None:
    made, at = probe(teacher, half_size=0.5, jitter=2), []
    for _ in range(8):
        made.synthesize()
        at.append(tuple(made.seen[-1].shape[2:]))
    assert at == [(8, 8)] * 4 + [(16, 16)] * 4
    first = nn.functional.avg_pool2d(made.before[1], 2)
    assert torch.equal(made.seen[1].flatten().sort().values, first.flatten().sort().values)  # shifted, nothing else
    assert made.sample(1).shape == (1, *IMAGE.shape)
    assert [stage.jitter for stage in made._schedule(8)] == [1, 2]
    assert [stage.stop for stage in probe(teacher, kind=Staged, half_size=0.75)._schedule(8)] == [4, 6, 8]


def test_a_deck_deals_everything_once() -> None:
    deck = Deck(5, derive(0))
    assert sorted(deck.deal(3).tolist() + deck.deal(2).tolist()) == [0, 1, 2, 3, 4]
    assert sorted(deck.deal(10).tolist()) == sorted([0, 1, 2, 3, 4] * 2)
    assert sorted(Deck(2, derive(0), torch.tensor([7, 9, 8])).deal(4).tolist()) == [7, 7, 9, 9]
    with pytest.raises(ValueError, match="1 items of none"):
        Deck(0, derive(0)).deal(1)
    assert len(Deck(0, derive(0)).deal(0)) == 0


@pytest.mark.parametrize(
    ("terms", "weight", "said"),
    [
        ([1.0, math.nan], 1.0, r"ce is nan in step 2 of batch 1.* Lower lr \(now 0.1\) in its section"),
        ([1.0, 2.0, math.inf], 1.0, "ce is inf in step 3 of batch 1"),
        ([1.0, 2.0], 3e38, "the weighted sum of all terms is inf in step 2 of batch 1"),
    ],
)
def test_a_batch_that_diverges_is_stopped(teacher: Teacher, terms: list[float], weight: float, said: str) -> None:
    made = probe(teacher)
    made.weights["ce"] = weight
    values = iter(terms)
    made._terms = lambda images, students: {"ce": images.mean() * 0 + next(values)}  # type: ignore[method-assign]
    for _ in terms[1:]:
        made.synthesize()
    with pytest.raises(ArtefactError, match=f"Synthesis 'probe' has diverged: {said}"):
        made.synthesize()


@pytest.fixture
def similar(tmp_path: Path) -> Path:
    path = tmp_path / "similar.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    np.savez(path, images=pixels)
    return path


def test_batches_start_from_given_images_each_once(teacher: Teacher, similar: Path) -> None:
    made = probe(teacher, start_from=str(similar), steps=1)
    made.synthesize()
    labels = made.labels
    made.synthesize()
    started = codes(torch.cat(made.before)).permute(0, 2, 3, 1).flatten(1)
    given = np.load(similar)["images"].reshape(8, -1)
    assert {tuple(row) for row in started.tolist()} == {tuple(row) for row in given.tolist()}
    assert torch.equal(labels, teacher.logits(made.before[0]).argmax(1)), "enriches what the teacher sees in them"


def test_no_given_image_starts_two(teacher: Teacher, similar: Path) -> None:
    given = np.load(similar)["images"]
    np.savez(similar, images=np.concatenate([given[:3], given]))  # copies of three
    made = probe(teacher, start_from=str(similar), steps=1, batch=6)
    batches = []
    for _ in range(3):
        dealt = made.classes.rest
        made.synthesize()
        batches.append((made.before[-1], made.labels, len(dealt)))
    known = {image.tobytes() for image in given}
    started = [[code.permute(1, 2, 0).numpy().tobytes() for code in codes(batch)] for batch, *_ in batches]
    assert [sum(code in known for code in batch) for batch in started] == [6, 2, 0]
    assert set(started[0]) | set(started[1][:2]) == known
    assert len({code for batch in started for code in batch}) == 18
    seen = teacher.logits(batches[1][0]).argmax(1)
    assert torch.equal(batches[1][1][:2], seen[:2])
    noise = [*batches[1][1][2:].tolist(), *batches[2][1].tolist()]
    assert sorted(noise[:5]) == sorted(noise[5:10]) == [0, 1, 2, 3, 4], "labels of noise are dealt"


def test_given_images_are_found_checked_and_kept_out_of_grading(
    teacher: Teacher, similar: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = SMALL.model_copy(update={"start_from": "similar.npz"})
    assert config.resolved(lambda name: str(similar.parent / name)).start_from == str(similar)
    assert SMALL.resolved(lambda name: name + "!").start_from is None
    torchvision = config.model_copy(update={"start_from": "torchvision:CIFAR10:/x"})
    assert torchvision.resolved(lambda name: name + "!") == torchvision
    grading = config.grading()
    assert isinstance(grading, PixelConfig)
    assert grading.start_from is None
    with caplog.at_level(logging.WARNING):
        probe(teacher, start_from=str(similar))
        assert not caplog.records
        Probe(SMALL.model_copy(update={"start_from": str(similar)}), teacher, derive(0), Demand(training=9))
    names(caplog.text, "8 different images", "12")
    np.savez(similar, images=np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(ArtefactError, match="8x8"):
        probe(teacher, start_from=str(similar))
    assert probe(teacher, start_from=str(similar), start_resize=16).starts is not None


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 8, 11])
@pytest.mark.parametrize("given", [0, 6, 8])
def test_resuming_is_bitwise_the_same(teacher: Teacher, similar: Path, stop: int, given: int) -> None:
    np.savez(similar, images=np.load(similar)["images"][: max(given, 1)])
    changes = {
        "jitter": 2, "flip": True, "decay": "plateau", "patience": 0.05, "lr": 1.0,
        "start_from": str(similar) if given else None, "half_size": 0.75 if given == 6 else 0.0,
        "classes": "head_bias" if given == 6 else "even",
    }  # fmt: skip
    straight, first, resumed = (probe(teacher, seed, Staged, **changes) for seed in (0, 0, 9))
    terms = [straight.synthesize() for _ in range(15)]
    before = [first.synthesize() for _ in range(stop)]
    state = first.state_dict()
    resumed.load_state_dict(state)
    after = [resumed.synthesize() for _ in range(15 - stop)]
    assert before + after == terms
    found, wanted = resumed.state_dict(), straight.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert resumed.best_loss == straight.best_loss
    assert torch.equal(resumed.best, straight.best)


def test_the_teacher_gets_no_gradient(teacher: Teacher) -> None:
    made = probe(teacher)
    made.synthesize()
    assert all(p.grad is None for p in teacher.model.parameters())
    assert made.x.grad is None
    assert made.cost == 4
