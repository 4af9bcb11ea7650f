"""DFQ: repeatable, resumable at any round, and gone without a trace from the teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dfqkit.losses import bn_kl, class_balance, instance_entropy, kd_kl
from dfqkit.seeds import derive
from dfqkit.synthesis.generator import Generator
from dfqkit.synthesis.methods.dfq import DFQConfig, DFQWeights
from dfqkit.synthesis.methods.dfq.method import DFQ
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.taps import BatchNormTap
from dfqkit_export.errors import TeacherError
from dfqkit_export.images.spec import ImageSpec
from tests._hooks import hooks_on
from tests._toys import IMAGE, Head, student

SMALL = DFQConfig(generators=2, batch=16, latent=8, width=4, warmup=6, memory=24)


@pytest.fixture(scope="module")
def opponent() -> nn.Module:
    return student("residual", "w4a4")


def make(teacher: Teacher, seed: int = 0, **changes: object) -> DFQ:
    return DFQ(SMALL.model_copy(update=changes), teacher, derive(seed, "dfq"))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def play(dfq: DFQ, opponent: nn.Module, rounds: list[bool]) -> Iterator[dict[str, float]]:
    """Rounds of warm-up (False) or of the game (True), each followed by a draw."""
    for game in rounds:
        yield dfq.synthesize([opponent] if game else [])
        if game:
            dfq.training_batch(6)


def test_the_rounds_are_the_papers_in_a_straight_line(teacher: Teacher, opponent: nn.Module) -> None:
    """Every weight and every image to the bit: the order of draws and of operations is part of a recipe's result."""
    dfq = make(teacher, 3, memory=0)
    for students in ([], [], [opponent]):
        dfq.synthesize(students)

    rng = derive(3, "dfq")
    members = [Generator(IMAGE, 8, 4, rng) for _ in range(2)]
    adams = [torch.optim.Adam(member.parameters(), betas=(0.5, 0.999)) for member in members]
    for game, done in ((False, 0), (False, 1 / 6), (True, 0)):
        for member, adam in zip(members, adams, strict=True):
            adam.param_groups[0]["lr"] = 1e-2 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
            images = member(torch.randn((8, 8), generator=rng))
            with BatchNormTap(teacher.model) as tap:
                logits = teacher.model(images)
            layers = [bn_kl(s.mean, s.variance, s.running_mean, s.running_variance) for s in tap.statistics]
            terms = [0.03 * torch.stack(layers).sum(), 0.5 * instance_entropy(logits), 1.0 * class_balance(logits)]
            if game:
                terms.append(-0.05 * kd_kl(opponent(images), logits))
            torch.stack(terms).sum().backward()
            nn.utils.clip_grad_norm_(member.parameters(), 5.0)
            adam.step()
            adam.zero_grad()
    for ours, theirs in zip(members, dfq.generators, strict=True):
        found = theirs.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in ours.state_dict().items())
    with torch.no_grad():
        drawn = torch.cat(
            [member(torch.randn((n, 8), generator=rng)) for n, member in zip((3, 2), members, strict=True)]
        )
    assert torch.equal(drawn, dfq.sample(5))


def test_same_seed_same_images(teacher: Teacher, opponent: nn.Module) -> None:
    drawn = []
    for seed in (0, 0, 1):
        dfq = make(teacher, seed)
        list(play(dfq, opponent, [False, False, True]))
        drawn.append(dfq.sample(10))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
@pytest.mark.parametrize("memory", [0, 24])
def test_resuming_is_bitwise_the_same(teacher: Teacher, opponent: nn.Module, stop: int, memory: int) -> None:
    rounds = [False, False, True, True, True, True]
    straight = make(teacher, memory=memory)
    terms = list(play(straight, opponent, rounds))
    first = make(teacher, memory=memory)
    before = list(play(first, opponent, rounds[:stop]))
    state = first.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    resumed = make(teacher, seed=99, memory=memory)
    resumed.load_state_dict(state)
    after = list(play(resumed, opponent, rounds[stop:]))
    assert before + after == terms
    assert torch.equal(resumed.training_batch(12), straight.training_batch(12))
    assert resumed.cost == straight.cost
    assert torch.equal(resumed.memory, straight.memory)
    assert {n: v.tolist() for n, v in resumed.state_dict().items()} == {
        n: v.tolist() for n, v in straight.state_dict().items()
    }
    assert all(torch.equal(state[name], kept[name]) for name in kept), "resuming changed the state it started from"


def test_teacher_student_and_global_state_are_untouched(teacher: Teacher, opponent: nn.Module) -> None:
    models = {"teacher": teacher.model, "student": opponent}
    before = {key: {n: v.clone() for n, v in tensors(m).items()} for key, m in models.items()}
    rng = torch.get_rng_state()
    dfq = make(teacher)
    list(play(dfq, opponent, [False, True]))
    dfq.sample(5)
    assert torch.equal(rng, torch.get_rng_state())
    for key, model in models.items():
        assert all(torch.equal(before[key][n], v) for n, v in tensors(model).items())
        assert all(p.grad is None for p in model.parameters())
        assert not any(m.training for m in model.modules())
        assert not hooks_on(model)


def test_warm_up_lowers_its_loss(teacher: Teacher) -> None:
    dfq = make(teacher, generators=1, warmup=60, batch=32)
    terms = [dfq.synthesize() for _ in range(60)]
    early, late = terms[0], terms[-1]
    assert late["bn"] < 0.6 * early["bn"]
    assert late["batch_entropy"] < early["batch_entropy"]
    assert "adversarial" not in late


def test_the_adversarial_step_widens_the_gap(teacher: Teacher, opponent: nn.Module) -> None:
    only = DFQWeights(adversarial=1.0, bn=0.0, instance_entropy=0.0, batch_entropy=0.0)
    dfq = make(teacher, generators=1, batch=32, lr=1e-3, weights=only)
    z = torch.randn(32, 8, generator=torch.Generator().manual_seed(5))

    def gap() -> Tensor:
        with torch.no_grad():
            images = dfq.generators[0](z)
            return kd_kl(opponent(images), teacher.model(images))

    dfq._latent = lambda n: z[:n]  # type: ignore[method-assign]
    before = gap()
    terms = [dfq.synthesize([opponent])["adversarial"] for _ in range(5)]
    assert gap() > before
    assert terms[0] == pytest.approx(-float(before), rel=1e-3)


def test_reported_terms_are_unweighted_means_over_generators(teacher: Teacher, opponent: nn.Module) -> None:
    terms = [make(teacher, weights=DFQWeights(bn=w)).synthesize([opponent]) for w in (0.01, 5.0)]
    assert terms[0] == terms[1]
    assert set(terms[0]) == {"adversarial", "bn", "instance_entropy", "batch_entropy"}


def test_cost_counts_teacher_passes(teacher: Teacher, opponent: nn.Module) -> None:
    dfq = make(teacher, steps=3)
    dfq.synthesize()
    assert dfq.cost == 16
    dfq.synthesize([opponent])
    assert dfq.cost == 16 + 3 * 16
    dfq.sample(7)
    assert dfq.cost == 64


def test_memory_is_bounded_and_keeps_old_images(teacher: Teacher, opponent: nn.Module) -> None:
    dfq = make(teacher)
    dfq.synthesize([opponent])
    first = dfq.memory[: dfq.remembered].clone()
    assert dfq.remembered == 16
    for _ in range(3):
        dfq.synthesize([opponent])
    assert dfq.remembered == len(dfq.memory) == 24
    kept = (dfq.memory.flatten(1)[:, None] == first.flatten(1)[None]).all(2).any(0)
    assert 0 < int(kept.sum()) < 16


def test_fresh_images_are_neither_remembered_nor_repeated(teacher: Teacher, opponent: nn.Module) -> None:
    dfq = make(teacher)
    dfq.synthesize([opponent])
    remembered = dfq.memory.clone()
    drawn = torch.cat([dfq.sample(8), dfq.sample(8)])
    assert torch.equal(dfq.memory, remembered)
    codes = (IMAGE.denormalize(drawn) * 255).round().to(torch.uint8).flatten(1)
    assert len(torch.unique(codes, dim=0)) == 16
    assert not (codes[:, None] == remembered.flatten(1)[None]).all(2).any()


def test_a_training_batch_takes_half_from_memory_in_eight_bits(teacher: Teacher, opponent: nn.Module) -> None:
    dfq = make(teacher)
    dfq.synthesize([opponent])
    remembered = dfq.memory[: dfq.remembered].clone()
    old = (IMAGE.denormalize(dfq.training_batch(8)[:4]) * 255).round().to(torch.uint8)
    assert (old.flatten(1)[:, None] == remembered.flatten(1)[None]).all(2).any(1).all()


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_samples_are_images(teacher: Teacher, opponent: nn.Module, n: int) -> None:
    dfq = make(teacher)
    for round_ in range(2):
        made = dfq.sample(n)
        assert made.shape == (n, *IMAGE.shape)
        assert made.dtype == torch.float32
        assert not made.requires_grad
        low, high = IMAGE.bounds()
        assert low - 1e-5 <= float(made.min()) < float(made.max()) <= high + 1e-5
        plain = IMAGE.denormalize(made)
        assert float(plain.min()) >= -1e-6
        assert float(plain.max()) <= 1 + 1e-6
        if round_ == 0:
            dfq.synthesize([opponent])


def test_sampling_does_not_move_the_generators(teacher: Teacher) -> None:
    dfq = make(teacher)
    dfq.synthesize()
    before = [{n: v.clone() for n, v in g.state_dict().items()} for g in dfq.generators]
    dfq.sample(9)
    for member, kept in zip(dfq.generators, before, strict=True):
        assert all(torch.equal(kept[n], v) for n, v in member.state_dict().items())


def test_images_of_any_size_come_out_right() -> None:
    image = ImageSpec(shape=(1, 10, 7), mean=(0.5,), std=(0.5,), classes=5)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Head(4)).eval()
    dfq = DFQ(SMALL, Teacher.from_module(model, image), derive(0))
    dfq.synthesize()
    assert dfq.sample(3).shape == (3, 1, 10, 7)


def test_a_teacher_without_batch_norm_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Head(4))
    with pytest.raises(TeacherError, match="no BatchNorm layer"):
        make(Teacher.from_module(model, IMAGE))


def test_config_is_closed_frozen_and_survives_json() -> None:
    with pytest.raises(ValidationError, match="warm_up"):
        DFQConfig.model_validate({"warm_up": 3})
    with pytest.raises(ValidationError, match="alpha"):
        DFQConfig.model_validate({"weights": {"alpha": 1}})
    with pytest.raises(ValidationError, match="generators"):
        DFQConfig(generators=0)
    with pytest.raises(ValidationError, match="frozen"):
        SMALL.batch = 3  # type: ignore[misc]
    assert DFQConfig.model_validate_json(SMALL.model_dump_json()) == SMALL
