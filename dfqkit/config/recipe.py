"""The recipe: everything that decides a result, as typed sections.

What belongs here: the sections that no other module of `config` has, and what must hold between sections. How a recipe
is read from YAML is `reading`, where its files are is `files`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from dfqkit.config.distill import DistillConfig
from dfqkit.config.ladder import LadderConfig
from dfqkit.config.quant import QuantConfig
from dfqkit.config.registry import AnySynthesis
from dfqkit.config.section import Added, Arguments, Section
from dfqkit.config.student import FloatStudentConfig
from dfqkit.config.task import AnyTaskSection, default_task_section
from dfqkit_export.backends import DEFAULT, DEFAULT_TARGET, get_target
from dfqkit_export.errors import ArtefactError, RecipeError, TargetError
from dfqkit_export.images.pixels import FLOAT, LAYOUT, RGB, check_pixels

if TYPE_CHECKING:
    from dfqkit_export.images.spec import ImageSpec
    from dfqkit_export.tasks import Task

#: The version of what a recipe may hold.
SCHEMA: Literal[1] = 1

_Size = Annotated[int, Field(ge=1)]
_Spread = Annotated[float, Field(gt=0)]


class TeacherSection(Section):
    """Which network, and its weights."""

    factory: str = Field(
        description="torchvision:NAME, timm:NAME, onnx:FILE, or FILE.py:factory or package.module:factory (called)."
    )
    weights: str | None = Field(None, description="State dict (.safetensors, .pt, .pth); null keeps random weights.")
    weights_key: Annotated[str | None, Added("0.2.0")] = Field(
        None, description="Which set of weights, where the file holds several, such as model_ema."
    )
    args: Arguments = Field(default_factory=dict, description="Further keyword arguments of the factory.")


class SideInput(Section):
    """An input that is no image: numbers that are held, or drawn for each image."""

    shape: tuple[_Size, ...] = Field(description="Without the axis of the batch; [] is one number an image.")
    value: float | tuple[float, ...] | None = Field(None, description="What it is held at: one number, or each.")
    range: tuple[float, float] | None = Field(None, description="Drawn evenly from the first to the second.")
    dtype: Literal["float32", "int32", "int64"] = Field("float32", description="Type of numbers that are held.")
    per_image: bool = Field(True, description="Whether its first axis is the batch.")


class ImageSection(Section):
    """What images the network takes."""

    shape: tuple[_Size, _Size, _Size] = Field(description="(C, H, W).")
    mean: tuple[float, ...] = Field(min_length=1, description="Per channel, of pixels from 0 to pixel_range.")
    std: tuple[_Spread, ...] = Field(min_length=1, description="Per channel, of pixels from 0 to pixel_range.")
    classes: int | None = Field(None, ge=2, description="How many there are, where the task has classes.")
    pixel_range: Annotated[Literal[1, 255], Added("0.2.0")] = Field(1, description="Largest pixel that goes in.")
    channels: Annotated[Literal["RGB", "BGR"], Added("0.2.0")] = Field(RGB, description="Order of the colours.")
    layout: Annotated[Literal["NCHW", "NHWC"], Added("0.2.0")] = Field(LAYOUT, description="Axes that the file takes.")
    dtype: Annotated[Literal["float32", "uint8"], Added("0.2.0")] = Field(
        FLOAT, description="What the file takes: float32, normalised; or uint8, pixels that it normalises itself."
    )
    dynamic: Annotated[bool, Added("0.2.0")] = Field(
        False, description="Whether the file leaves height and width open; shape is then the size of the run's images."
    )
    inputs: Annotated[dict[str, _Size | SideInput], Added("0.2.0")] = Field(
        default_factory=dict,
        description="Where there are several, by name, in the order of the network's forward: an image's channels, or "
        "a side input. Images are stacked by channel: shape, mean and std are of all (or of one, if all are alike).",
    )
    filled_from: Annotated[str | None, Added("0.2.0")] = Field(
        None, description="Whose facts stand here, where the recipe left some out; written by dfqkit."
    )

    @field_validator("inputs", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Take the list of `ImageSpec.to_dict`, too."""
        if not isinstance(value, list | tuple):
            return value
        return {str(each["name"]): each.get("channels") or {k: each[k] for k in each if k != "name"} for each in value}

    @model_validator(mode="after")
    def _per_channel(self) -> ImageSection:
        for name, values in () if self.inputs else (("mean", self.mean), ("std", self.std)):
            if len(values) != self.shape[0]:
                message = (
                    f"{name} has {len(values)} value(s) but the image has {self.shape[0]} channel(s); give one each"
                )
                raise ValueError(message)
        try:
            if self.inputs:
                self.spec()
            else:
                check_pixels(self.mean, self.std, self.pixel_range, self.channels, self.layout)
        except ArtefactError as error:
            raise ValueError(str(error)) from error
        return self

    def spec(self) -> ImageSpec:
        """Return the same as an `ImageSpec`."""
        from dfqkit_export.images.spec import ImageSpec  # numpy; not needed to list recipes

        return ImageSpec(**self.model_dump(exclude={"classes", "filled_from"}), classes=self.classes or 0)


class BankSection(Section):
    """How many synthetic images are kept, and for what."""

    calibration: int = Field(1024, ge=1, description="Images that find ranges and correct biases.")
    training: int | None = Field(
        None, ge=1, description="Images that methods which make a set make to train on; null: as many as calibration."
    )
    held_out: int = Field(512, ge=1, description="Images that choose the state that is kept; never trained on.")
    grading: int = Field(
        1024, ge=0, description="Images of a separate synthesizer that grade the result; 0: only validate.data grades."
    )
    batch: int = Field(128, ge=1, description="Images a forward pass in calibration and validation.")


class ValidateSection(Section):
    """What the result is measured on."""

    data: str | None = Field(
        None,
        description="Labelled images: .npz, class folders, .zip with labels.csv, torchvision:NAME:ROOT, "
        "coco:FILE:FOLDER, points:FILE:FOLDER, masks:FOLDER, text:FILE:FOLDER; or null.",
    )
    resize: int | None = Field(None, ge=1, description="Shorter side, bicubic, before the crop.")
    crop: int | None = Field(None, ge=1, description="Centre crop.")
    limit: int | None = Field(None, ge=1, description="Only so many images, evenly spread.")
    latency_repeats: int = Field(30, ge=0, description="Timed runs of each file, interleaved; 0 measures none.")
    min_speedup: Annotated[float | None, Added("0.2.0")] = Field(
        None,
        gt=0,
        description="Times that the file must be as fast as the float one in these runs: failed where all of the "
        "interval of 95 % is below.",
    )
    prove: Annotated[tuple[str, ...], Added("0.2.0")] = Field(
        (),
        description="Families of kernels, as `dfqkit prove` names them, in which bits are compared: metric portable.",
    )


class FloorSection(Section):
    """The worst value a metric may have; on the wrong side the verdict is ``failed``."""

    metric: str
    subject: str = DEFAULT.name
    value: float
    data: Literal["", "real", "synthetic"] = Field("", description="Images that it is about; empty for all.")
    needs_labels: bool = Field(False, description="Left out where validate.data is null.")
    unless_kept: Annotated[bool, Added("0.2.0")] = Field(
        False, description="Left out where each layer that runs in float was left there for a reason in the report."
    )


class Recipe(Section):
    """One result the project stands behind: everything that decides it."""

    schema_: Literal[1] = Field(SCHEMA, alias="schema")
    name: str
    why: str = Field(description="One sentence for the catalogue.")
    seed: int = Field(0, ge=0, lt=2**63)
    task: Annotated[AnyTaskSection, Added("0.2.0")] = Field(
        default_task_section(), description="What the network's outputs mean; without it they tell, where it is clear."
    )
    teacher: TeacherSection
    image: ImageSection
    targets: tuple[str, ...] = Field(
        (DEFAULT_TARGET.name,),
        alias="target",
        min_length=1,
        description="Where the file is to run: one name, or a list of names.",
    )
    synthesis: AnySynthesis
    bank: BankSection = BankSection()
    student: FloatStudentConfig | None = None
    quant: QuantConfig = QuantConfig()
    ladder: Annotated[LadderConfig | None, Added("0.2.0")] = Field(
        None, description="Other schemes that are tried, of which the nearest to the teacher is kept."
    )
    distill: DistillConfig | None = None
    validation: Annotated[ValidateSection, Field(alias="validate")] = ValidateSection()
    floors: tuple[FloorSection, ...] = ()
    _directory: Path | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _for_editors(cls, value: Any) -> Any:
        """Pass over the key by which editors find the schema."""
        return {key: part for key, part in value.items() if key != "$schema"} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _has_classes(self) -> Recipe:
        task = self.named_task()
        if task is not None and self.image.classes is None and task.needs_classes:
            missing = InitErrorDetails(type="missing", loc=("image", "classes"), input=self.image)
            raise ValidationError.from_exception_data(type(self).__name__, [missing])
        return self

    @field_validator(
        "targets",
        mode="before",
        json_schema_input_type=str
        | Annotated[tuple[str, ...], Field(min_length=1, json_schema_extra={"uniqueItems": True})],
    )
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("targets")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = next((name for name in value if value.count(name) > 1), None)
        if twice is not None:
            message = f"'{twice}' is named twice; name each target once"
            raise ValueError(message)
        try:
            return tuple(get_target(name).name for name in value)
        except TargetError as error:
            raise ValueError(str(error)) from error

    @field_serializer("targets")
    def _single(self, value: tuple[str, ...]) -> str | list[str]:
        return value[0] if len(value) == 1 else list(value)

    @model_validator(mode="after")
    def _fits_targets(self) -> Recipe:
        if not self.bank.grading and self.validation.data is None:
            message = "bank.grading is 0 and validate.data is null: nothing would grade the result; set one of them"
            raise ValueError(message)
        schemes = (self.quant, *(self.ladder.schemes(self.quant).values() if self.ladder else ()))
        for target, scheme in product(map(get_target, self.targets), schemes):
            for bits in (scheme.bits, *(self.distill.partners if self.distill else ())):
                scheme.model_copy(update={"bits": bits}).check(target)
        return self

    def named_task(self) -> Task | None:
        """Return the task that the recipe names; None where the outputs tell it."""
        return self.task.task() if "task" in self.model_fields_set else None

    @property
    def target(self) -> str:
        """The target; a RecipeError where there are several."""
        if len(self.targets) > 1:
            message = (
                f"Recipe '{self.name}' names {len(self.targets)} targets ({', '.join(self.targets)}), and one is "
                f"wanted here: give it, e.g. with --set target={self.targets[0]}."
            )
            raise RecipeError(message)
        return self.targets[0]

    @property
    def directory(self) -> Path | None:
        """The folder that the recipe came from, where files it names are looked up first."""
        return self._directory

    def found_in(self, directory: Path | None) -> Recipe:
        """Return the same recipe, its files looked up beside ``directory`` first."""
        recipe = self.model_copy()
        recipe._directory = directory
        return recipe

    def with_seed(self, seed: int) -> Recipe:
        """Return the same recipe with another seed."""
        return self.model_copy(update={"seed": seed}).found_in(self._directory)

    def to_yaml(self) -> str:
        """Return the resolved recipe; loading it gives an equal one."""
        data = self.model_dump(mode="json", by_alias=True)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)

    def digest(self) -> str:
        """sha256 of the resolved recipe, the seed included."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()
