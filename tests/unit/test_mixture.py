"""Mixtures: exact shares in every prefix, parts that keep their own ways, and sections that explain their faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from dfqkit.config.methods import METHODS
from dfqkit.config.pools import PoolConfig
from dfqkit.config.reading import parse_recipe
from dfqkit.config.recipe import Recipe
from dfqkit.config.synthesis import Demand, SynthesizerConfig
from dfqkit.seeds import derive
from dfqkit.synthesis.base import Losses, Synthesizer
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.synthesis.low_pass import LowPassed
from dfqkit.synthesis.methods.mixture import MixtureConfig
from dfqkit.synthesis.methods.mixture.method import Mixture
from dfqkit.synthesis.methods.mixture.turns import counts, turns, until_empty
from dfqkit.synthesis.pool import PoolSynthesizer
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import RecipeError
from tests._messages import raises_naming
from tests._methods import added
from tests._toys import IMAGE, images, toy_teacher

DFQ = {"method": "dfq", "generators": 1, "batch": 8, "latent": 4, "width": 4, "warmup": 6, "memory": 8}
NOISE = {"method": "noise", "accept_noise": True}


class FlatConfig(PoolConfig):
    implementation: ClassVar[str] = f"{__name__}:Flat"

    method: Literal["flat"] = "flat"
    level: float = 0.0
    batch: int = 4
    steps: int = 3


class Flat(PoolSynthesizer):
    """Images of one level, which tells who made them; one pass a step, as if it were work."""

    config: FlatConfig

    def _begin(self) -> None:
        return

    def _step(self, students: Sequence[nn.Module], step: int, steps: int) -> Losses:
        return {"level": float(step), "students": float(len(students))}

    def _finish(self) -> Tensor:
        level = self.config.level
        return self.teacher.image.normalize(torch.full((self.config.batch, *IMAGE.shape), level))

    def _tensors(self) -> dict[str, Tensor]:
        return {}

    def _load_tensors(self, state: dict[str, Tensor]) -> None:
        return


class PlayerConfig(FlatConfig):
    implementation: ClassVar[str] = f"{__name__}:Player"
    needs: ClassVar[frozenset[str]] = frozenset({"student"})

    method: Literal["player"] = "player"  # type: ignore[assignment]


class Player(Flat):
    """The same, and cannot do without a student."""

    plays: ClassVar[bool] = True


@pytest.fixture(autouse=True, scope="module")
def _known() -> Iterator[None]:
    with added(flat=f"{__name__}:FlatConfig", player=f"{__name__}:PlayerConfig"):
        yield


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return toy_teacher()


def config(*sources: dict[str, Any]) -> MixtureConfig:
    return MixtureConfig.model_validate({"sources": sources})


def make(teacher: Teacher, *sources: dict[str, Any], seed: int = 0, **demand: Any) -> Mixture:
    return Mixture(config(*sources), teacher, derive(seed, "mixture"), Demand(**demand))


def levels(batch: Tensor) -> list[float]:
    return [round(float(image.mean()), 2) for image in IMAGE.denormalize(batch)]


LOW, HIGH = {"method": "flat", "level": 0.2, "share": 0.6}, {"method": "flat", "level": 0.8, "share": 0.4}


class TestTurns:
    @pytest.mark.parametrize("shares", [[0.6, 0.4], [0.5, 0.5], [0.1, 0.2, 0.7], [1.0], [0.03, 0.97], [2.0, 3.0, 5.0]])
    def test_every_prefix_has_every_share_up_to_rounding(self, shares: list[float]) -> None:
        order, total = turns([0] * len(shares), shares, 200), sum(shares)
        for n in range(1, 201):
            for index, share in enumerate(shares):
                assert abs(order[:n].count(index) - n * share / total) < 1

    def test_it_goes_on_where_it_stopped(self) -> None:
        shares = [0.45, 0.35, 0.2]
        given, order = [0, 0, 0], []
        for n in (1, 7, 2, 30, 60):
            order += turns(given, shares, n)
            given = [order.count(index) for index in range(3)]
        assert order == turns([0, 0, 0], shares, 100)
        assert counts(shares, 100) == [45, 35, 20]

    def test_what_is_available_ends_where_a_source_is_due_that_has_none(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(100):
            shares = list(rng.random(3) + 0.01)
            given = counts(shares, int(rng.integers(0, 30)))
            left = [None if rng.random() < 0.3 else int(rng.integers(0, 12)) for _ in shares]
            found = until_empty(given, shares, left)
            order = turns(given, shares, 3000)
            slow = next(
                (n for n in range(3000) if left[order[n]] is not None and order[:n].count(order[n]) == left[order[n]]),
                None,
            )
            assert found == slow
        assert until_empty([0, 0], [1e-9, 1.0], [10, None]) == pytest.approx(1.05e10, rel=0.01)


class TestImages:
    def test_they_interleave_by_share(self, teacher: Teacher) -> None:
        mixture = make(teacher, LOW, HIGH, training=20, fresh=10)
        while sum(mixture.done) < mixture.warmup_rounds:
            mixture.synthesize()
        fresh = levels(mixture.sample(3)) + levels(mixture.sample(7))
        assert fresh == [0.2, 0.8, 0.2, 0.8, 0.2, 0.2, 0.8, 0.2, 0.8, 0.2]
        trained = levels(mixture.training_batch(11)) + levels(mixture.training_batch(89))
        assert (trained.count(0.2), trained.count(0.8)) == (60, 40)
        assert trained[:5] == fresh[:5]

    def test_what_is_demanded_is_there(self, teacher: Teacher) -> None:
        for fresh in range(1, 24, 3):
            mixture = make(teacher, LOW, HIGH, {"method": "flat", "share": 0.33}, training=7, fresh=fresh)
            assert sum(part.demand.fresh for part in mixture.parts) == fresh
            assert sum(part.demand.training for part in mixture.parts) == 7
            assert mixture.available == 0
            while sum(mixture.done) < mixture.warmup_rounds:
                mixture.synthesize()
            assert mixture.available is not None
            assert mixture.available >= fresh
            assert len(mixture.sample(mixture.available)) >= fresh
            assert mixture.available == 0

    def test_asking_for_more_brings_no_images_that_are_not_there(self, teacher: Teacher, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
        np.savez(tmp_path / "a.npz", images=pixels)
        mixture = make(teacher, NOISE, {"method": "images", "path": str(tmp_path / "a.npz")}, training=0, fresh=8)
        mixture.ask(40)
        # Noise, image, noise, image: a fifth image is due tenth.
        assert mixture.available == 9
        assert len(mixture.sample(9)) == 9
        assert mixture.available == 0

    def test_a_small_share_keeps_a_training_image(self, teacher: Teacher) -> None:
        mixture = make(teacher, LOW | {"share": 99}, HIGH | {"share": 1}, training=10, fresh=4, game_rounds=5)
        assert [part.demand.training for part in mixture.parts] == [10, 1]
        assert [part.demand.game_rounds for part in mixture.parts] == [5, 5]

    def test_shares_are_relative_and_a_source_without_one_is_left_out(self, teacher: Teacher) -> None:
        mixture = make(teacher, LOW | {"share": 3}, HIGH | {"share": 0}, NOISE, training=8)
        assert [type(part).__name__ for part in mixture.parts] == ["Flat", "Noise"]
        assert mixture.config.shares == [0.75, 0.25]
        assert make(teacher, NOISE).available is None

    def test_parts_draw_from_generators_of_their_own(self, teacher: Teacher) -> None:
        two = make(teacher, NOISE, NOISE, seed=1).sample(4)
        assert not torch.equal(two[0], two[1])
        assert torch.equal(two, make(teacher, NOISE, NOISE, seed=1).sample(4))
        assert not torch.equal(two, make(teacher, NOISE, NOISE, seed=2).sample(4))

    def test_a_part_may_be_filtered(self, teacher: Teacher) -> None:
        mixture = make(teacher, NOISE | {"low_pass": 0.05}, NOISE)
        assert [isinstance(part, LowPassed) for part in mixture.parts] == [True, False]
        smooth, rough = mixture.sample(2).std((1, 2, 3))
        assert smooth < 0.3 * rough
        whole = build_synthesizer(mixture.config.model_copy(update={"low_pass": 0.05}), teacher, derive(0), Demand())
        assert float(whole.sample(2).std()) < 0.7

    def test_images_of_a_file_never_grade_what_they_trained(self, teacher: Teacher, tmp_path: Path) -> None:
        pixels = (IMAGE.denormalize(images(40)) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        np.savez(tmp_path / "a.npz", images=pixels)
        section = config(NOISE | {"share": 0.3}, {"method": "images", "path": str(tmp_path / "a.npz"), "share": 0.7})
        for training, fresh, grading in ((20, 9, 21), (21, 10, 18), (14, 4, 31)):
            first, second = Demand(training=training, fresh=fresh), Demand(training=0, fresh=grading)
            main = Mixture(section, teacher, derive(0), Demand(training=training, fresh=fresh, beside=second))
            graded = Mixture(section.grading(), teacher, derive(1), Demand(training=0, fresh=grading, beside=first))
            assert (graded.parts[1].demand.fresh, graded.parts[1].demand.beside) == (
                main.parts[1].demand.beside.fresh,  # type: ignore[union-attr]
                Demand(training=main.parts[1].demand.training, fresh=main.parts[1].demand.fresh),
            )
            mine = [x.numpy().tobytes() for x in (*main.training_batch(60), *main.sample(fresh))]
            theirs = [x.numpy().tobytes() for x in graded.sample(grading)]
            assert not set(mine) & set(theirs)


class TestRounds:
    def test_parts_progress_together(self, teacher: Teacher) -> None:
        long, short = LOW | {"steps": 30, "share": 1}, HIGH | {"steps": 10, "share": 1}
        mixture = make(teacher, long, short, training=8)
        assert mixture.warmup_rounds == 40
        for rounds in range(1, 41):
            mixture.synthesize()
            assert mixture.done[0] + mixture.done[1] == rounds
            assert abs(mixture.done[0] / 30 - mixture.done[1] / 10) < 0.1
        assert mixture.cost == 40 * 4 == sum(part.cost for part in mixture.parts)

    def test_in_a_game_every_part_plays(self, teacher: Teacher) -> None:
        mixture = make(teacher, DFQ, DFQ | {"batch": 4}, NOISE, training=8)
        for _ in range(mixture.warmup_rounds):
            mixture.synthesize()
        terms = mixture.synthesize([teacher.model])
        assert [part.played for part in mixture.parts[:2]] == [1, 1]  # type: ignore[attr-defined]
        assert {"dfq1.adversarial", "dfq2.adversarial"} <= set(terms)
        assert mixture.cost == 6 * (8 + 4) + 8 + 4

    def test_terms_have_no_prefix_where_one_source_has_any(self, teacher: Teacher) -> None:
        assert "bn" in make(teacher, DFQ, NOISE).synthesize()
        both = make(teacher, DFQ, LOW, training=8)
        names = {name for _ in range(both.warmup_rounds) for name in both.synthesize()}
        assert names >= {"dfq.bn", "flat.level"}
        assert all(name.startswith(("dfq.", "flat.")) for name in names)

    def test_in_the_warm_up_only_those_see_the_student_that_need_one(self, teacher: Teacher) -> None:
        player = {"method": "player", "share": 0.4}
        mixture = make(teacher, LOW, player, training=8)
        seen: dict[str, set[float]] = {}
        for _ in range(mixture.warmup_rounds):
            for name, value in mixture.synthesize([teacher.model]).items():
                seen.setdefault(name, set()).add(value)
        assert seen["flat.students"] == {0.0}
        assert seen["player.students"] == {1.0}
        assert mixture.synthesize([teacher.model]) == {"player.level": 2.0, "player.students": 1.0}

    @pytest.mark.parametrize("stop", [0, 3, 8, 10])
    def test_resuming_is_bitwise_the_same(self, teacher: Teacher, stop: int) -> None:
        sources = (DFQ | {"share": 0.5}, LOW | {"share": 0.3}, NOISE | {"share": 0.2})

        def play(mixture: Mixture, rounds: range) -> list[Any]:
            found: list[Any] = []
            for number in rounds:
                found.append(mixture.synthesize([teacher.model] if number >= 9 else []))
                if number > 8:
                    found.append(mixture.training_batch(5).tolist())
            return found

        straight, first = (make(teacher, *sources, training=8, fresh=6) for _ in range(2))
        assert straight.warmup_rounds == 9
        expected = play(straight, range(12))
        before = play(first, range(stop))
        resumed = make(teacher, *sources, seed=9, training=8, fresh=6)
        resumed.load_state_dict(first.state_dict())
        assert resumed.cost == first.cost
        assert before + play(resumed, range(stop, 12)) == expected
        assert torch.equal(resumed.sample(2), straight.sample(2))
        assert resumed.cost == straight.cost


class TestConfiguration:
    def test_a_budget_is_split_over_the_sources_that_cost(self) -> None:
        section = config(LOW | {"share": 2}, HIGH | {"share": 1}, NOISE | {"share": 5})
        demand = Demand(training=64)
        sized = section.at_cost(3000, demand)
        # 16 and 8 images of 64, so 4 and 2 batches of 4: 2000 and 1000 passes
        assert [source.model_dump().get("steps") for source in sized.sources] == [125, 125, None]
        made = Mixture(sized, toy_teacher(), derive(0), demand)
        for _ in range(made.warmup_rounds):
            made.synthesize()
        assert 0.9 * 3000 <= made.cost <= 3000
        free = config(NOISE)
        assert free.at_cost(100, demand) is free

    def test_its_schema_holds_every_other_methods_section(self) -> None:
        schema = MixtureConfig.model_json_schema()
        named = schema["properties"]["sources"]["items"]["discriminator"]["mapping"]
        assert set(named) == set(METHODS) - {"mixture"}
        found = {name: schema["$defs"][reference.rpartition("/")[2]] for name, reference in named.items()}
        for section in found.values():
            assert section["properties"]["share"]["minimum"] == 0
            assert not section["additionalProperties"]
        assert found["images"]["required"] == ["method", "path"]

    def test_needs_warnings_and_grading_are_the_sources_own(self) -> None:
        section = config(DFQ | {"generators": 4, "share": 1}, NOISE | {"share": 2}, NOISE | {"kind": "uniform"})
        assert section.needed == {"batchnorm", "classes"}
        (warning,) = section.warnings()
        assert warning.startswith("75 % of the images: Random noise")
        assert config(DFQ, NOISE | {"share": 0}).warnings() == ()
        graded = section.grading()
        assert graded.sources[0].model_dump()["generators"] == 1
        assert graded.shares == section.shares
        assert config(DFQ | {"share": 0}, {"method": "images", "path": "x"}).needed == {"images"}

    def test_files_of_every_source_are_found(self) -> None:
        section = config(DFQ, {"method": "images", "path": "a"}, {"method": "images", "path": "b"})
        found = section.resolved(lambda name: f"/there/{name}")
        assert [s.path for s in found.sources[1:]] == ["/there/a", "/there/b"]  # type: ignore[attr-defined]
        assert section.memory == 8

    def test_a_recipe_keeps_it(self) -> None:
        recipe = parse([DFQ | {"share": 0.6}, NOISE | {"low_pass": 0.5}])
        text = recipe.to_yaml()
        assert parse_recipe(text, "again") == recipe
        section = yaml.safe_load(text)["synthesis"]
        assert section["method"] == "mixture"
        assert [(s["method"], s["share"]) for s in section["sources"]] == [("dfq", 0.6), ("noise", 1.0)]
        assert section["sources"][0]["warmup"] == 6

    @pytest.mark.parametrize(
        ("sources", "line"),
        [
            ([], "synthesis.sources: shares must sum to a finite number above 0, found none"),
            ([DFQ | {"share": 0}], "synthesis.sources: shares must sum to a finite number above 0, found [0.0]"),
            ([DFQ, DFQ | {"share": -1}], "synthesis.sources.1.share: must be greater than or equal to 0 (found -1)"),
            ([DFQ | {"share": float("inf")}], "synthesis.sources.0.share: must be a finite number"),
            ([DFQ | {"share": float("nan")}], "synthesis.sources.0.share: must be a finite number"),
            ([DFQ | {"share": 1e308}] * 2, "synthesis.sources: shares must sum to a finite number"),
            ([DFQ | {"share": "half"}], "synthesis.sources.0.share: must be a valid number"),
            ([DFQ, {"sources": [DFQ]}], "synthesis.sources.1: is a mixture within a mixture; list its sources here"),
            ([{"method": "mixture"}], "synthesis.sources.0: is a mixture within a mixture"),
            ([{"share": 1}], "synthesis.sources.0: needs a method, e.g. method: dfq"),
            (["dfq"], "synthesis.sources.0: must be a section, keys with values (found 'dfq')"),
            (3, "synthesis.sources: must be a list of sources (found 3)"),
            ([DFQ, {"method": "images"}], "synthesis.sources.1.path: is missing"),
            ([{"method": "noise"}], "synthesis.sources.0.accept_noise: must be true"),
            (
                [{"method": "images", "path": "a"}, {"method": "images", "path": "a", "limit": 3}],
                "synthesis.sources: two sources take images from one place (a, a)",
            ),
            (
                [{"method": "images", "path": "a"}, {"method": "zeroq", "start_from": "b/../a"}],
                "synthesis.sources: two sources take images from one place (a, a)",
            ),
            (
                [{"method": "zskd", "start_from": "a"}, NOISE, {"method": "zeroq", "start_from": "./a"}],
                "synthesis.sources: two sources take images from one place (a, a)",
            ),
            (
                [NOISE, DFQ | {"shar": 1}],
                "synthesis.sources.1.shar: unknown key. Did you mean 'share'? Allowed here: method, low_pass, ",
            ),
            ([DFQ | {"warm_up": 1}], "synthesis.sources.0.warm_up: unknown key. Did you mean 'warmup'?"),
            (
                [NOISE, DFQ | {"weights": {"adversary": 1}}],
                "synthesis.sources.1.weights.adversary: unknown key. Did you mean 'adversarial'? Allowed here: objects",
            ),
        ],
    )
    def test_a_fault_is_named_where_it_stands(self, sources: list[Any], line: str) -> None:
        with pytest.raises(RecipeError) as caught:
            parse(sources)
        assert line in str(caught.value)

    def test_an_unknown_method_or_key_comes_with_the_nearest(self) -> None:
        with raises_naming(RecipeError, "dqf", "did you mean 'dfq'"):
            parse([DFQ | {"method": "dqf"}])
        with pytest.raises(
            RecipeError, match=r"synthesis.source: unknown key. Did you mean 'sources'\? Allowed here: "
        ):
            parse([DFQ], source=1)

    def test_a_source_that_the_teacher_cannot_serve_is_refused(self) -> None:
        bare = Teacher.from_module(nn.Sequential(nn.Conv2d(3, 5, 16), nn.Flatten()), IMAGE)
        section: SynthesizerConfig = config(NOISE, DFQ)
        with pytest.raises(RecipeError, match=r"'mixture' needs BatchNorm layers"):
            build_synthesizer(section, bare, derive(0), Demand())
        assert isinstance(build_synthesizer(config(NOISE), bare, derive(0), Demand()), Synthesizer)


def parse(sources: list[Any], **others: Any) -> Recipe:
    recipe = {
        "name": "a/b",
        "why": "a test",
        "teacher": {"factory": "dfqkit.models:digits_cnn"},
        "image": {"shape": [1, 16, 16], "mean": [0.3], "std": [0.32], "classes": 10},
        "synthesis": {"sources": sources, **others},
    }
    return parse_recipe(yaml.safe_dump(recipe), "a.yaml")
