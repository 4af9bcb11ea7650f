"""The ``student`` section: a smaller network, trained in float before it is quantized."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dfqkit.config.distill import LoopConfig
from dfqkit.config.section import Arguments

_LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3}


class FloatStudentConfig(LoopConfig):
    """The ``student`` section of a recipe: a smaller network, trained in float before it is quantized."""

    factory: str = Field(description="torchvision:NAME, timm:NAME or package.module:factory.")
    args: Arguments = Field(default_factory=dict, description="Further keyword arguments of the factory.")
    start: str | None = Field(
        None, description="State dict to start from (.safetensors, .pt, .pth); null: random weights of the run's seed."
    )
    steps: int = Field(4000, ge=1, description="Steps (ours; the literature: 80,000 and more on CIFAR-10).")
    batch: int = Field(128, ge=2, description="Images a step (CMI, ZSKT: 128).")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="SGD with Nesterov momentum, or Adam; cosine to 0.")
    lr: float | None = Field(None, gt=0, description="null: 0.1 for sgd (CMI, DAFL, DFAD), 1e-3 for adam.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd; Nesterov's unless 0 (CMI, DAFL, DFAD: 0.9).")
    weight_decay: float = Field(1e-4, ge=0, description="On all weights (CMI: 1e-4, DAFL: 5e-4).")
    judge_every: int = Field(200, ge=1, description="Steps between two looks at the held-out synthetic images.")

    @model_validator(mode="after")
    def _layers_named(self) -> FloatStudentConfig:
        if self.weights.of_layers and self.layers is None:
            message = (
                f"weights.{self.weights.of_layers[0]} needs layers: two architectures have no layers in common that "
                "could be found by themselves. Name modules of both, e.g. layers: [{teacher: layer2, student: layer2}]"
            )
            raise ValueError(message)
        return self

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return _LEARNING_RATES[self.optimizer] if self.lr is None else self.lr
