"""What all methods that make a set share: devices, batches that diverge, and what a budget pays for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from dfqkit.config.pools import PoolConfig
from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.base import Losses
from dfqkit.synthesis.optimizers import optimizer_tensors, restore_optimizer, under
from dfqkit.synthesis.pool import PoolSynthesizer
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError
from tests._messages import raises_naming
from tests._toys import IMAGE, toy_teacher

META = torch.device("meta")
DEMAND = Demand(training=6, fresh=3)


class GreyConfig(PoolConfig):
    method: Literal["grey"] = "grey"
    lr: float = 0.1
    weights: dict[str, float] = Field({"level": 2.0})


class Grey(PoolSynthesizer):
    """A level a batch, by Adam."""

    def _begin(self) -> None:
        self.level = torch.full((1,), 0.2, device=self.device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.level], lr=0.1)

    def _step(self, students: Sequence[nn.Module], step: int, steps: int) -> Losses:
        loss = (self.level - 0.5).square().sum()
        (self.level.grad,) = torch.autograd.grad(loss, [self.level])
        self.optimizer.step()
        return {"level": float(loss.detach())}

    def _finish(self) -> Tensor:
        images = torch.zeros((self.config.batch, *IMAGE.shape), device=self.device)
        return self.teacher.image.normalize(images + self.level)

    def _tensors(self) -> dict[str, Tensor]:
        if not self.at:
            return {}
        adam = {f"adam.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        return {"level": self.level, **adam}

    def _load_tensors(self, state: dict[str, Tensor]) -> None:
        self.given = state
        if self.at:
            self.level.data = state["level"]
            restore_optimizer(self.optimizer, under(state, "adam."))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return toy_teacher()


def make(teacher: Teacher, **changes: object) -> Grey:
    return Grey(GreyConfig.model_validate({"batch": 4, "steps": 3, **changes}), teacher, derive(0), DEMAND)


def test_a_state_on_another_device_ends_up_on_the_own(teacher: Teacher) -> None:
    first, other = make(teacher), make(teacher)
    for _ in range(5):
        first.synthesize()
    first.training_batch(2)
    state = first.state_dict()
    assert all(value.device.type == "cpu" for value in state.values())
    other.device = META
    other.load_state_dict(state)
    assert other.at == 2
    held = (other.training, other.fresh, other.order.rest, other.level)
    assert [value.device for value in held] == [META] * 4
    (adam,) = other.optimizer.state.values()
    assert (adam["exp_avg"].device, adam["exp_avg_sq"].device) == (META, META)
    assert adam["step"].device.type == "cpu", "where torch keeps it"
    assert {name: value.device.type for name, value in other.given.items()} == {
        "level": "meta", "adam.0.exp_avg": "meta", "adam.0.exp_avg_sq": "meta", "adam.0.step": "cpu",
    }  # fmt: skip
    assert torch.equal(other.rng.get_state(), first.rng.get_state())


def test_what_was_loaded_is_a_copy(teacher: Teacher) -> None:
    made, state = make(teacher), make(teacher).state_dict()
    made.load_state_dict(state)
    held = {made.training.data_ptr(), made.fresh.data_ptr(), made.order.rest.data_ptr()} - {0}
    assert not held & {value.data_ptr() for value in state.values()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_not_finite_stops_it(teacher: Teacher, value: float) -> None:
    made = make(teacher)
    for _ in range(4):
        made.synthesize()
    made._step = lambda students, step, steps: {"fine": 1.0, "level": value}  # type: ignore[method-assign]
    with pytest.raises(
        ArtefactError,
        match=rf"'grey' has diverged: level is {value} in step 2 of batch 2.*Lower lr \(now 0.1\) or weights.level ",
    ):
        made.synthesize()
    assert (made.cost, made.at) == (16, 1), "the step counted"


def test_a_finished_batch_that_is_not_finite_is_not_kept(teacher: Teacher) -> None:
    made = make(teacher)
    for _ in range(2):
        made.synthesize()
    made._finish = lambda: torch.full((4, *IMAGE.shape), math.nan)  # type: ignore[method-assign]
    with raises_naming(ArtefactError, "pixel", "nan in step 3 of batch 1"):
        made.synthesize()
    assert (len(made.training), made.available) == (0, 0)


def test_a_budget_pays_for_whole_batches(teacher: Teacher) -> None:
    """Nine images in batches of four are twelve images' worth of steps."""
    sized = GreyConfig(batch=4).at_cost(120, DEMAND)
    assert sized.model_dump()["steps"] == 10
    made = Grey(GreyConfig.model_validate(sized.model_dump()), teacher, derive(0), DEMAND)
    for _ in range(made.warmup_rounds):
        made.synthesize()
    assert (made.cost, len(made.training) + made.available) == (120, 12)
