"""DFQ: generator ensembles that play against quantized students.

Source: Choi, Choi, El-Khamy, Lee, "Data-Free Network Quantization With Adversarial Knowledge Distillation", CVPR
Workshops 2020 (arXiv 2005.04136). With generators g_j, students S_i and D(T, S) = mean per-sample KL(softmax T ||
softmax S), each generator minimises

    L_j = - adversarial * (1/S) sum_i D(T(x), S_i(x))
          + bn * sum over layers and channels of KL(N(batch) || N(running))
          + instance_entropy * E[H(softmax T(x))]
          - batch_entropy * H(E[softmax T(x)]),        x = g_j(z), z ~ N(0, I)

and the students minimise D on what the generators make (that half is `dfqkit.distill`). Without students only the last
three terms, L_psi of the paper, are minimised: the warm-up.

Differs from the paper as it is known: the three terms of L_psi have weights of their own (the paper: one alpha); the
adversarial weight is small, because a quantized copy of the teacher is a weak opponent that a strong adversary drives
into images no camera makes; generators end in a sigmoid (see `generator`); past images are remembered and drawn again,
against forgetting; gradients are clipped. No author code and no published hyperparameters exist: each default names its
origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from .. import losses
from ..optimizers import cosine, optimizer_tensors, restore_optimizer, under
from ..taps import BatchNormTap
from ..teacher import Teacher
from .base import NO_DEMAND, Demand, Losses, Synthesizer, SynthesizerConfig
from .generator import Generator


class DFQWeights(BaseModel):
    """Weights of the generators' loss terms."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    adversarial: float = Field(0.05, ge=0, description="Ours: 1 (paper) took a W4A4 ResNet-20 below plain calibration.")
    bn: float = Field(0.03, ge=0, description="On the sum over channels and layers; the known reproduction has 0.01.")
    instance_entropy: float = Field(0.5, ge=0, description="Ours; the reproduction has 0.01 against adversarial 1.")
    batch_entropy: float | None = Field(
        None, ge=0, description="null: 1 for up to 10 classes (ours), 10 above (CMI's scripts use 20; its issue 2)."
    )


class DFQConfig(SynthesizerConfig):
    """The ``synthesis`` section of a recipe with ``method: dfq``."""

    method: Literal["dfq"] = "dfq"
    generators: int = Field(2, ge=1, le=16, description="G of the paper.")
    batch: int = Field(128, ge=2, description="Images a generator step, over all generators.")
    latent: int = Field(256, ge=1, description="Dimension of z (CMI scripts).")
    width: int = Field(64, ge=4, description="Channels of a generator's last hidden map (CMI scripts).")
    warmup: int = Field(300, ge=0, description="Generator steps on L_psi alone before any student exists.")
    steps: int = Field(1, ge=1, description="Steps of each generator in one adversarial round.")
    lr: float = Field(
        1e-2,
        gt=0,
        description="Adam, betas 0.5 and 0.999, cosine, in the warm-up. Ours: the 1e-3 of the reproduction and of the "
        "CMI scripts was four times slower to the same BatchNorm statistics.",
    )
    lr_game: float = Field(1e-2, gt=0, description="The same in the game; 1e-3 (and a w3a3 partner) was worse.")
    clip: float = Field(5.0, gt=0, description="Largest gradient norm (ZSKT).")
    memory: int = Field(
        8192, ge=0, description="Past images of the game kept; half of every training batch (CMI keeps all)."
    )
    weights: DFQWeights = DFQWeights()


class DFQ(Synthesizer):
    """An ensemble of generators trained on a teacher's BatchNorm statistics and against quantized students."""

    Config = DFQConfig
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm"})

    def __init__(
        self,
        config: DFQConfig,
        teacher: Teacher,
        generator: torch.Generator,
        demand: Demand = NO_DEMAND,
    ) -> None:
        super().__init__(config, teacher, generator, demand)
        self.config = config
        self.weights: dict[str, float] = config.weights.model_dump()
        if self.weights["batch_entropy"] is None:
            self.weights["batch_entropy"] = 1.0 if teacher.image.classes <= 10 else 10.0
        self.tap = BatchNormTap(teacher.model)
        self.generators = [
            Generator(teacher.image, config.latent, config.width, generator).to(self.device)
            for _ in range(config.generators)
        ]
        self.optimizers = [torch.optim.Adam(g.parameters(), lr=config.lr, betas=(0.5, 0.999)) for g in self.generators]
        self.warmed = 0
        self.played = 0
        shape = (config.memory, *teacher.image.shape)
        self.memory = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        self.remembered = 0

    @classmethod
    def grading_config(cls, config: SynthesizerConfig) -> SynthesizerConfig:
        """One generator with the batch of one member: as good an image as the ensemble's, at a share of the cost."""
        fields = config.model_dump()
        return cls.Config.model_validate(
            fields | {"generators": 1, "batch": max(2, fields["batch"] // fields["generators"]), "memory": 0}
        )

    @classmethod
    def at_cost(cls, config: SynthesizerConfig, passes: int, demand: Demand) -> SynthesizerConfig:
        """As many warm-up steps of all generators as the budget allows."""
        fields = config.model_dump()
        return config.model_copy(update={"warmup": max(1, passes // fields["batch"])})

    @property
    def warmup_rounds(self) -> int:
        """Rounds on L_psi alone."""
        return self.config.warmup

    def synthesize(self, students: Sequence[nn.Module] = ()) -> Losses:
        """One round: a warm-up step without students, ``steps`` adversarial steps with them, of every generator."""
        config = self.config
        if students:
            lr, steps = cosine(config.lr_game, self.played / max(self.demand.game_rounds, 1), floor=0.05), config.steps
        else:
            lr, steps = cosine(config.lr, self.warmed / max(config.warmup, 1), floor=0.05), 1
        total: dict[str, float] = {}
        for _ in range(steps):
            for member, optimizer in zip(self.generators, self.optimizers, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = lr
                for name, value in self._step(member, optimizer, students).items():
                    total[name] = total.get(name, 0.0) + value / (steps * len(self.generators))
        self.played += bool(students)
        self.warmed += not students
        return total

    def _step(self, member: Generator, optimizer: torch.optim.Optimizer, students: Sequence[nn.Module]) -> Losses:
        n = max(2, self.config.batch // len(self.generators))
        images = member(self._latent(n))
        with self.tap as tap:
            logits = self.teacher.model(images)
            terms = {
                "bn": torch.stack(
                    [losses.bn_kl(s.mean, s.variance, s.running_mean, s.running_variance) for s in tap.statistics]
                ).sum(),
                "instance_entropy": losses.instance_entropy(logits),
                "batch_entropy": losses.class_balance(logits),
            }
        if students and self.weights["adversarial"]:
            divergences = [losses.kd_kl(student(images), logits) for student in students]
            terms["adversarial"] = -torch.stack(divergences).mean()
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        gradients = torch.autograd.grad(loss, list(member.parameters()))
        for parameter, gradient in zip(member.parameters(), gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(member.parameters(), self.config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.cost += n
        if students:
            self._remember(images.detach())
        return {name: float(term.detach()) for name, term in terms.items()}

    def sample(self, n: int) -> Tensor:
        """Fresh images (n, C, H, W), evenly from all generators."""
        share = -(-n // len(self.generators))
        with torch.no_grad():
            return torch.cat([self._draw(member, share) for member in self.generators])[:n]

    def training_batch(self, n: int) -> Tensor:
        """Half from memory, where the game has left something in it, the rest fresh."""
        old = n // 2 if self.remembered else 0
        return torch.cat([self._recall(old), self.sample(n - old)]) if old else self.sample(n)

    def _draw(self, member: Generator, n: int) -> Tensor:
        """Images in training-mode statistics, as they were optimised, without moving the generator's buffers."""
        kept = {name: buffer.clone() for name, buffer in member.named_buffers()}
        images: Tensor = member(self._latent(max(n, 2)))[:n]
        for name, buffer in member.named_buffers():
            buffer.copy_(kept[name])
        return images

    def _latent(self, n: int) -> Tensor:
        return torch.randn((n, self.config.latent), generator=self.rng, device=self.device)

    def _remember(self, images: Tensor) -> None:
        """Keep images, 8 bits a channel; a full memory replaces entries drawn at random."""
        if not len(self.memory):
            return
        codes = (self.teacher.image.denormalize(images) * 255).round().clamp(0, 255).to(torch.uint8)
        free = len(self.memory) - self.remembered
        added = codes[:free]
        self.memory[self.remembered : self.remembered + len(added)] = added
        self.remembered += len(added)
        rest = codes[free:]
        if len(rest):
            slots = torch.randperm(len(self.memory), generator=self.rng, device=self.device)[: len(rest)]
            self.memory[slots] = rest[: len(slots)]

    def _recall(self, n: int) -> Tensor:
        index = torch.randint(self.remembered, (n,), generator=self.rng, device=self.device)
        return self.teacher.image.normalize(self.memory[index].float() / 255)

    def state_dict(self) -> dict[str, Tensor]:
        """Generators, their optimizers, the memory, the counters and the random state."""
        state = {
            "counters": torch.tensor([self.warmed, self.played, self.cost, self.remembered]),
            "rng": self.rng.get_state(),
            "memory": self.memory[: self.remembered],
        }
        for index, (member, optimizer) in enumerate(zip(self.generators, self.optimizers, strict=True)):
            state |= {f"generator.{index}.{name}": value for name, value in member.state_dict().items()}
            state |= {f"optimizer.{index}.{name}": value for name, value in optimizer_tensors(optimizer).items()}
        return {name: value.detach().clone() for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.warmed, self.played, self.cost, self.remembered = state["counters"].tolist()
        self.rng.set_state(state["rng"].cpu())
        self.memory[: self.remembered] = state["memory"]
        for index, (member, optimizer) in enumerate(zip(self.generators, self.optimizers, strict=True)):
            member.load_state_dict(under(state, f"generator.{index}."))
            restore_optimizer(optimizer, under(state, f"optimizer.{index}."))
