"""What a pre-flight found out about a teacher, as values and as text.

What belongs here: the record and its renderings. How the facts are read off a model is `inspection`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dfqkit_export.words import some, table

__all__ = ["LinearHead", "TeacherFacts"]

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """The last layer, when it is a linear one.

    Attributes:
        name: Path of the module in the model.
        in_features: Length of the feature vector it takes.
        out_features: Number of classes.
    """

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """What `inspect_teacher` found.

    Attributes:
        name: The teacher's name.
        sha256: Fingerprint of its weights.
        parameters: Number of parameters.
        multiply_adds: Multiply-adds of convolutions and matrix products for one image.
        convolutions: Number of convolution layers that run.
        linear_layers: Number of linear layers that run.
        batchnorm: `statistics` (every BatchNorm has running statistics), `partial` (some have), `no statistics`,
        `folded`
            (placeholders show that it was merged into the convolutions) or `none`.
        batchnorm_layers: BatchNorm layers with running statistics; only those that run, not those of auxiliary heads.
        batchnorm_bare: BatchNorm layers without running statistics.
        batchnorm_untrained: BatchNorm layers whose running statistics are still the initial mean 0 and variance 1.
        head: The linear layer that gives the logits, if one does.
        operators: How often each operator occurs in the captured graph; empty if it cannot be captured.
        unsupported: Operators in it that the quantizer leaves in float.
        capture_problem: Why and where torch.export fails with a dynamic batch; None if it captures.
        provides: What synthesizers may need of a teacher and this one has: of `batchnorm`, `linear_head`, `features`.
        synthesizers: For each registered synthesizer, what it needs and this teacher lacks; empty means that it
        applies.
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
    provides: frozenset[str]
    synthesizers: Mapping[str, tuple[str, ...]]

    @property
    def capturable(self) -> bool:
        """Whether torch.export captures the model with a dynamic batch."""
        return self.capture_problem is None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as lists, numbers and strings that JSON can hold, in a stable order."""
        return {
            **vars(self),
            "batchnorm_layers": list(self.batchnorm_layers),
            "batchnorm_bare": list(self.batchnorm_bare),
            "batchnorm_untrained": list(self.batchnorm_untrained),
            "head": None if self.head is None else dict(vars(self.head)),
            "operators": dict(sorted(self.operators.items())),
            "unsupported": list(self.unsupported),
            "capturable": self.capturable,
            "provides": sorted(self.provides),
            "synthesizers": {name: list(lacks) for name, lacks in sorted(self.synthesizers.items())},
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
            ("provides", _joined(sorted(self.provides))),
            ("capturable", f"no: {self.capture_problem}" if self.capture_problem else "yes, with any batch size"),
        ]
        if self.capturable:
            rows += [
                ("operators", ", ".join(f"{name} {count}" for name, count in sorted(self.operators.items()))),
                ("left in float", ", ".join(self.unsupported) or "none"),
            ]
        rows += [
            (f"synthesizer {name}", f"does not apply: needs {_joined(list(lacks))}" if lacks else "applies")
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
            text += f", {len(self.batchnorm_bare)} without: {_joined(list(self.batchnorm_bare))}"
        if self.batchnorm_untrained:
            text += f", {len(self.batchnorm_untrained)} of them never trained (mean 0, variance 1)"
        return text


def _joined(names: list[str]) -> str:
    return some(names, _SHOWN) if names else "none"
