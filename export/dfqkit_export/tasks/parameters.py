"""What tasks may be told of a network: their parameters, as recipes and files hold them.

What belongs here: plain fields, read without numpy, since recipes are. What they do is in the module of each task,
whose class takes its fields from here. What is left open, a task takes from the network (`Task.fitted`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Sizes of one image's answer; a word is a size that is free.
Shape = tuple[int | str, ...]


def refuse(found: object, what: str) -> None:
    """Raise a ValueError that says what a parameter must be."""
    message = f"{what}; found {found!r}"
    raise ValueError(message)


def require_share(value: float, name: str) -> None:
    """Refuse a number that is not between 0 and 1."""
    if not 0 <= value <= 1:
        refuse(value, f"{name} must be between 0 and 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationParameters:
    """Classes of whole images.

    Attributes:
        output: Name of the output.
        shape: Of one image's answer: the classes, and axes of size 1 anywhere beside them.
        form: classes: an image belongs to one. binary: one number, of the second of two. labels: to any number of them.
        scores: What the numbers are; of form classes, auto tells by their values whether a softmax is inside.
        threshold: Probability from which on a binary answer is yes, and an image has a label.
    """

    output: str = "logits"
    shape: Shape = ("classes",)
    form: Literal["classes", "binary", "labels"] = "classes"
    scores: Literal["auto", "logits", "probabilities"] = "auto"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Refuse parameters that contradict each other."""
        if not 0 < self.threshold < 1:
            refuse(self.threshold, "threshold must be between 0 and 1, exclusive")
        if self.form != "classes" and self.scores == "auto":
            object.__setattr__(self, "scores", "logits")
        if self.form == "binary" and self.shape == ClassificationParameters.shape:
            object.__setattr__(self, "shape", (1,))  # one number needs no number of classes


@dataclass(frozen=True, kw_only=True, eq=False)
class KeypointsParameters:
    """Places of points.

    Attributes:
        output: Name of the output.
        shape: Of one image's answer: (points, h, w) of heatmaps; (points, 2 or more) or (2 x points) of coordinates.
        size: Height and width of the image, in pixels.
        form: How points are said: the largest number of a map, or x and y.
        unit: What coordinates are counted in.
        same: How far a point may be from where the teacher has it, as a share of the image's longer side.
    """

    output: str = "points"
    shape: Shape = ()
    size: tuple[int, int] = (0, 0)
    form: Literal["heatmaps", "coordinates"] = "heatmaps"
    unit: Literal["pixels", "image"] = "pixels"
    same: float = 0.05

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        require_share(self.same, "same")


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceParameters:
    """A line of text: a class at each step.

    Attributes:
        output: Name of the output.
        shape: Of one image's answer: (steps, classes).
        form: ctc: equal neighbours are one, blanks are none. attention: a character a step, until the end.
        scores: What the numbers are.
        blank: The class that is no character, of ctc.
        end: The class that ends a line, of attention.
        alphabet: The characters of the other classes, in order; empty where only classes are compared.
    """

    output: str = "text"
    shape: Shape = ()
    form: Literal["ctc", "attention"] = "ctc"
    scores: Literal["logits", "probabilities"] = "logits"
    blank: int = 0
    end: int = 0
    alphabet: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class GenericParameters:
    """Outputs of any meaning.

    Attributes:
        names: The outputs that count, in order; empty for all that the network gives.
        shapes: Of one image's answer, one for each name.
        same: The largest error of an image with the same answer, as a share of the outputs' sizes.
    """

    names: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = ()
    same: float = 0.1

    def __post_init__(self) -> None:
        """Refuse parameters that contradict each other."""
        require_share(self.same, "same")
        if len(set(self.names)) != len(self.names) or (self.shapes and len(self.shapes) != len(self.names)):
            refuse(self.names, "names must be different, with one of shapes for each")


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseParameters:
    """A number, or several, for each position: depth, a larger image, flow.

    Attributes:
        output: Name of the output.
        shape: Of one image's answer, such as (1, 240, 320).
        peak: Largest value that can be, for PSNR; 0 for the teacher's own range.
        same: The largest error of an image with the same answer, as a share of the output's size.
    """

    output: str = "map"
    shape: Shape = ()
    peak: float = 0.0
    same: float = 0.1

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        require_share(self.same, "same")
        if self.peak < 0:
            refuse(self.peak, "peak must be at least 0")


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingParameters:
    """A vector, of which the direction counts.

    Attributes:
        output: Name of the output.
        shape: Of one image's answer.
        same: The least cosine with the teacher's vector of an image with the same answer.
    """

    output: str = "embedding"
    shape: Shape = ()
    same: float = 0.95

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        require_share(self.same, "same")


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationParameters:
    """A class for each position.

    Attributes:
        output: Name of the output.
        shape: Of one image's answer: classes and two axes of positions; with one class, the mask of one thing.
        axis: The classes' place in shape, 0 or -1.
        scores: What the numbers are.
        threshold: Probability from which on a position is in the mask, where there is one class.
        background: The class that is nothing; -1 where there is none.
        same: The least IoU with the teacher's masks of an image with the same answer.
    """

    output: str = "mask"
    shape: Shape = ()
    axis: Literal[0, -1] = 0
    scores: Literal["logits", "probabilities"] = "logits"
    threshold: float = 0.5
    background: int = 0
    same: float = 0.9

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        require_share(self.threshold, "threshold")
        require_share(self.same, "same")
        if self.shape and len(self.shape) not in (2, 3):
            refuse(self.shape, "shape must be classes and two axes of positions, or these alone")


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionParameters:
    """Boxes with classes and scores, however far the network decodes them.

    Attributes:
        boxes: Names of the outputs that place boxes, one a level.
        scores: Names of those that score them, in the same order; empty where they are in the boxes' outputs.
        objectness: Names of those that multiply the scores; empty for none.
        shapes: Of one image's answer, of boxes, scores and objectness in this order.
        size: Height and width of the image, in pixels.
        form: How boxes are said. corners: x1, y1, x2, y2. centre: x, y, width, height. distances: of the four sides
            from the position, in strides. distributions: each of these as logits over bins. anchors: centre and
            logarithmic size beside `anchors`. rows: (n, 6), a box, its score, its class. columns: (4 + classes, n).
            objectness_rows: (n, 5 + classes), YOLOv5's.
        unit: What corners and centres are counted in.
        strides: Pixels from one position to the next, one a level; all of them where one output has all levels.
        anchors: Width and height in pixels of each anchor of a position, one list a stride.
        variances: By which offsets and sizes beside anchors were divided.
        shift: Pixels by which a position is left of and above the middle of its cell.
        background: The class that is no object; -1 where there is none.
        scores_are: What the scores are.
        threshold: From which score on a box counts.
        floor: From which on the file's boxes are looked at: those of lower scores cannot be right ones.
        nms: IoU from which on the lower of two boxes of a class is dropped; 1 for networks that need none.
    """

    boxes: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    objectness: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = ()
    size: tuple[int, int] = (0, 0)
    form: Literal[
        "corners", "centre", "distances", "distributions", "anchors", "rows", "columns", "objectness_rows"
    ] = "corners"
    unit: Literal["pixels", "image"] = "pixels"
    strides: tuple[float, ...] = ()
    anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    variances: tuple[float, float] = (0.1, 0.2)
    shift: float = 0.0
    background: int = -1
    scores_are: Literal["probabilities", "logits", "softmax"] = "probabilities"
    threshold: float = 0.5
    floor: float = 0.3
    nms: float = 0.5

    def __post_init__(self) -> None:
        """Refuse parameters that contradict each other."""
        for name in ("threshold", "floor", "nms"):
            require_share(getattr(self, name), name)
        if self.floor > self.threshold:
            refuse(self.floor, f"floor must be at most threshold, {self.threshold}")
        if self.of_positions and self.boxes and not (len(self.boxes) in (1, len(self.strides)) and self.strides):
            refuse(self.strides, f"{self.form} need strides, one for each of the {len(self.boxes)} output(s) of boxes")
        if self.form == "anchors" and len(self.anchors) != len(self.strides):
            refuse(len(self.anchors), f"anchors must be {len(self.strides)} lists, one a stride")
        if self.scores and len(self.scores) != len(self.boxes):
            refuse(self.scores, f"scores must be as many outputs as boxes, {len(self.boxes)}")
        if self.objectness and len(self.objectness) != len(self.boxes):
            refuse(self.objectness, f"objectness must be as many outputs as boxes, {len(self.boxes)}")
        if bool(self.scores) == self.holds_scores and self.boxes:
            refuse(self.scores, f"{self.form} {'have their scores beside them' if self.scores else 'need scores'}")

    @property
    def holds_scores(self) -> bool:
        """Whether boxes and scores are in one output."""
        return self.form in ("rows", "columns", "objectness_rows")

    @property
    def of_positions(self) -> bool:
        """Whether a box is said beside the place that it is said at."""
        return self.form in ("distances", "distributions", "anchors")


#: Of which task they are, for recipes.
PARAMETERS: dict[str, type] = {
    "classification": ClassificationParameters,
    "segmentation": SegmentationParameters,
    "detection": DetectionParameters,
    "keypoints": KeypointsParameters,
    "embedding": EmbeddingParameters,
    "sequence": SequenceParameters,
    "dense": DenseParameters,
    "generic": GenericParameters,
}
