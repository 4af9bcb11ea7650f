"""A synthesizer for tests of training loops: nothing but its random numbers and an adversarial offset."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.config.synthesis import SynthesizerConfig
from dfqkit.synthesis.base import Losses, Synthesizer
from dfqkit.teacher.load import Teacher
from tests._toys import IMAGE


class Offset(Synthesizer):
    """Noise plus an offset that climbs the students' divergence."""

    def __init__(self, teacher: Teacher, generator: torch.Generator) -> None:
        super().__init__(SynthesizerConfig(method="offset"), teacher, generator)
        self.offset = torch.zeros(IMAGE.shape)
        self.played = 0
        self.trainable_seen: list[bool] = []
        self.break_in_round = -1

    @property
    def warmup_rounds(self) -> int:
        return 0

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        self.trainable_seen.append(any(p.requires_grad for student in students for p in student.parameters()))
        if self.played == self.break_in_round:
            message = "broken"
            raise RuntimeError(message)
        offset = self.offset.clone().requires_grad_(True)
        batch = torch.randn((4, *IMAGE.shape), generator=self.rng) + offset
        answers = self.teacher.model(batch)
        loss = -torch.stack([losses.kd_kl(student(batch), answers) for student in students]).mean()
        loss.backward()
        assert offset.grad is not None
        self.offset = (offset - 0.05 * offset.grad.sign()).detach()
        self.played += 1
        return {"adversarial": float(loss.detach())}

    def sample(self, n: int) -> Tensor:
        return torch.randn((n, *IMAGE.shape), generator=self.rng) + self.offset

    def state_dict(self) -> dict[str, Tensor]:
        return {"rng": self.rng.get_state(), "offset": self.offset.clone(), "played": torch.tensor(self.played)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])
        self.offset, self.played = state["offset"].clone(), int(state["played"])
