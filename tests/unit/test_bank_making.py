"""Portable sets: the images of the source, a shard in memory at a time, and the same bits after any interruption."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, fx

from dfqkit.config.reading import load_recipe
from dfqkit.config.recipe import Recipe
from dfqkit.config.synthesis import SynthesizerConfig
from dfqkit.images import ImageBank
from dfqkit.progress import silent
from dfqkit.run import bank_folder, bank_making
from dfqkit.run.bank_folder import BankFolder
from dfqkit.run.bank_making import BankPlan, make_bank
from dfqkit.run.context import provisional_student, teacher_of
from dfqkit.run.lock import FolderLock
from dfqkit.synthesis.base import Synthesizer
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError, BusyError
from dfqkit_export.files import sealed
from dfqkit_export.images.stored import StoredBank
from tests._messages import raises_naming
from tests._methods import added

GENERATOR = ["synthesis.warmup=3", "synthesis.batch=8", "synthesis.width=4", "synthesis.latent=4"]
POOL = ["synthesis={method: zeroq, batch: 10, steps: 3}"]
ADAPTIVE = ["synthesis={method: deepinversion-adaptive, batch: 10, steps: 1}"]
NOISE = "{method: noise, share: 0.5, accept_noise: true}"
MIXED = [f"synthesis={{low_pass: 0.5, sources: [{{method: zeroq, batch: 10, steps: 3}}, {NOISE}]}}"]


class CheapConfig(SynthesizerConfig):
    implementation: ClassVar[str] = f"{__name__}:Cheap"

    method: Literal["cheap"] = "cheap"


class Cheap(Synthesizer):
    """Noise at no cost."""

    warmup_rounds = 0

    def synthesize(self, students: Any = ()) -> dict[str, float]:
        return {}

    def sample(self, n: int) -> Tensor:
        return torch.randn((n, *self.teacher.image.shape), generator=self.rng)

    def state_dict(self) -> dict[str, Tensor]:
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])


@pytest.fixture(autouse=True, scope="module")
def _cheap_is_known() -> Iterator[None]:
    with added(cheap=f"{__name__}:CheapConfig"):
        yield


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe("digits/dfq-w8a8-ort", ["bank.batch=8", *overrides])


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return teacher_of(recipe_of())


@pytest.fixture(autouse=True, scope="module")
def _students_are_made_once() -> Iterator[None]:
    """Making one takes longer than all else here, and it never changes."""
    made: list[fx.GraphModule] = []

    def cached(recipe: Recipe, teacher: Teacher, device: torch.device) -> fx.GraphModule:
        if not made:
            made.append(provisional_student(recipe, teacher, device))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank_making, "provisional_student", cached)
        yield


def make(
    out: Path, teacher: Teacher, n: int, shard: int = 20, overrides: list[str] = GENERATOR, recipe: Recipe | None = None
) -> StoredBank:
    plan = BankPlan(n=n, shard=shard, command="dfqkit synthesize")
    return make_bank(recipe or recipe_of(*overrides), out, plan, device="cpu", progress=silent(), teacher=teacher)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("overrides", [GENERATOR, POOL, ADAPTIVE, MIXED], ids=["dfq", "zeroq", "adaptive", "mixture"])
def test_any_source_fills_a_set(overrides: list[str], tmp_path: Path, teacher: Teacher) -> None:
    images = make(tmp_path / "set", teacher, 50, overrides=overrides)
    images.verify()
    assert [shard.n for shard in images.shards] == [20, 20, 10]
    assert sorted(contents(tmp_path / "set")) == ["set.json", *(f"shard-0000{i}.safetensors" for i in range(3))]
    assert images.spec == teacher.image
    for codes, answers in images.each_shard():
        found = teacher.logits(teacher.image.normalize(torch.from_numpy(codes).float() / 255))
        torch.testing.assert_close(torch.from_numpy(answers["logits"]), found, rtol=1e-4, atol=1e-4)
    facts, recipe = images.facts, recipe_of(*overrides)
    assert (facts["n"], facts["wanted"], facts["shard"], facts["seed"]) == (50, 50, 20, 0)
    assert facts["synthesis"] == recipe.synthesis.model_dump(mode="json")
    assert facts["source"] == facts["synthesis"]["method"] == images.source
    assert facts["teacher"] == {"name": teacher.name, "sha256": teacher.sha256}
    assert facts["recipe"] == {"name": recipe.name, "sha256": recipe.digest()}
    assert facts["command"] == "dfqkit synthesize"


def test_a_generators_images_are_those_it_draws(tmp_path: Path, teacher: Teacher) -> None:
    from dfqkit.config.synthesis import Demand
    from dfqkit.seeds import derive
    from dfqkit.synthesis.build import build_synthesizer

    images = make(tmp_path / "set", teacher, 12, shard=8)
    config: Any = recipe_of(*GENERATOR).synthesis
    maker = build_synthesizer(config, teacher, derive(0, "synthesis"), Demand(training=0, fresh=8))
    for _ in range(3):
        maker.synthesize()
    for (codes, _), n in zip(images.each_shard(), (8, 4), strict=True):
        expected = (teacher.image.denormalize(maker.sample(n)) * 255).round().clamp(0, 255).to(torch.uint8)
        assert torch.equal(torch.from_numpy(codes), expected)
    assert images.facts["cost"] == maker.cost == 3 * 8


@pytest.mark.parametrize(("overrides", "batches", "steps"), [(POOL, 5, 3), (ADAPTIVE, 5, 1)])
def test_a_source_of_batches_makes_as_many_as_are_needed(
    overrides: list[str], batches: int, steps: int, tmp_path: Path, teacher: Teacher
) -> None:
    images = make(tmp_path / "set", teacher, 50, shard=15, overrides=overrides)
    assert images.facts["cost"] == batches * 10 * steps
    whole = make(tmp_path / "whole", teacher, 50, shard=50, overrides=overrides)
    assert (images.take(range(50))[0] == whole.take(range(50))[0]).all()


def test_only_the_opponent_that_is_needed_is_made(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = bank_making.provisional_student
    monkeypatch.setattr(bank_making, "provisional_student", lambda *given: made.append(real(*given)) or made[-1])
    make(tmp_path / "a", teacher, 10, overrides=POOL)
    assert made == []
    make(tmp_path / "b", teacher, 10, overrides=ADAPTIVE)
    assert len(made) == 1


class TestMemory:
    @pytest.mark.parametrize("n", [16, 128])
    def test_one_shard_is_in_memory_whatever_their_number(
        self, n: int, tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alive, most = [], [0]

        class Spy(ImageBank):
            @classmethod
            def collect(cls, *given: Any) -> ImageBank:
                bank = ImageBank.collect(*given)
                alive.append(weakref.ref(bank.images))
                most.append(sum(reference() is not None for reference in alive))
                return bank

        monkeypatch.setattr(bank_making, "ImageBank", Spy)
        make(tmp_path / "set", teacher, n, shard=16, overrides=["synthesis={method: cheap}"])
        assert len(alive) == n // 16
        assert max(most) == 1

    def test_a_source_of_batches_keeps_no_more_either(
        self, tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = []
        real = BankFolder.save_state

        def spied(self: BankFolder, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
            kept.append(sum(tensor.numel() for tensor in tensors.values()))
            real(self, tensors, values)

        monkeypatch.setattr(BankFolder, "save_state", spied)
        make(tmp_path / "set", teacher, 100, shard=20, overrides=POOL)
        assert len(kept) == 5
        assert max(kept) == min(kept)


class Stop(KeyboardInterrupt):
    pass


def stopping(after: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, interrupted in its ``after``-th call."""
    calls = iter(range(10_000))

    def stopped(*given: Any, **named: Any) -> Any:
        if next(calls) == after:
            raise Stop
        return real(*given, **named)

    return stopped


MOMENTS: dict[str, tuple[Any, str, int]] = {
    "warm-up": (bank_making.Making, "_round", 2),
    "first": (ImageBank, "collect", 0),
    "second": (ImageBank, "collect", 1),
    "listing": (BankFolder, "_write_list", 2),
    "listing the last": (BankFolder, "_write_list", 3),
    "listing warnings": (BankFolder, "_write_list", 4),
    "shard": (bank_folder, "sha256_of_file", 1),
    "end": (BankFolder, "finish", 0),
}


@pytest.mark.parametrize(
    ("overrides", "moment"),
    [
        *((GENERATOR, moment) for moment in MOMENTS),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                *((POOL, moment) for moment in ("warm-up", "second", "listing")),
                *((MIXED, moment) for moment in ("warm-up", "second", "listing the last")),
                (ADAPTIVE, "second"),
            )
        ),
    ],
)
def test_an_interrupted_set_becomes_the_same_set(
    overrides: list[str], moment: str, tmp_path: Path, teacher: Teacher
) -> None:
    owner, name, after = MOMENTS[moment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank_making, "CHECKPOINT_SECONDS", 0.0)
        whole = contents(make(tmp_path / "whole", teacher, 50, overrides=overrides).path)
        with pytest.MonkeyPatch.context() as stopper:
            stopper.setattr(owner, name, stopping(after, getattr(owner, name)))
            with pytest.raises(Stop):
                make(tmp_path / "set", teacher, 50, overrides=overrides)
        if (tmp_path / "set" / "set.json").exists():
            StoredBank.open(tmp_path / "set").verify()  # valid at every moment
        assert "state.safetensors" in contents(tmp_path / "set")
        make(tmp_path / "set", teacher, 50, overrides=overrides)
    assert contents(tmp_path / "set") == whole


def test_what_is_complete_is_not_made_again(tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "set", teacher, 50)
    monkeypatch.setattr(ImageBank, "collect", stopping(1, ImageBank.collect))
    monkeypatch.setattr(BankFolder, "finish", stopping(0, BankFolder.finish))
    before = contents(tmp_path / "set")
    assert len(make(tmp_path / "set", teacher, 50)) == 50
    assert contents(tmp_path / "set") == before


def interrupted(out: Path, teacher: Teacher) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageBank, "collect", stopping(2, ImageBank.collect))
        with pytest.raises(Stop):
            make(out, teacher, 50)
    assert len(StoredBank.open(out)) == 40


class TestRefusals:
    @pytest.mark.parametrize(
        ("n", "shard", "overrides", "message"),
        [
            (51, 20, [], r"holds another set \(wanted 50 there, 51 here\)"),
            (50, 25, [], r"shard 20 there, 25 here"),
            (50, 20, ["seed=1"], r"seed 0 there, 1 here; recipe"),
            (50, 20, ["synthesis.lr=0.5"], r"synthesis "),
        ],
    )
    def test_another_set_is_not_continued(
        self, n: int, shard: int, overrides: list[str], message: str, tmp_path: Path, teacher: Teacher
    ) -> None:
        interrupted(tmp_path / "set", teacher)
        before = contents(tmp_path / "set")
        with pytest.raises(ArtefactError, match=message):
            make(tmp_path / "set", teacher, n, shard=shard, overrides=[*GENERATOR, *overrides])
        assert contents(tmp_path / "set") == before

    def test_a_changed_shard_is_not_continued(self, tmp_path: Path, teacher: Teacher) -> None:
        interrupted(tmp_path / "set", teacher)
        (tmp_path / "set" / "shard-00001.safetensors").write_bytes(b"x")
        with raises_naming(ArtefactError, "shard-00001.safetensors"):
            make(tmp_path / "set", teacher, 50)
        (tmp_path / "set" / "state.safetensors").unlink()  # what the message says
        make(tmp_path / "set", teacher, 50).verify()

    def test_all_shards_and_no_state_is_not_taken_for_finished(self, tmp_path: Path, teacher: Teacher) -> None:
        whole = contents(make(tmp_path / "whole", teacher, 50).path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BankFolder, "finish", stopping(0, BankFolder.finish))
            with pytest.raises(Stop):
                make(tmp_path / "set", teacher, 50)
        damaged = tmp_path / "set" / "shard-00001.safetensors"
        data = bytearray(damaged.read_bytes())
        data[-1] ^= 1
        damaged.write_bytes(data)
        with raises_naming(ArtefactError, "delete", "state.safetensors"):
            make(tmp_path / "set", teacher, 50)
        (tmp_path / "set" / "state.safetensors").unlink()  # what the message says
        make(tmp_path / "set", teacher, 50).verify()
        assert contents(tmp_path / "set") == whole

    def test_a_set_that_says_finished_is_not_judged_by_a_state_left_behind(
        self, tmp_path: Path, teacher: Teacher
    ) -> None:
        whole = contents(make(tmp_path / "set", teacher, 50).path)
        assert json.loads(whole["set.json"])["finished"] is True
        (tmp_path / "set" / "state.safetensors").write_bytes(b"a kill came before it was dropped")
        make(tmp_path / "set", teacher, 50)
        assert contents(tmp_path / "set") == whole

    def test_a_damaged_state(self, tmp_path: Path, teacher: Teacher) -> None:
        interrupted(tmp_path / "set", teacher)
        (tmp_path / "set" / "state.safetensors").write_bytes(b"x")
        with pytest.raises(ArtefactError, match=r"Cannot continue from"):
            make(tmp_path / "set", teacher, 50)

    def test_a_folder_with_other_files(self, tmp_path: Path, teacher: Teacher) -> None:
        (tmp_path / "mine.txt").write_text("x")
        with raises_naming(ArtefactError, "mine.txt"):
            make(tmp_path, teacher, 50)
        assert list(contents(tmp_path)) == ["mine.txt"]

    def test_a_folder_that_another_process_works_in(self, tmp_path: Path, teacher: Teacher) -> None:
        interrupted(tmp_path / "set", teacher)
        lock = FolderLock(tmp_path / "set")
        lock.acquire()
        with pytest.raises(BusyError, match=r"Another process"):
            make(tmp_path / "set", teacher, 50)
        lock.release()

    def test_no_room(self, tmp_path: Path, teacher: Teacher) -> None:
        with pytest.raises(ArtefactError, match=r"MB are needed"):
            make(tmp_path / "set", teacher, 10**15)

    def test_a_source_that_runs_dry(self, tmp_path: Path, teacher: Teacher) -> None:
        stored = make(tmp_path / "set", teacher, 50)
        recipe = recipe_of(f"synthesis={{method: bank, path: {stored.path}}}")
        again = make(tmp_path / "again", teacher, 50, recipe=recipe)
        assert [shard.sha256 for shard in again.shards] != [shard.sha256 for shard in stored.shards]  # another source
        assert (again.take(range(50))[0] == stored.take(range(50))[0]).all()
        with raises_naming(ArtefactError, "50 different", "51"):
            make(tmp_path / "more", teacher, 51, recipe=recipe)
        assert not (tmp_path / "more").exists()

    def test_a_source_that_stops_giving(
        self, tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left = iter((20, 20, 20, 20, 10, 10, 10, 10, 10))
        monkeypatch.setattr(Cheap, "available", property(lambda _self: next(left)))
        with raises_naming(ArtefactError, "cheap", "90 of the 100"):
            make(tmp_path / "set", teacher, 100, shard=20, overrides=["synthesis={method: cheap}"])


class TestWarnings:
    def test_what_is_known_of_the_source_is_there_from_the_beginning(self, tmp_path: Path, teacher: Teacher) -> None:
        overrides = ["synthesis={method: noise, accept_noise: true}"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ImageBank, "collect", stopping(1, ImageBank.collect))
            with pytest.raises(Stop):
                make(tmp_path / "set", teacher, 50, overrides=overrides)
        facts = StoredBank.open(tmp_path / "set").facts
        assert (facts["n"], facts["finished"], facts["real_data"]) == (20, False, None)
        assert facts["warnings"][0].startswith("Random noise took the place of images")

    def test_a_set_made_of_sets_says_what_they_say(self, tmp_path: Path, teacher: Teacher) -> None:
        first = make(tmp_path / "first", teacher, 20, overrides=["synthesis={method: noise, accept_noise: true}"])
        listed = tmp_path / "first" / "set.json"
        listed.write_text(json.dumps(sealed(dict(first.facts) | {"real_data": "similar images"})))
        second = make(tmp_path / "second", teacher, 10, overrides=[f"synthesis={{method: bank, path: {first.path}}}"])
        assert second.facts["real_data"] == "similar images"
        assert second.facts["warnings"][0].startswith("Image set 'first': Random noise took the place of images")

    def test_classes_without_images_and_copies_are_named(
        self, tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Cheap, "sample", lambda self, n: torch.zeros((n, *self.teacher.image.shape)))
        facts = make(tmp_path / "set", teacher, 30, overrides=["synthesis={method: cheap}"]).facts
        assert len(facts["warnings"]) == 2
        assert facts["warnings"][0].startswith("9 of 10 classes have no image: ")
        assert facts["warnings"][1] == "28 of 30 images repeat another of their shard, pixel by pixel."

    def test_a_random_teacher_is_named(self, tmp_path: Path) -> None:
        recipe = recipe_of("teacher.weights=null", "synthesis={method: cheap}")
        images = make(tmp_path / "set", teacher_of(recipe), 20, recipe=recipe)
        assert "The teacher has random weights: its answers mean nothing." in images.facts["warnings"]
        listed = json.loads((tmp_path / "set" / "set.json").read_text())
        assert listed["warnings"] == images.facts["warnings"]
