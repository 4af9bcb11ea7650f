"""A stored set as a source: no image plays two parts, and only a set that is whole and fits is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfqkit.config.synthesis import Demand
from dfqkit.images import ImageBank
from dfqkit.run.bank_folder import BankFolder
from dfqkit.synthesis.methods.bank import BankConfig
from dfqkit.synthesis.methods.bank.method import Bank
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import sealed
from tests._messages import raises_naming
from tests._toys import IMAGE, toy_teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return toy_teacher("option_a")


def write_set(path: Path, teacher: Teacher, images: Tensor, *, shard: int = 8, wanted: int | None = None) -> Path:
    """A set of uint8 images (N, C, H, W), as the writer of sets leaves it."""
    request = {
        "wanted": wanted or len(images), "shard": shard, "image": teacher.image.to_dict(), "source": "test",
        "teacher": {"name": teacher.name, "sha256": teacher.sha256},
    }  # fmt: skip
    with BankFolder(path, request, {}) as folder:
        for start in range(0, len(images), shard):
            batch = teacher.image.normalize(images[start : start + shard].float() / 255)
            folder.add(ImageBank.collect(teacher, iter([batch]), "test"), {}, {"cost": 10 * (start + len(batch))})
        if wanted is None:
            folder.finish([])
    return path


def numbered(n: int) -> Tensor:
    """Images uint8 (n, C, H, W), image i all of level i."""
    return torch.arange(n, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, *IMAGE.shape).contiguous()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, teacher: Teacher) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "set", teacher, numbered(60))


def make(path: Path, teacher: Teacher, demand: Demand, seed: int = 0, **fields: Any) -> Bank:
    config = BankConfig(path=str(path), **fields)
    return Bank(config, teacher, torch.Generator().manual_seed(seed), demand)


def numbers(images: Tensor) -> list[int]:
    codes = (IMAGE.denormalize(images) * 255).round().to(torch.uint8)
    assert (codes == codes[:, :1, :1, :1]).all()
    return codes[:, 0, 0, 0].tolist()


def parts(path: Path, teacher: Teacher, main: Demand, grading: Demand) -> tuple[set[int], set[int], set[int]]:
    """Numbers of all training, fresh and grading images of a run."""
    own = make(path, teacher, Demand(training=main.training, fresh=main.fresh, beside=grading))
    config = BankConfig.model_validate(own.config.grading().model_dump())
    other = Bank(
        config, teacher, torch.Generator().manual_seed(9), Demand(training=0, fresh=grading.fresh, beside=main)
    )
    training = numbers(own.training_batch(len(own.training)))
    fresh, graded = numbers(own.sample(main.fresh)), numbers(other.sample(grading.fresh))
    for found in (training, fresh, graded):
        assert len(set(found)) == len(found)
    return set(training), set(fresh), set(graded)


@pytest.mark.parametrize(
    ("training", "fresh", "grading"), [(20, 10, 10), (30, 20, 10), (1, 0, 0), (1, 1, 58), (60, 0, 0), (7, 13, 3)]
)
def test_no_image_plays_two_parts(path: Path, teacher: Teacher, training: int, fresh: int, grading: int) -> None:
    trained, held_out, graded = parts(
        path, teacher, Demand(training=training, fresh=fresh), Demand(training=0, fresh=grading)
    )
    assert (len(held_out), len(graded)) == (fresh, grading)
    assert len(trained) == 60 - fresh - grading >= training
    assert not trained & held_out | trained & graded | held_out & graded


def test_every_part_is_of_the_whole_set(path: Path, teacher: Teacher) -> None:
    for part in parts(path, teacher, Demand(training=20, fresh=10), Demand(training=0, fresh=10)):
        assert min(part) < 10
        assert max(part) > 50


def test_images_come_as_they_are_stored(path: Path, teacher: Teacher) -> None:
    stored = next(ImageBank.load(path).batches(60))[0]
    bank = make(path, teacher, Demand(training=0, fresh=60))
    assert torch.equal(torch.cat([bank.sample(13), bank.sample(47)]), stored)
    assert bank.available == 0
    with raises_naming(ArtefactError, "asked for 1", "0 of 60"):
        bank.sample(1)


def test_every_training_image_comes_once_before_any_comes_again(path: Path, teacher: Teacher) -> None:
    bank = make(path, teacher, Demand(training=40, fresh=20))
    epochs = numbers(torch.cat([bank.training_batch(n) for n in (16, 24, 70, 10)]))
    first, second, third = epochs[:40], epochs[40:80], epochs[80:]
    assert set(first) == set(second) == set(third)
    assert len(set(first)) == 40
    assert first != second != third


def test_asking_for_more_brings_none(path: Path, teacher: Teacher) -> None:
    source = make(path, teacher, Demand(training=20, fresh=10))
    source.sample(4)
    source.ask(50)
    assert source.available == 6


def test_the_seed_orders_training(path: Path, teacher: Teacher) -> None:
    one, same, other = (
        numbers(make(path, teacher, Demand(training=40), seed).training_batch(40)) for seed in (0, 0, 1)
    )
    assert one == same != other


def test_equal_images_count_once(tmp_path: Path, teacher: Teacher) -> None:
    path = write_set(tmp_path / "set", teacher, torch.cat([numbered(10), numbered(12)]))
    bank = make(path, teacher, Demand(training=6, fresh=6))
    found = [*numbers(bank.training_batch(6)), *numbers(bank.sample(6))]
    assert sorted(found) == list(range(12))
    with raises_naming(ArtefactError, "12 different", "13"):
        make(path, teacher, Demand(training=7, fresh=6))


def test_it_costs_nothing_and_knows_what_the_set_cost(path: Path, teacher: Teacher) -> None:
    bank = make(path, teacher, Demand(training=10))
    assert (bank.warmup_rounds, bank.synthesize(), bank.cost, bank.set_cost) == (0, {}, 0, 600)
    lone = make(path / "shard-00000.safetensors", teacher, Demand(training=8))
    assert (lone.set_cost, len(lone.training)) == (None, 8)


def test_it_continues_where_it_was(path: Path, teacher: Teacher) -> None:
    demand = Demand(training=30, fresh=20)
    bank = make(path, teacher, demand)
    bank.training_batch(17)
    bank.sample(3)
    state = bank.state_dict()
    expected = [bank.training_batch(40), bank.sample(17)]
    again = make(path, teacher, demand, seed=5)
    again.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip([again.training_batch(40), again.sample(17)], expected, strict=True))


def test_it_does_not_continue_with_another_set(path: Path, tmp_path: Path, teacher: Teacher) -> None:
    other = write_set(tmp_path / "set", teacher, numbered(60).flip(0))
    state = make(path, teacher, Demand(training=30)).state_dict()
    with raises_naming(ArtefactError, "this run began with"):
        make(other, teacher, Demand(training=30)).load_state_dict(state)


class TestRefusals:
    def test_too_few_images(self, path: Path, teacher: Teacher) -> None:
        with pytest.raises(
            ArtefactError, match=r"has 60 different images, but 61 are needed: 40 to train on, 11 fresh ones and 10 for"
        ):
            make(path, teacher, Demand(training=40, fresh=11, beside=Demand(training=0, fresh=10)))

    def test_another_teachers_set_unless_it_is_wanted(self, path: Path) -> None:
        other = toy_teacher("option_a", seed=1)
        with pytest.raises(ArtefactError, match=r"was made for another teacher .*synthesis.other_teacher=true"):
            make(path, other, Demand(training=10))
        assert len(make(path, other, Demand(training=10), other_teacher=True).training) == 60

    def test_images_of_another_shape_even_then(self, tmp_path: Path, teacher: Teacher) -> None:
        path = tmp_path / "set"
        write_set(path, teacher, numbered(8))
        bank = ImageBank.load(path)
        image = IMAGE.from_dict(IMAGE.to_dict() | {"shape": [3, 8, 8]})
        small = ImageBank(
            images=bank.images[..., :8, :8], answers=bank.answers, image=image, teacher=teacher.sha256, source="x"
        )
        small.save(tmp_path / "small")
        with raises_naming(ArtefactError, "(3, 8, 8)", "option_a", "(3, 16, 16)"):
            make(tmp_path / "small", teacher, Demand(training=4), other_teacher=True)

    @pytest.mark.parametrize("damage", ["missing", "truncated", "changed", "miscounted", "newer"])
    def test_a_set_that_is_not_whole(self, damage: str, tmp_path: Path, teacher: Teacher) -> None:
        path = write_set(tmp_path / "set", teacher, numbered(20))
        shard, facts = path / "shard-00001.safetensors", json.loads((path / "set.json").read_text())
        data = bytearray(shard.read_bytes())
        message = {
            "missing": r"cut short", "truncated": r"Cannot read the image bank", "changed": r"was changed since",
            "miscounted": r"its shards have 20 images, it says 19", "newer": r"upgrade",
        }[damage]  # fmt: skip
        if damage == "missing":
            shard.unlink()
        elif damage == "truncated":
            shard.write_bytes(data[:-5])
        elif damage == "changed":
            data[-7] ^= 8
            shard.write_bytes(data)
        else:
            facts |= {"n": 19} if damage == "miscounted" else {"schema": 2}
            (path / "set.json").write_text(json.dumps(sealed(facts)))
        with pytest.raises(ArtefactError, match=message):
            make(path, teacher, Demand(training=4))

    def test_what_is_no_set(self, tmp_path: Path, teacher: Teacher) -> None:
        with pytest.raises(ArtefactError, match=r"is not an image set"):
            make(tmp_path, teacher, Demand(training=4))

    def test_an_unfinished_set_serves_with_a_warning(
        self, tmp_path: Path, teacher: Teacher, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write_set(tmp_path / "set", teacher, numbered(16), wanted=100)
        assert len(make(path, teacher, Demand(training=10)).training) == 16
        assert "is not finished: 16 of 100 images" in caplog.text

    def test_without_training_images_none_are_drawn(self, path: Path, teacher: Teacher) -> None:
        with pytest.raises(ArtefactError, match=r"Demand.training above 0"):
            make(path, teacher, Demand(training=0, fresh=5)).training_batch(1)


def test_the_path_is_found_where_recipes_look() -> None:
    found = BankConfig(path="set", low_pass=0.5).resolved(lambda name: f"/assets/{name}")
    assert (found.path, found.low_pass, found.part) == ("/assets/set", 0.5, "training")
    assert found.needed == {"images"}
