"""The ``distill`` section, and what it shares with every section that trains a student: terms, layers, the loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dfqkit.config.quant import Bits
from dfqkit.config.section import Added, Section


class DistillWeights(Section):
    """Weights of the students' loss terms; a term of weight 0 is not computed."""

    response: float = Field(1.0, ge=0, description="tau^2 KL between softened logits (Hinton et al., 2015).")
    feature: float = Field(
        0.0,
        ge=0,
        description="Mean over the layers of the error of their features, which `hint` says how to measure (FitNets, "
        "Romero et al., 2015).",
    )
    relation: float = Field(
        0.0,
        ge=0,
        description="Mean over consecutive layers of the squared difference of their FSP matrices (Yim et al., 2017); "
        "RepDistiller: 50.",
    )
    attention: float = Field(
        0.0,
        ge=0,
        description="Mean over the layers of the squared difference of attention maps (Zagoruyko and Komodakis, 2017, "
        "whose code has 1000).",
    )
    logit_l1: float = Field(0.0, ge=0, description="Mean absolute difference of logits (DFAD: 1).")
    logit_mse: float = Field(0.0, ge=0, description="Mean squared difference of logits (Ba and Caruana, 2014).")

    @model_validator(mode="after")
    def _some(self) -> DistillWeights:
        if not any(self.model_dump().values()):
            message = "all are 0, which trains nothing; give one a value above 0, or set the whole section to null"
            raise ValueError(message)
        return self

    @property
    def of_layers(self) -> list[str]:
        """The terms above 0 that compare features."""
        return [name for name in ("feature", "relation", "attention") if getattr(self, name)]


class LayerPair(Section):
    """Two layers that are compared; a plain name stands for both."""

    teacher: str = Field(min_length=1, description="Name on the side that is imitated.")
    student: str = Field(min_length=1, description="Name on the side that learns.")


def _both(value: Any) -> Any:
    return {"teacher": value, "student": value} if isinstance(value, str) else value


_Pair = Annotated[LayerPair, BeforeValidator(_both, json_schema_input_type=str | LayerPair)]


class ObjectiveConfig(Section):
    """What every section that trains a student has in a recipe."""

    temperature: float = Field(4.0, gt=0, description="tau of response distillation (RepDistiller: 4).")
    weights: DistillWeights = DistillWeights()
    layers: tuple[_Pair, ...] | None = Field(
        None,
        description="Layers that feature, relation (consecutive ones) and attention compare: names, or teacher: NAME, "
        "student: NAME.",
    )
    hint: Literal["relative", "mse"] = Field(
        "relative",
        description="How features are compared: squared error over the teacher's energy, so that all layers weigh "
        "the same (ours), or the mean squared error of FitNets (RepDistiller: weight 100).",
    )

    @model_validator(mode="after")
    def _enough_layers(self) -> ObjectiveConfig:
        least = 2 if self.weights.relation else 1
        if self.layers is not None and len(self.layers) < least:
            reason = "weights.relation compares consecutive ones" if least == 2 else "there is nothing to compare"
            message = f"layers names {len(self.layers)}, but {reason}; name {least} or more, or leave it out"
            raise ValueError(message)
        return self


class ReplayConfig(Section):
    """Earlier images of a training, drawn again by difficulty and class."""

    images: int = Field(2048, ge=1, description="Images kept, at least a batch; the oldest make room.")
    share: float = Field(0.5, gt=0, lt=1, description="Part of every batch that is drawn from them.")
    difficulty: float = Field(
        0.6, ge=0, description="Power of the distance between student and teacher (alpha of Schaul et al.: 0.6)."
    )
    balance: float = Field(
        1.0, ge=0, description="Power by which images of rarer classes come more often; 1: classes come evenly. Ours."
    )
    correction: float = Field(
        0.4, ge=0, le=1, description="How far weights undo what priorities change of the mean (beta: 0.4, later 1)."
    )


class LoopConfig(ObjectiveConfig):
    """What every section that trains students in a loop has."""

    steps: int = Field(600, ge=1, description="Steps of each student.")
    batch: int = Field(64, ge=2, description="Images a student step.")
    warm_up: Annotated[int, Added("0.2.0")] = Field(
        0,
        ge=0,
        description="Steps over which learning rates rise from 0. Adam's first steps move every weight by the whole "
        "rate and all in one direction, which a calibrated network of 4 bits takes long to recover from.",
    )
    round_every: int = Field(10, ge=1, description="Student steps per round of the synthesizer (DFQ: 10).")
    shift: int = Field(0, ge=0, description="Largest random shift of a batch, in pixels.")
    flip: bool = Field(False, description="Mirror half of the batches; not for digits or text.")
    average: float = Field(
        0.0, ge=0, lt=1, description="Decay of the moving average of weights that is judged and kept."
    )
    judge_every: int = Field(100, ge=1, description="Steps between two looks at the held-out synthetic images.")
    harder: float = Field(
        0.0,
        ge=0,
        description="Step by which every batch is also made harder, in normalised pixel values (HAST, Li et al., 2023: "
        "0.01 to 0.02); doubles the cost of a step.",
    )

    bf16: Annotated[bool, Added("0.2.0")] = Field(
        False, description="Take steps in bfloat16 (torch.autocast); what is judged and kept stays float32. Ours."
    )
    replay: Annotated[ReplayConfig | None, Added("0.2.0")] = Field(
        None,
        description="Draw earlier images again, hard ones and those of rare classes more often (after SSD-KD, Liu et "
        "al., 2024); null: what the source gives. The `memory` of methods with generators is then best 0.",
    )

    @property
    def rounds(self) -> int:
        """Rounds that the synthesizer plays."""
        return -(-self.steps // self.round_every)


class DistillConfig(LoopConfig):
    """The ``distill`` section of a recipe; ``layers`` names quantized tensors, all of them by default."""

    lr: float = Field(2e-4, gt=0, description="Adam, cosine to 0; for weights, biases and weight scales.")
    lr_ranges: float = Field(1e-3, ge=0, description="Adam, for activation ranges where the scheme lets them learn.")
    integer_biases: Annotated[bool, Added("0.2.0")] = Field(
        False,
        description="Train and judge with biases as int32 will store them, steps of input scale x weight scale, which "
        "below 8 bits are a percent or more of an output code; false rounds them afterwards. Ours.",
    )
    partners: tuple[Bits, ...] = Field(
        (), description="Bits of further students of the ensemble, e.g. [w3a3]: other noise than the one deployed."
    )
    partner_every: int = Field(
        2, ge=1, description="Partners step once in so many steps: they steer, they do not ship."
    )
