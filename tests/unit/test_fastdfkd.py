"""FastDFKD: the published loss and meta-gradients written down again in float64, the warm-up, and resuming anywhere."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.methods.fastdfkd import FastDFKDConfig, FastDFKDWeights
from dfqkit.synthesis.methods.fastdfkd.method import FastDFKD
from dfqkit.teacher.load import Teacher
from tests._toys import toy

SMALL = FastDFKDConfig(batch=8, steps=3, warmup_batches=2, reset_after=1, latent=6, width=4, shift=0)
R = 0.9


class Contrary(nn.Module):
    """Names the teacher's class on the brighter half of a batch, and its last choice on the darker."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = toy("residual").requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.detach().mean((1, 2, 3))
        return self.inner(x) * torch.where(brightness > brightness.median(), 0.5, -0.5).to(x.dtype)[:, None]


@pytest.fixture(scope="module")
def opponent() -> nn.Module:
    return Contrary()


def make(teacher: Teacher, seed: int = 0, demand: Demand | None = None, **changes: object) -> FastDFKD:
    demand = demand or Demand(training=8, fresh=8)
    return FastDFKD(SMALL.model_copy(update=changes), teacher, derive(seed, "fastdfkd"), demand)


def batch(synthesizer: FastDFKD, students: tuple[nn.Module, ...] = ()) -> None:
    for _ in range(synthesizer.config.steps):
        synthesizer.synthesize(students)


class Oracle:
    """The loss in float64 without the library's taps and losses; remembers the mix of statistics on its own."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = copy.deepcopy(teacher.model).double()
        self.mix: list[tuple[Tensor, Tensor]] = []
        self.found: list[tuple[Tensor, Tensor]] = []

    def terms(self, member: nn.Module, z: Tensor, labels: Tensor, opponent: nn.Module | None) -> dict[str, Tensor]:
        entered: list[tuple[nn.BatchNorm2d, Tensor]] = []
        handles = [
            layer.register_forward_pre_hook(lambda module, inputs: entered.append((module, inputs[0])))
            for layer in self.teacher.modules()
            if isinstance(layer, nn.BatchNorm2d)
        ]
        x = member(z)
        t = self.teacher(x)
        for handle in handles:
            handle.remove()
        self.found = [(y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)) for _, y in entered]
        bn = torch.zeros((), dtype=torch.float64)
        for index, (mean, variance) in enumerate(self.found):
            layer = entered[index][0]
            if self.mix:
                mean = (1 - R) * mean + R * self.mix[index][0]
                variance = (1 - R) * variance + R * self.mix[index][1]
            bn = bn + ((mean - layer.running_mean) ** 2).sum().sqrt()
            bn = bn + ((variance - layer.running_var) ** 2).sum().sqrt()
        log_t = t - t.exp().sum(1, keepdim=True).log()
        terms = {"bn": bn, "one_hot": -log_t[torch.arange(len(t)), labels].mean()}
        if opponent is not None:
            s = copy.deepcopy(opponent).double()(x)
            log_s = s - s.exp().sum(1, keepdim=True).log()
            agree = t.argmax(1) == s.argmax(1)
            assert int(agree.sum()) == len(t) // 2, "the test needs both kinds of images"
            terms["adversarial"] = -((log_t.exp() * (log_t - log_s)).sum(1) * agree).sum() / len(t)
        return terms

    def end_batch(self) -> None:
        found = [(mean.detach(), variance.detach()) for mean, variance in self.found]
        if self.mix:
            pairs = zip(self.mix, found, strict=True)
            found = [(R * m + (1 - R) * n, R * v + (1 - R) * w) for (m, v), (n, w) in pairs]
        self.mix = found


def test_losses_over_batches_are_the_published_ones(teacher: Teacher, opponent: nn.Module) -> None:
    """Three batches of two steps: the mix of statistics, and the adversary after the warm-up only."""
    weights = FastDFKDWeights(adversarial=0.7, bn=1.3, one_hot=0.6)
    synthesizer = make(teacher, steps=2, warmup_batches=1, weights=weights, demand=Demand(training=8))
    oracle = Oracle(teacher)
    step = synthesizer._step
    seen: list[dict[str, Tensor]] = []
    got = []

    def look_and_step(*arguments: object) -> dict[str, float]:
        member = copy.deepcopy(synthesizer.member).double()
        playing = opponent if synthesizer.finished >= 2 else None
        seen.append(oracle.terms(member, synthesizer.batch.z.detach().double(), synthesizer.batch.labels, playing))
        terms = step(*arguments)  # type: ignore[arg-type]
        got.append(terms)
        if synthesizer.at == 1:
            oracle.end_batch()
        return terms

    synthesizer._step = look_and_step  # type: ignore[method-assign, assignment]
    for _ in range(2 * 2 + 1):  # a game round is a whole batch
        synthesizer.synthesize([opponent])
    assert len(got) == 6
    for expected, terms in zip(seen, got, strict=True):
        assert terms == pytest.approx({name: float(value.detach()) for name, value in expected.items()}, rel=1e-4)
    assert ["adversarial" in terms for terms in got] == [False] * 4 + [True] * 2
    for (mean, variance), (own_mean, own_variance) in zip(oracle.mix, synthesizer.mix, strict=True):
        assert torch.allclose(own_mean.double(), mean, atol=1e-5)
        assert torch.allclose(own_variance.double(), variance, rtol=1e-4)


@pytest.mark.parametrize("lr_meta", [None, 0.02])
def test_fomaml_is_the_sum_of_the_copys_gradients(teacher: Teacher, lr_meta: float | None) -> None:
    weights = FastDFKDWeights(bn=1.3, one_hot=0.6)
    synthesizer = make(teacher, weights=weights, lr_meta=lr_meta)
    start = copy.deepcopy(synthesizer.meta)
    oracle, step = Oracle(teacher), synthesizer._step
    totals = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in start.parameters()]

    def look_and_step(*arguments: object) -> dict[str, float]:
        member = copy.deepcopy(synthesizer.member).double()
        terms = oracle.terms(member, synthesizer.batch.z.detach().double(), synthesizer.batch.labels, None)
        gradients = torch.autograd.grad(1.3 * terms["bn"] + 0.6 * terms["one_hot"], list(member.parameters()))
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient
        return step(*arguments)  # type: ignore[arg-type]

    synthesizer._step = look_and_step  # type: ignore[method-assign, assignment]
    for _ in range(2):
        synthesizer.synthesize()
        assert all(map(torch.equal, synthesizer.meta.parameters(), start.parameters())), "only the last step teaches"
    synthesizer.synthesize()
    rate = lr_meta or 3 * SMALL.lr_generator
    for (name, parameter), before, total in zip(
        synthesizer.meta.named_parameters(), start.parameters(), totals, strict=True
    ):
        # After one step Adam's first moment is (1 - 0.5) times the gradient, and it moved by the rate.
        gradient = 2 * synthesizer.meta_optimizer.state[parameter]["exp_avg"].double()
        assert torch.allclose(gradient, total, rtol=1e-2, atol=1e-3 * max(float(total.abs().max()), 0.1)), name
        large = total.abs() > 1e-2
        moved = (before - parameter).detach()[large]
        assert torch.allclose(moved.double(), rate * total[large].sign(), rtol=1e-3), name


def test_reptile_goes_67_times_towards_the_copy(teacher: Teacher) -> None:
    synthesizer = make(teacher, gradient="reptile")
    start = copy.deepcopy(synthesizer.meta)
    batch(synthesizer)
    for parameter, before, adapted in zip(
        synthesizer.meta.parameters(), start.parameters(), synthesizer.member.parameters(), strict=True
    ):
        gradient = 2 * synthesizer.meta_optimizer.state[parameter]["exp_avg"]
        assert torch.allclose(gradient, 67 * (before - adapted), rtol=1e-5, atol=1e-6)


def test_a_batch_starts_from_the_meta_generator_with_new_latents(teacher: Teacher) -> None:
    synthesizer = make(teacher)
    latents = []
    for _ in range(2):
        synthesizer._begin()
        assert all(map(torch.equal, synthesizer.member.parameters(), synthesizer.meta.parameters()))
        latents.append(synthesizer.batch.z.detach())
    assert not torch.equal(*latents)
    assert synthesizer.member is not synthesizer.meta


def test_the_latent_layer_starts_anew_once(teacher: Teacher) -> None:
    """After the two batches of the warm-up and one more."""
    synthesizer = make(teacher, demand=Demand(training=64))
    anew = []
    for _ in range(6):
        before = copy.deepcopy(synthesizer.meta)
        synthesizer._begin()
        after = synthesizer.meta
        changed = {
            name.split(".0.")[0].split(".")[0]
            for (name, was), now in zip(before.named_parameters(), after.parameters(), strict=True)
            if not torch.equal(was, now)
        }
        anew.append(changed)
        if changed:
            assert torch.equal(after.body[0].weight, torch.ones(8))
            assert torch.equal(after.body[2].weight, before.body[2].weight)
            assert float(after.project.weight.detach().std()) == pytest.approx(6**-0.5, rel=0.2)
        batch(synthesizer)
    assert anew == [set(), set(), set(), {"project", "body"}, set(), set()]
    never = make(teacher, reset_after=None)
    before = copy.deepcopy(never.meta)
    never.finished = 3
    never._begin()
    assert all(map(torch.equal, never.meta.parameters(), before.parameters()))


def test_images_of_the_warm_up_are_dropped(teacher: Teacher, opponent: nn.Module) -> None:
    synthesizer = make(teacher, game_steps=2)
    assert synthesizer.batches == 2 + 2
    assert synthesizer.warmup_rounds == 4 * 3
    for made in (0, 0, 8, 16):
        batch(synthesizer)
        assert synthesizer.made == synthesizer.available + len(synthesizer.training) == made
    assert synthesizer.available == 8
    assert synthesizer.cost == 4 * 3 * 8
    synthesizer.synthesize([opponent])
    assert (len(synthesizer.training), synthesizer.available) == (16, 8)
    assert synthesizer.cost == 4 * 3 * 8 + 2 * 8


def test_a_budget_goes_to_the_warm_up() -> None:
    demand = Demand(training=12, fresh=12)

    def sized(passes: int) -> tuple[int, int]:
        fields = SMALL.at_cost(passes, demand).model_dump()
        return fields["steps"], fields["warmup_batches"]

    assert sized(10 * 3 * 8 + 5) == (3, 7)
    assert sized(3 * 3 * 8) == (3, 0)
    assert sized(3 * 2 * 8 + 1) == (2, 0)
    assert sized(1) == (1, 0)


def test_the_adversary_is_the_mean_over_students(teacher: Teacher, opponent: nn.Module) -> None:
    same = toy("residual").requires_grad_(False)
    values = []
    for students in ([opponent], [opponent, same]):
        synthesizer = make(teacher, warmup_batches=0, steps=1, demand=Demand(training=8))
        synthesizer.synthesize()
        values.append(synthesizer.synthesize(students)["adversarial"])
    assert values[0] < 0
    assert values[1] == pytest.approx(values[0] / 2)


@pytest.mark.parametrize("stop", [0, 1, 3, 5, 8, 9, 10, 12])
def test_resuming_is_bitwise_the_same(teacher: Teacher, opponent: nn.Module, stop: int) -> None:
    """Within a batch, between two, around the layer that starts anew, and in the game."""
    changes = {"shift": 2, "flip": True}
    straight = make(teacher, **changes)
    terms = [straight.synthesize([opponent]) for _ in range(14)]
    first = make(teacher, **changes)
    before = [first.synthesize([opponent]) for _ in range(stop)]
    state = first.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    resumed = make(teacher, seed=99, **changes)
    resumed.load_state_dict(state)
    after = [resumed.synthesize([opponent]) for _ in range(stop, 14)]
    assert before + after == terms
    ours, theirs = resumed.state_dict(), straight.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert all(torch.equal(state[name], kept[name]) for name in kept), "resuming changed the state it started from"


def test_batches_start_better_and_better(teacher: Teacher) -> None:
    synthesizer = make(teacher, batch=16, width=8, latent=16, warmup_batches=19, reset_after=None)
    firsts = []
    for _ in range(20):
        firsts.append(synthesizer.synthesize()["bn"])
        synthesizer.synthesize()
        synthesizer.synthesize()
    assert sum(firsts[-3:]) < 0.6 * sum(firsts[:3])


def test_config_is_closed_and_survives_json() -> None:
    with pytest.raises(ValidationError, match="gradient"):
        FastDFKDConfig.model_validate({"gradient": "maml"})
    with pytest.raises(ValidationError, match="warm_up"):
        FastDFKDConfig.model_validate({"warm_up": 3})
    assert FastDFKDConfig.model_validate_json(SMALL.model_dump_json()) == SMALL
