"""CMI: the published loss written down again in float64, the memory of features, and resuming at any step."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.methods.cmi import CMIConfig, CMIWeights
from dfqkit.synthesis.methods.cmi import method as cmi
from dfqkit.synthesis.methods.cmi.method import CMI
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import TeacherError
from dfqkit_export.images.spec import ImageSpec
from tests._hooks import hooks_on
from tests._toys import images, toy

SMALL = CMIConfig(batch=8, steps=3, latent=6, width=4, projection=5, lr=0.01, negatives=12, bank=20)
WEIGHTS = CMIWeights(adversarial=0.7, bn=1.3, one_hot=0.6, contrastive=0.9)


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


def make(teacher: Teacher, seed: int = 0, demand: Demand | None = None, **changes: object) -> CMI:
    return CMI(SMALL.model_copy(update=changes), teacher, derive(seed, "cmi"), demand or Demand(training=12, fresh=12))


def plain(model: nn.Module, x: Tensor) -> tuple[Tensor, list[tuple[nn.BatchNorm2d, Tensor]]]:
    """Logits, and what entered each BatchNorm layer, in float64."""
    entered: list[tuple[nn.BatchNorm2d, Tensor]] = []
    model = copy.deepcopy(model).double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda module, inputs: entered.append((module, inputs[0])))
    return model(x), entered


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(1, keepdim=True).sqrt()


def published(synthesizer: CMI, opponent: nn.Module, z: Tensor) -> dict[str, Tensor]:
    """The terms as the paper and its code state them; views are fixed by the test."""
    config, n = synthesizer.config, len(z)
    x = copy.deepcopy(synthesizer.member).double()(z)
    t, entered = plain(synthesizer.teacher.model, global_view(x))
    s, _ = plain(opponent, global_view(x))
    _, entered_local = plain(synthesizer.teacher.model, local_view(x))
    bn = sum(
        (y.mean((0, 2, 3)) - layer.running_mean).square().sum().sqrt()
        + (y.var((0, 2, 3), correction=0) - layer.running_var).square().sum().sqrt()
        for layer, y in entered
    )
    log_t, log_s = t - t.exp().sum(1, keepdim=True).log(), s - s.exp().sum(1, keepdim=True).log()
    divergence = (log_t.exp() * (log_t - log_s)).sum(1)
    agree = t.argmax(1) == s.argmax(1)
    assert int(agree.sum()) == n // 2, "the test needs both kinds of images"
    first, _, second = copy.deepcopy(synthesizer.head).double()

    def project(features: Tensor) -> Tensor:
        hidden = (features @ first.weight.T + first.bias).clamp(min=0)
        return unit(hidden @ second.weight.T + second.bias)

    features = [torch.cat([y.mean((2, 3)) for _, y in side], 1) for side in (entered_local, entered)]
    cached = synthesizer.bank.double().chunk(2, 1)
    rows = torch.cat([project(features[0]), project(cached[0])])
    columns = torch.cat([project(features[1]), project(cached[1])]).detach()
    similarity = (rows @ columns.T / config.temperature).exp()
    each = -(similarity.diagonal() / similarity.sum(1)).log()
    contrastive = each[:n].mean() + (each[n:].mean() if len(each) > n else 0)
    return {
        "bn": bn,
        "one_hot": -log_t[torch.arange(n), synthesizer.batch.labels].mean(),
        "contrastive": contrastive,
        "adversarial": -(divergence * agree).sum() / n,
    }


def global_view(x: Tensor) -> Tensor:
    return x.roll(1, 3)


def local_view(x: Tensor) -> Tensor:
    return 0.5 * x + 0.5 * x.flip(2)


@pytest.fixture
def fixed_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmi, "shifted", lambda x, *_, **__: global_view(x))
    monkeypatch.setattr(cmi, "cropped", lambda x, *_, **__: local_view(x))


@pytest.mark.usefixtures("fixed_views")
@pytest.mark.parametrize("batches_before", [0, 1])
def test_loss_and_gradient_are_the_published_ones(teacher: Teacher, opponent: nn.Module, batches_before: int) -> None:
    """With an empty memory, and with one whose rows are all drawn (their order does not matter)."""
    synthesizer = make(teacher, weights=WEIGHTS)
    for _ in range(batches_before * SMALL.steps):
        synthesizer.synthesize()
    begin = synthesizer._begin
    seen: dict[str, Tensor] = {}

    def begin_and_look() -> None:
        begin()
        z = synthesizer.batch.z.detach().double().requires_grad_()
        seen.update(published(synthesizer, opponent, z))
        total = sum(WEIGHTS.model_dump()[name] * term for name, term in seen.items())
        seen["head"], seen["z"] = seen_head(synthesizer), torch.autograd.grad(total, z)[0]
        seen["total"] = total

    synthesizer._begin = begin_and_look  # type: ignore[method-assign]
    terms = synthesizer.synthesize([opponent])
    assert set(terms) == {"bn", "one_hot", "contrastive", "adversarial"}
    for name, value in terms.items():
        assert value == pytest.approx(float(seen[name].detach()), rel=1e-4), name
    assert float(synthesizer.batch.best["loss"]) == pytest.approx(float(seen["total"].detach()), rel=1e-4)
    # After one step Adam's first moment is (1 - 0.5) times the gradient.
    gradient = 2 * synthesizer.optimizer.state[synthesizer.batch.z]["exp_avg"].double()
    assert torch.allclose(gradient, seen["z"], rtol=1e-2, atol=1e-4 * float(seen["z"].abs().max()))
    assert not torch.equal(seen_head(synthesizer), seen["head"]), "the head did not learn"


def seen_head(synthesizer: CMI) -> Tensor:
    return synthesizer.head[0].weight.detach().clone()


def test_no_adversarial_term_without_students_or_weight(teacher: Teacher, opponent: nn.Module) -> None:
    assert "adversarial" not in make(teacher).synthesize()
    assert "adversarial" in make(teacher).synthesize([opponent])
    assert "adversarial" not in make(teacher, weights=CMIWeights(adversarial=0)).synthesize([opponent])


def test_the_adversary_ignores_images_on_which_they_disagree(teacher: Teacher) -> None:
    wrong = toy("residual")
    with torch.no_grad():
        wrong.head.fc.weight.neg_()
        wrong.head.fc.bias.neg_()
    assert make(teacher).synthesize([wrong.requires_grad_(False)])["adversarial"] == 0
    two = make(teacher).synthesize([wrong, toy("residual", 1).requires_grad_(False)])["adversarial"]
    one = make(teacher).synthesize([toy("residual", 1).requires_grad_(False)])["adversarial"]
    assert two == pytest.approx(one / 2)


def test_memory_is_first_in_first_out(teacher: Teacher) -> None:
    synthesizer = make(teacher, demand=Demand(training=32))
    banks = []
    for _ in range(4):
        for _ in range(SMALL.steps):
            synthesizer.synthesize()
        banks.append(synthesizer.bank.clone())
    assert [len(bank) for bank in banks] == [8, 16, 20, 20]
    assert torch.equal(banks[1][:8], banks[0])
    assert torch.equal(banks[2][:12], banks[1][4:])
    assert torch.equal(banks[3][:12], banks[2][8:])
    channels = sum(layer.num_features for layer in teacher.model.modules() if isinstance(layer, nn.BatchNorm2d))
    assert banks[0].shape[1] == 2 * channels


@pytest.mark.usefixtures("fixed_views")
def test_the_best_step_is_kept_with_its_own_features(teacher: Teacher) -> None:
    """With a learning rate that ruins everything, the best images are the first."""
    synthesizer = make(teacher, lr=100.0, demand=Demand(training=8))
    synthesizer.synthesize()
    first = synthesizer.batch.best["images"].clone()
    synthesizer.synthesize()
    synthesizer.synthesize()
    assert torch.allclose(synthesizer.training_batch(8).sort(0).values, first.sort(0).values, atol=0.02)
    _, entered = plain(teacher.model, local_view(first.double()))
    local = torch.cat([y.mean((2, 3)) for _, y in entered], 1)
    assert torch.allclose(synthesizer.bank.chunk(2, 1)[0].double(), local, atol=1e-5)


def test_negatives_are_drawn(teacher: Teacher) -> None:
    """More rows than are asked for: other rows each time; fewer: all."""
    synthesizer = make(teacher, negatives=3)
    synthesizer.bank = torch.rand(20, synthesizer.bank.shape[1], generator=derive(0, "bank"))
    local, global_ = synthesizer.bank[:4].chunk(2, 1)
    assert len({float(synthesizer._contrast(local, global_).detach()) for _ in range(10)}) > 5
    without = make(teacher, negatives=0)
    without.bank = synthesizer.bank
    assert len({float(without._contrast(local, global_).detach()) for _ in range(3)}) == 1


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4, 5])
def test_resuming_is_bitwise_the_same(teacher: Teacher, opponent: nn.Module, stop: int) -> None:
    straight = make(teacher, flip=True)
    terms = [straight.synthesize([opponent]) for _ in range(7)]
    first = make(teacher, flip=True)
    before = [first.synthesize([opponent]) for _ in range(stop)]
    state = first.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    resumed = make(teacher, seed=99, flip=True)
    resumed.load_state_dict(state)
    after = [resumed.synthesize([opponent]) for _ in range(stop, 7)]
    assert before + after == terms
    ours, theirs = resumed.state_dict(), straight.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert all(torch.equal(state[name], kept[name]) for name in kept), "resuming changed the state it started from"


def test_a_game_round_is_a_batch(teacher: Teacher, opponent: nn.Module) -> None:
    synthesizer = make(teacher, game_steps=2)
    for _ in range(synthesizer.warmup_rounds):
        synthesizer.synthesize()
    cost, stock = synthesizer.cost, len(synthesizer.training)
    assert cost == 3 * 3 * 8 * 2, "three batches of three steps, two passes an image"
    assert "adversarial" in synthesizer.synthesize([opponent])
    assert synthesizer.cost == cost + 2 * 8 * 2
    assert len(synthesizer.training) == stock + 8
    assert synthesizer.available == 12


def test_its_loss_falls(teacher: Teacher) -> None:
    synthesizer = make(teacher, batch=16, steps=40, width=8, latent=16)
    terms = [synthesizer.synthesize() for _ in range(40)]
    assert terms[-1]["bn"] < 0.6 * terms[0]["bn"]
    assert sum(t["one_hot"] for t in terms[-5:]) < 0.6 * sum(t["one_hot"] for t in terms[:5])


def test_features_of_named_layers(teacher: Teacher) -> None:
    synthesizer = make(teacher, feature_layers=("b1.0", "head.pool"))
    assert synthesizer.head[0].in_features == 8 + 12
    _, features = synthesizer._teach(images(4))
    entered = []
    handle = teacher.model.head.pool.register_forward_pre_hook(lambda _, x: entered.append(x[0]))
    teacher.model(images(4))
    handle.remove()
    assert torch.allclose(features[:, 8:], entered[0].mean((2, 3)), atol=1e-6)
    assert not hooks_on(teacher.model)
    with pytest.raises(TeacherError, match="no layer"):
        make(teacher, feature_layers=("b1.9",))


def test_batch_norms_of_vectors() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.fc = nn.Conv2d(1, 6, 5), nn.BatchNorm1d(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.norm(self.first(x).amax((2, 3)))))

    with torch.random.fork_rng(devices=[]):
        model = Flat()
    narrow = ImageSpec(shape=(1, 10, 7), mean=(0.3,), std=(0.3,), classes=2)
    synthesizer = make(Teacher.from_module(model, narrow), feature_layers=("norm",))
    assert all(torch.isfinite(torch.tensor(list(synthesizer.synthesize().values()))))
    assert synthesizer.bank.shape[1] == 12
    x = images(8, image=narrow)
    assert torch.equal(synthesizer._teach(x)[1], model.eval().first(x).amax((2, 3)))


def test_config_is_closed_and_survives_json() -> None:
    with pytest.raises(ValidationError, match="flips"):
        CMIConfig.model_validate({"flips": True})
    with pytest.raises(ValidationError, match="crop"):
        CMIConfig(crop=0.0)
    assert CMIConfig.model_validate_json(SMALL.model_dump_json()) == SMALL
    assert SMALL.at_cost(3 * 8 * 2 * 10 + 5, Demand(training=12, fresh=12)).model_dump()["steps"] == 10
