"""Pre-flight: what a teacher offers, and what can be done with it, before any compute is spent.

What belongs here: facts that are read off a teacher, and their text. Whether the teacher is sound at
all was checked when it was made (`verification`); nothing here changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dfqkit.config.registry import synthesizer_configs
from dfqkit.teacher.load import Teacher, is_untrained
from dfqkit.teacher.structure import layer_calls, linear_head, provides
from dfqkit.teacher.taps import is_batch_norm
from dfqkit_export.errors import TeacherError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.tasks import Task
from dfqkit_export.words import some, table

#: Tries what a run does (`preflight.examine`): how often each operator occurs, and those that stay in float.
Operators = Callable[[nn.Module, ImageSpec, Task], tuple[Mapping[str, int], tuple[str, ...]]]

_SUPPLIED = frozenset(
    {"student", "images", "pipeline"}
)  # needs that the pipeline or the recipe meets, whatever the teacher
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """The last layer, when it is a linear one, by its path in the model."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """What `inspect_teacher` found.

    Attributes:
        multiply_adds: Of convolutions and matrix products for one image.
        convolutions: Layers that run; `linear_layers` alike.
        batchnorm: `statistics` (every BatchNorm has running statistics), `partial` (some have), `no statistics`,
            `folded` (placeholders show that it was merged into the convolutions) or `none`.
        batchnorm_layers: Of those that run, without auxiliary heads, those with statistics; `batchnorm_bare`: the rest.
        batchnorm_untrained: BatchNorm layers whose running statistics are still the initial mean 0 and variance 1.
        operators: How often each occurs in the captured graph, and those `unsupported`, which stay in float.
        capture_problem: Why and where a run would fail, from the capture to the ONNX file; None if it would not.
        task: What its outputs mean, with what was taken from them.
        provides: What synthesizers may need of a teacher and this one has; see `structure.provides`.
        synthesizers: For each registered synthesizer, what it needs and this teacher lacks.
    """

    name: str
    sha256: str
    parameters: int
    multiply_adds: int
    convolutions: int
    linear_layers: int
    batchnorm: str
    batchnorm_layers: tuple[str, ...]
    batchnorm_bare: tuple[str, ...]
    batchnorm_untrained: tuple[str, ...]
    head: LinearHead | None
    operators: Mapping[str, int]
    unsupported: tuple[str, ...]
    capture_problem: str | None
    task: Mapping[str, Any]
    provides: frozenset[str]
    synthesizers: Mapping[str, tuple[str, ...]]

    @property
    def capturable(self) -> bool:
        """Whether the model can be captured for any batch size, quantized and written as ONNX."""
        return self.capture_problem is None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them, in a stable order."""
        return {
            **asdict(self),
            "operators": dict(sorted(self.operators.items())),
            "provides": sorted(self.provides),
            "synthesizers": dict(sorted(self.synthesizers.items())),
            "capturable": self.capturable,
        }

    def render_text(self) -> str:
        """Return the facts as lines of plain text for a terminal."""
        head = f"{self.head.name} ({self.head.in_features} -> {self.head.out_features})" if self.head else "none found"
        rows = [
            ("parameters", f"{self.parameters:,}"),
            ("multiply-adds", f"{self.multiply_adds / 1e6:,.1f} M for one image"),
            ("layers", f"{self.convolutions} convolutions, {self.linear_layers} linear"),
            ("BatchNorm", self._batchnorm_text()),
            ("linear head", head),
            ("task", _said(self.task)),
            ("provides", _joined(sorted(self.provides))),
            ("capturable", f"no: {self.capture_problem}" if self.capture_problem else "yes, with any batch size"),
        ]
        if self.capturable:
            rows += [
                ("operators", ", ".join(f"{name} {count}" for name, count in sorted(self.operators.items()))),
                ("left in float", ", ".join(self.unsupported) or "none"),
            ]
        rows += [
            (f"synthesizer {name}", f"does not apply: needs {_joined(lacks)}" if lacks else "applies")
            for name, lacks in sorted(self.synthesizers.items())
        ]
        lines = [f"  {line}" for line in table(rows)]
        return "\n".join([f"Teacher {self.name} (weights sha256 {self.sha256[:12]})", *lines])

    def _batchnorm_text(self) -> str:
        texts = {
            "folded": "folded into the convolutions; its statistics are gone",
            "none": "none (never there, or folded into the convolutions)",
        }
        text = texts.get(self.batchnorm, f"{len(self.batchnorm_layers)} layers with running statistics")
        if self.batchnorm_bare:
            text += f", {len(self.batchnorm_bare)} without: {_joined(self.batchnorm_bare)}"
        if self.batchnorm_untrained:
            text += f", {len(self.batchnorm_untrained)} of them never trained (mean 0, variance 1)"
        return text


def inspect_teacher(teacher: Teacher, operators_of: Operators) -> TeacherFacts:
    """Read off a teacher what synthesis and quantization will find; a few forwards and one export, no training."""
    with FlopCounterMode(display=False) as counter:
        calls, _ = layer_calls(teacher)
    layers = {call.name: call.layer for call in calls}
    head = linear_head(teacher)
    norms = {name: layer for name, layer in layers.items() if is_batch_norm(layer)}
    with_statistics = tuple(name for name, layer in norms.items() if layer.running_mean is not None)
    bare = tuple(name for name in norms if name not in with_statistics)
    operators, unsupported, problem = _captured(teacher, operators_of)
    offered = provides(teacher)
    return TeacherFacts(
        name=teacher.name,
        sha256=teacher.sha256,
        parameters=sum(parameter.numel() for parameter in teacher.model.parameters()),
        multiply_adds=counter.get_total_flops() // 2,  # torch counts a multiply-add as two operations
        convolutions=sum(isinstance(layer, nn.modules.conv._ConvNd) for layer in layers.values()),
        linear_layers=sum(isinstance(layer, nn.Linear) for layer in layers.values()),
        batchnorm=_batchnorm_state(layers, with_statistics, bare),
        batchnorm_layers=with_statistics,
        batchnorm_bare=bare,
        batchnorm_untrained=tuple(name for name in with_statistics if is_untrained(norms[name])),
        head=head and LinearHead(name=head[0], in_features=head[1].in_features, out_features=head[1].out_features),
        operators=operators,
        unsupported=unsupported,
        capture_problem=problem,
        task=teacher.task.to_dict(),
        provides=offered,
        synthesizers={
            name: tuple(sorted(method.needs - offered - _SUPPLIED)) for name, method in synthesizer_configs().items()
        },
    )


def _batchnorm_state(layers: Mapping[str, nn.Module], with_statistics: tuple[str, ...], bare: tuple[str, ...]) -> str:
    if with_statistics:
        return "partial" if bare else "statistics"
    if bare:
        return "no statistics"
    # torch.nn.utils.fusion and its like put an Identity where the BatchNorm was.
    placeholders = [name for name, layer in layers.items() if isinstance(layer, nn.Identity)]
    folded = any(part in name.rpartition(".")[2].lower() for name in placeholders for part in ("bn", "norm"))
    return "folded" if folded else "none"


def _captured(teacher: Teacher, operators_of: Operators) -> tuple[Mapping[str, int], tuple[str, ...], str | None]:
    try:
        return *operators_of(teacher.model, teacher.image, teacher.task), None
    except TeacherError as error:
        return {}, (), str(error)


def _said(task: Mapping[str, Any]) -> str:
    """Return a task's name, and in brackets what else is known of it."""
    known = [f"{key} {value}" for key, value in task.items() if key != "name" and value not in ("", ())]
    inside = f" ({'; '.join(known)})" if known else ""
    return f"{task['name']}{inside}".replace("'", "")


def _joined(names: Sequence[str]) -> str:
    return some(names, _SHOWN) if names else "none"
