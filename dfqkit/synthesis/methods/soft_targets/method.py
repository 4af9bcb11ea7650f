"""The algorithm of soft targets; its source, formula and deviations are told in the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.synthesis.methods.soft_targets import SoftTargetsConfig
from dfqkit.synthesis.pixels import PixelSynthesizer
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.structure import grey_images, layer_calls, required_head
from dfqkit.teacher.taps import LayerTap
from dfqkit_export.errors import RecipeError


class SoftTargets(PixelSynthesizer):
    """Pixels optimised for the answers to random outputs of one layer."""

    config: SoftTargetsConfig
    of_batch = ("target",)

    def _set_up(self) -> None:
        super()._set_up()
        config, teacher = self.config, self.teacher
        head, module = required_head(teacher, config.method)
        self.layer, self.head = config.layer or head, head
        if self.layer != head:
            module = _linear(teacher, self.layer)
        self.rows = nn.functional.normalize(module.weight.detach().double(), dim=1).float().to(self.device)
        self.tap = LayerTap(teacher.model, [_reader(teacher) or head], "input")
        self.target = torch.zeros(0, device=self.device)

    def _draw(self) -> None:
        outputs = self._outputs()
        logits = outputs if self.layer == self.head else _tail(self.teacher, self.layer, outputs)
        self.target = logits.softmax(1)

    def _outputs(self) -> Tensor:
        """Return outputs of the layer, (batch, rows) ~ N(0, sigma^2 R)."""
        shape = (self.config.batch, self.rows.shape[1])
        return self.config.sigma * torch.randn(shape, generator=self.rng, device=self.device) @ self.rows.T

    def _terms(self, images: Tensor, students: Sequence[nn.Module]) -> dict[str, Tensor]:
        with self.tap as tap:
            logits = self.teacher.model(images)
            (features,) = tap.values.values()
        entropy = torch.special.entr(self.target).sum(1).mean()
        terms = dict(kl=losses.soft_cross_entropy(logits, self.target, self.config.temperature) - entropy)
        if self.weights["activation"]:
            terms["activation"] = losses.activation_l1(features)
        return terms


def _linear(teacher: Teacher, name: str) -> nn.Linear:
    """Return the linear layer called ``name``, which gives one vector an image."""
    called = {
        call.name: call.layer
        for call in layer_calls(teacher)[0]
        if isinstance(call.layer, nn.Linear) and isinstance(call.output, Tensor) and call.output.dim() == 2
    }
    if name not in called:
        message = (
            f"synthesis.layer is '{name}', which is no linear layer of teacher '{teacher.name}' that gives one vector "
            f"an image. It has {', '.join(called)}. Name one of these, or leave it out for the head."
        )
        raise RecipeError(message)
    return called[name]


def _reader(teacher: Teacher) -> str | None:
    """Return the first linear layer that is called after the last convolution."""
    names: list[str] = []
    seen = False
    for call in layer_calls(teacher)[0]:
        if isinstance(call.layer, nn.modules.conv._ConvNd):
            names, seen = [], True
        elif isinstance(call.layer, nn.Linear) and (seen or not names):
            names.append(call.name)
    return names[0] if names else None


def _tail(teacher: Teacher, layer: str, outputs: Tensor) -> Tensor:
    """Logits (n, K) of the network when ``layer`` gives ``outputs`` (n, d), whatever came before.

    The whole network runs on grey images, and a hook puts the outputs in place; so the tail needs no taking apart.
    What passes the layer by on another path is a grey image's.
    """
    with teacher.model.get_submodule(layer).register_forward_hook(lambda *_: outputs.clone()):
        return teacher.logits(grey_images(teacher, len(outputs)))
