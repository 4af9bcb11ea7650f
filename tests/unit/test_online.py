"""What all methods with generators share: their bill, what grades them, averaged weights, and the network itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqkit.config.pools import OnlineConfig
from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.generator import Generator
from dfqkit.synthesis.methods.dafl import DAFLConfig
from dfqkit.synthesis.methods.dafl.method import DAFL
from dfqkit.synthesis.methods.dfq import DFQConfig
from dfqkit.synthesis.methods.dfq.method import DFQ
from dfqkit.synthesis.methods.zskt import ZSKTConfig
from dfqkit.synthesis.methods.zskt.method import ZSKT
from dfqkit.synthesis.online import OnlineSynthesizer
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from tests._messages import raises_naming
from tests._toys import IMAGE, Head, randomise

SIZES = {"batch": 8, "latent": 8, "width": 4, "warmup": 3, "memory": 16}
METHODS: list[tuple[type[OnlineSynthesizer], type[OnlineConfig]]] = [
    (DFQ, DFQConfig),
    (DAFL, DAFLConfig),
    (ZSKT, ZSKTConfig),
]
each_method = pytest.mark.parametrize(("method", "config"), METHODS, ids=["dfq", "dafl", "zskt"])


@pytest.fixture(scope="module")
def opponent() -> nn.Module:
    """A float student of another shape: no BatchNorm, no fake quantization, fewer layers."""
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), Head(4))
    return randomise(model, 7).requires_grad_(False)


@each_method
def test_a_float_student_of_another_shape_will_do(
    method: type[OnlineSynthesizer], config: type[OnlineConfig], teacher: Teacher, opponent: nn.Module
) -> None:
    made = method(config(**SIZES), teacher, derive(0), Demand(game_rounds=2))
    for _ in range(2):
        assert all(math.isfinite(value) for value in made.synthesize([opponent]).values())
    assert all(parameter.grad is None for parameter in opponent.parameters())


@each_method
@pytest.mark.parametrize("passes", [1, 50, 999])
@pytest.mark.parametrize(("generators", "batch"), [(1, 8), (3, 8), (4, 4)])
def test_a_budget_is_kept_and_used(
    method: type[OnlineSynthesizer],
    config: type[OnlineConfig],
    teacher: Teacher,
    opponent: nn.Module,
    passes: int,
    generators: int,
    batch: int,
) -> None:
    asked = config(**{**SIZES, "generators": generators, "batch": batch})
    sized = asked.at_cost(passes, Demand())
    assert sized == asked.model_copy(update={"warmup": sized.warmup})  # type: ignore[attr-defined]
    made = method(sized, teacher, derive(0))
    made.synthesize([opponent] if "student" in made.config.needs else [])
    total = made.cost * made.warmup_rounds
    assert total <= passes < total + made.cost or (made.warmup_rounds == 1 and made.cost > passes)


@each_method
def test_the_grader_is_one_generator_with_a_members_batch(
    method: type[OnlineSynthesizer], config: type[OnlineConfig]
) -> None:
    ensemble = config(**{**SIZES, "generators": 2, "ema": 0.9})
    grader = ensemble.grading()
    assert grader == ensemble.model_copy(update={"generators": 1, "batch": 4, "memory": 0})
    assert isinstance(grader, config)


def test_without_averaging_images_come_from_the_generators(teacher: Teacher) -> None:
    made = DFQ(DFQConfig(**SIZES), teacher, derive(0))
    assert made.averages is made.generators
    assert not any(name.startswith("average") for name in made.state_dict())


def test_images_come_from_the_average_of_the_weights(teacher: Teacher) -> None:
    plain, averaged = (DFQ(DFQConfig(**SIZES, ema=ema), teacher, derive(0)) for ema in (0.0, 0.9))
    wanted = [{n: p.detach().clone() for n, p in g.named_parameters()} for g in averaged.generators]
    for step in range(4):
        assert plain.synthesize() == averaged.synthesize()
        decay = min(0.9, (1 + step) / (10 + step))
        for member, kept in zip(plain.generators, wanted, strict=True):
            for name, value in member.named_parameters():
                kept[name] = decay * kept[name] + (1 - decay) * value.detach()
    for member, kept in zip(averaged.averages, wanted, strict=True):
        for name, value in member.named_parameters():
            torch.testing.assert_close(value, kept[name], rtol=1e-5, atol=1e-6)
            assert not value.requires_grad
    weights = [{n: v.clone() for n, v in g.state_dict().items()} for g in averaged.generators]
    assert not torch.equal(plain.sample(6), averaged.sample(6))
    for member, kept in zip(averaged.generators, weights, strict=True):
        assert all(torch.equal(kept[n], v) for n, v in member.state_dict().items())


@each_method
def test_resuming_with_averages_is_bitwise_the_same(
    method: type[OnlineSynthesizer], config: type[OnlineConfig], teacher: Teacher, opponent: nn.Module
) -> None:
    asked = config(**SIZES, ema=0.9)
    straight, first = (method(asked, teacher, derive(0), Demand(game_rounds=2)) for _ in range(2))
    terms = [straight.synthesize([opponent]) for _ in range(5)]
    before = [first.synthesize([opponent]) for _ in range(2)]
    resumed = method(asked, teacher, derive(99), Demand(game_rounds=2))
    resumed.load_state_dict(first.state_dict())
    assert before + [resumed.synthesize([opponent]) for _ in range(3)] == terms
    assert torch.equal(resumed.sample(5), straight.sample(5))
    assert torch.equal(resumed.training_batch(6), straight.training_batch(6))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 7, 8])
def test_all_generators_take_part_evenly(teacher: Teacher, n: int) -> None:
    made = DFQ(DFQConfig(**SIZES, generators=3), teacher, derive(0))
    levels = [IMAGE.normalize(torch.full((1, *IMAGE.shape), level)) for level in (0.2, 0.4, 0.6)]
    made._draw = lambda member, count: levels[made.averages.index(member)].expand(  # type: ignore[method-assign]
        count, -1, -1, -1
    )
    drawn = made.sample(n)
    assert len(drawn) == n
    counts = [int((drawn == level).flatten(1).all(1).sum()) for level in levels]
    assert counts == [n // 3 + (index < n % 3) for index in range(3)]


def test_whole_shares_are_drawn_one_generator_after_the_other(teacher: Teacher) -> None:
    made, same = (DFQ(DFQConfig(**SIZES, generators=2), teacher, derive(0)) for _ in range(2))
    with torch.no_grad():
        wanted = [member(same._latent(3)) for member in same.averages]
    assert torch.equal(made.sample(6), torch.cat(wanted))


@each_method
def test_what_diverges_is_stopped(
    method: type[OnlineSynthesizer], config: type[OnlineConfig], teacher: Teacher, opponent: nn.Module
) -> None:
    made = method(config(**SIZES), teacher, derive(0))
    made.synthesize([opponent])
    before = [p.detach().clone() for p in made.generators[0].parameters()]
    name, terms = next(name for name, weight in made.weights.items() if weight), made._terms
    made.weights = {**made.weights, name: math.inf}
    with raises_naming(ArtefactError, "gradient", "nan in round 2"):
        made.synthesize([opponent])
    assert all(torch.equal(a, b) for a, b in zip(before, made.generators[0].parameters(), strict=True))
    made._terms = lambda *given: {**terms(*given), name: images_of(given) * math.nan}  # type: ignore[method-assign]
    with raises_naming(ArtefactError, name, "nan in round 2", "lower lr (now", "lr_game"):
        made.synthesize([opponent])
    with torch.no_grad():
        next(iter(made.generators[0].parameters())).fill_(math.inf)
    with raises_naming(ArtefactError, "pixel", "nan after 1 rounds"):
        made.sample(4)


def images_of(given: tuple[Any, ...]) -> Tensor:
    found: Tensor = given[0].mean()
    return found


def generator(shape: tuple[int, int, int], width: int = 16) -> Generator:
    channels = shape[0]
    image = ImageSpec(shape=shape, mean=(0.4,) * channels, std=(0.25,) * channels, classes=2)
    return Generator(image, 8, width, derive(0))


def convolutions(member: Generator) -> list[nn.Conv2d]:
    return [layer for layer in member.body if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("shape", [(1, 10, 7), (1, 28, 28), (3, 1, 1), (3, 32, 32), (3, 64, 48), (1, 224, 224)])
def test_a_generator_gives_images_of_any_size(shape: tuple[int, int, int]) -> None:
    member = generator(shape, width=4)
    with torch.no_grad():
        made: Tensor = member(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    assert made.shape == (4, *shape)
    assert bool(made.isfinite().all())
    plain = member.image.denormalize(made)
    assert float(plain.min()) >= -1e-6
    assert float(plain.max()) <= 1 + 1e-6


def test_an_untrained_generator_has_the_contrast_of_the_images() -> None:
    with torch.no_grad():
        made: Tensor = generator((3, 32, 32))(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))
    assert float(made.std()) == pytest.approx(1, abs=0.1)


def test_large_images_cost_about_as_much_per_block_as_small_ones() -> None:
    def work(shape: tuple[int, int, int]) -> list[int]:
        member = generator(shape)
        made = [m for m in member.body if isinstance(m, nn.Upsample)]
        pixels = [size[0] * size[1] for size in (m.size for m in made)]  # type: ignore[index]
        hidden = convolutions(member)[:-1]
        return [layer.weight.numel() * size for layer, size in zip(hidden, pixels, strict=True)]

    assert [(c.in_channels, c.out_channels) for c in convolutions(generator((3, 32, 32)))] == [
        (32, 32),
        (32, 16),
        (16, 3),
    ]
    small, large = work((3, 32, 32)), work((3, 224, 224))
    assert max(large) <= 2 * max(small)
