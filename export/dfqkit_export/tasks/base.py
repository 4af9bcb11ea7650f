"""What a network's outputs mean, without torch: the interface of a task, and what every task has in common.

What belongs here: `Task` and the values it speaks in. Everything that looks at a network's answers (validation,
sentinel sets, the gate, bundles, comparisons) asks the task, so that it works for tasks that nobody has thought of yet.
What a task says of tensors, for training, is `dfqkit.tasks`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.breakdown import Breakdown
from dfqkit_export.measure.kinds import AGREES, NOISE, Metric
from dfqkit_export.tasks.marks import Marks

#: What a network answers to a batch of images: arrays (N, ...) by the name of the output.
Outputs = Mapping[str, NDArray[Any]]
Labels = NDArray[Any]

#: What a task offers whose one output is a number for each class, and what the size of such an output is called.
CLASSES = "classes"

_NOT_OUTPUTS = frozenset({"image", "images", "source", "kind"})  # tensors that lie beside outputs in files


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """One output of a network.

    Attributes:
        name: What it is called, in files too.
        shape: Of one image's answer: numbers, "classes", "C", "H" and "W" for those of the image, any other word for a
            size that is free.
        meaning: What it holds, in a few words.

    Example:
        >>> spec = ImageSpec(shape=(3, 8, 6), mean=(0, 0, 0), std=(1, 1, 1))
        >>> OutputSpec(name="depth", shape=(1, "H", "W", "bins"), meaning="metres").sizes(spec)
        (1, 8, 6, None)
    """

    name: str
    shape: tuple[int | str, ...]
    meaning: str

    def __post_init__(self) -> None:
        """Refuse a name that stored sets use for something else."""
        if not self.name or self.name in _NOT_OUTPUTS or not self.name.isprintable() or " " in self.name:
            message = f"an output cannot be called {self.name!r}"
            raise ValueError(message)

    def sizes(self, image: ImageSpec) -> tuple[int | None, ...]:
        """Return the shape of one image's answer; None where a size is free."""
        known = dict(zip("CHW", image.shape, strict=True)) | {CLASSES: image.classes}
        return tuple(size if isinstance(size, int) else known.get(size) for size in self.shape)

    def fits(self, shape: Sequence[int], image: ImageSpec) -> bool:
        """Return whether an array of a batch has this shape."""
        wanted = self.sizes(image)
        pairs = zip(wanted, shape[1:], strict=False)
        return len(shape) == len(wanted) + 1 and all(size in (None, found) for size, found in pairs)

    def told(self, image: ImageSpec) -> str:
        """Return the shape for people, such as ``(N, 1, 8, 6, bins)``."""
        sizes = [str(name if size is None else size) for name, size in zip(self.shape, self.sizes(image), strict=True)]
        return f"({', '.join(['N', *sizes])})"


@dataclass(frozen=True, kw_only=True)
class Groups:
    """What images are sorted by, where a task sorts them: for a classifier the class it names.

    Attributes:
        of: The group of each image, int64 (N,), from 0 to `count`, exclusive.
        count: Groups that there are, those without an image too; 1 where nothing is sorted.
        nothing: The group of images in which the network finds nothing (no box, no mask); None where there is no such.
        confidence: How sure the network is of each, float32 (N,); None where it does not say.
        one: What a group is called; "" where nothing is sorted.
        many: The same for several.
    """

    of: NDArray[np.int64]
    count: int = 1
    nothing: int | None = None
    confidence: NDArray[np.float32] | None = None
    one: str = ""
    many: str = ""

    @property
    def counts(self) -> NDArray[np.int64]:
        """Images of each group, (count,)."""
        return np.bincount(self.of, minlength=self.count)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Between which a file is surely good and surely broken, by images without labels.

    Attributes:
        ok: Percent of the teacher's answers that a good file keeps (`Task.kept`).
        ok_db: Power of what differs from image to image beside that of a good file's error, in dB.
        failed: Below this share of the answers a file is broken, where the error is large too.
        failed_db: The error that is.
    """

    ok: float
    ok_db: float
    failed: float
    failed_db: float


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The programs of a bundle, which run its model and compare what it gives with what it gave.

    Attributes:
        programs: Their place under ``samples/``, and where their text is: ``package:file``.
        languages: What they are written in, for people.
        use: Lines of a list in Markdown, one a program: how each is run.
        same: What must be the same in every runtime: "class".
        note: What is normal and what is not, where outputs differ a little.
    """

    programs: Mapping[str, str]
    languages: str
    use: str
    same: str
    note: str


#: The programs of a bundle, of tasks that have no others.
SAMPLES = Samples(
    programs={
        "python/run.py": f"{__package__}:samples/run.py.txt",
        "python/decode.py": f"{__package__}:samples/decode.py.txt",
        "cpp/main.cpp": f"{__package__}:samples/answers.cpp.txt",
        "cpp/CMakeLists.txt": f"{__package__}:samples/answers.cmake.txt",
    },
    languages="Python, C++",
    use="- Python, with numpy and onnxruntime: `python python/run.py`, whose `decode.py` makes answers of outputs\n"
    "- C++, with ONNX Runtime's headers and library (masks and boxes are decoded): `cmake -S cpp -B build "
    "-DONNXRUNTIME_ROOT=... &&\n  cmake --build build`, then `build/answers ../model.onnx .`",
    same="answer",
    note="Small differences between processors are normal: kernels without VNNI and sums in another order move a "
    "number by\na step or two of its scale.",
)


class Task(ABC):
    """What the outputs of a network mean.

    A task without parameters is a class with the methods below; one with parameters is a frozen dataclass besides,
    whose fields are written wherever the task is named.

    Attributes:
        name: What recipes and files call it.
        title: What such a network is, for people: "image classifier".
        words: What its outputs are called together: "logits".
        answer: What is the same or another where two of them are compared: "argmax".
        limits: Of the surest half's answers and of the error, where no other are known for the task.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    words: ClassVar[str] = "outputs"
    answer: ClassVar[str] = "answer"
    limits: ClassVar[Limits] = Limits(ok=99.0, ok_db=13.0, failed=90.0, failed_db=4.0)

    @property
    @abstractmethod
    def outputs(self) -> tuple[OutputSpec, ...]:
        """What the network gives, in the order in which one that gives a tuple gives it; may be a class's constant."""

    @property
    def offers(self) -> frozenset[str]:
        """What synthesizers may need of it: "classes", where outputs are one number a class."""
        return frozenset()

    @property
    def samples(self) -> Samples:
        """The programs of a bundle."""
        return SAMPLES

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs' names, in order."""
        return tuple(output.name for output in self.outputs)

    @property
    def needs_classes(self) -> bool:
        """Whether the number of classes decides the shape of an output."""
        return any(CLASSES in output.shape for output in self.outputs)

    def require_image(self, image: ImageSpec) -> None:
        """Refuse an image specification that does not say what the outputs' shapes need.

        Raises:
            ArtefactError: Says what to add.
        """
        if self.needs_classes and not image.classes:
            message = f"The task {self.name!r} needs the number of classes. Say it beside shape, mean and std."
            raise ArtefactError(message)

    def fitted(self, found: Outputs, image: ImageSpec) -> Task:
        """Return the task with what it leaves open (names, shapes) as a network has it; by default as it is.

        Args:
            found: What the network gives for a few images, by name; of a single tensor without one, "".
            image: What it was given.

        Raises:
            ArtefactError: The outputs do not fit; says what was found and what is needed.
        """
        return self

    def named_in(self, found: Sequence[str]) -> tuple[str, ...]:
        """Return what a file calls this task's outputs: as the task does, or anything, in the task's order.

        Args:
            found: Names of the file's outputs, in its order.

        Raises:
            ArtefactError: There are too few.
        """
        if all(name in found for name in self.names):
            return self.names
        if len(found) < len(self.names):
            message = (
                f"The file gives {', '.join(found) or 'nothing'}; the task {self.name!r} needs {', '.join(self.names)}."
            )
            raise ArtefactError(message)
        return tuple(found[: len(self.names)])

    def shaped(self, outputs: Outputs) -> Outputs:
        """Return outputs of a file that anybody made in the shapes that this task takes; by default as they are."""
        return outputs

    def wrong_classes(self, classes: Sequence[str]) -> str:
        """Say what is wrong with labels of these classes, as their source calls them; "" where nothing is."""
        return ""

    def marks(self, outputs: Outputs) -> list[Marks]:
        """Return what the answer to each image looks like; nothing where it is no picture, by default."""
        return []

    def check(self, outputs: Outputs, image: ImageSpec) -> None:
        """Refuse outputs that this task cannot be measured with: missing, of another shape, or not finite.

        Raises:
            ArtefactError: Says which output, what was found and what is allowed.
        """
        for output in self.outputs:
            found = outputs.get(output.name)
            if found is None or not output.fits(found.shape, image):
                message = (
                    f"Output {output.name!r} must have the shape {output.told(image)}, found "
                    f"{'none' if found is None else found.shape}."
                )
                raise ArtefactError(message)
            bad = int(np.count_nonzero(~np.isfinite(found)))
            if bad:
                message = f"Output {output.name!r} holds {bad} values that are NaN or infinite, of {found.size}."
                raise ArtefactError(message)

    def told(self, image: ImageSpec) -> str:
        """Return what the outputs are, in a sentence or several."""
        return " ".join(f"{output.name} {output.told(image)}: {output.meaning}." for output in self.outputs)

    def image_bytes(self, image: ImageSpec) -> int:
        """Return the bytes of one image's answer in float32, free sizes counted as 1."""
        return sum(4 * math.prod(size or 1 for size in output.sizes(image)) for output in self.outputs)

    @abstractmethod
    def metrics(
        self, reference: Outputs | None, outputs: Outputs, labels: Labels | None, *, subject: str, data: str
    ) -> list[Metric]:
        """Measure outputs on one set of images.

        Args:
            reference: The teacher's outputs; None where the subject is the teacher.
            outputs: The subject's, of the same images in the same order.
            labels: What is right; None where nobody knows.
            subject: What gave the outputs.
            data: The images.
        """

    @abstractmethod
    def beside(
        self, student: Outputs, outputs: Outputs, labels: Labels | None, *, subject: str, data: str
    ) -> list[Metric]:
        """Measure how far a runtime's outputs are from the student's that its file was written from.

        Args:
            student: Outputs of the fake-quantized student.
            outputs: The runtime's, of the same images in the same order.
            labels: What is right; None where nobody knows.
            subject: The runtime.
            data: The images.
        """

    @abstractmethod
    def margins(self, reference: Outputs, outputs: Outputs) -> NDArray[np.float64]:
        """Return how firmly outputs stand by the reference's answer, (N,): below zero, the answer is another.

        A sentinel set is chosen by it: images near zero are the first to notice that a file became worse. Of a
        reference beside itself, it says how sure the network is of each image.
        """

    @abstractmethod
    def same_answer(self, reference: Outputs, outputs: Outputs) -> NDArray[np.bool_]:
        """Return on which images both give the same answer (class, mask, set of boxes), (N,)."""

    def per_image_error(self, reference: Outputs, outputs: Outputs) -> NDArray[np.float64]:
        """Return the squared error of each image, summed over all outputs, (N,)."""
        total: NDArray[np.float64] = np.sum(
            [
                np.square(np.subtract(reference[name], outputs[name], dtype=np.float64))
                .reshape(len(outputs[name]), -1)
                .sum(1)
                for name in self.names
            ],
            axis=0,
        )
        return total

    def kept(self, reference: Outputs, outputs: Outputs) -> float | None:
        """Return how much of the reference's answers stays, in percent, where a share of images says too little."""
        return None

    def per_image(self, reference: Outputs, outputs: Outputs) -> dict[str, NDArray[Any]]:
        """Return what each image contributes to metrics, (N,) by the key of `kinds.PerImage`."""
        return {AGREES.key: self.same_answer(reference, outputs), NOISE.key: self.per_image_error(reference, outputs)}

    def signs(self, reference: Outputs, outputs: Outputs) -> list[str]:
        """Return what all numbers beside the reference's tell of a fault, the surest first; by default nothing."""
        return []

    def breakdown(self, reference: Outputs, outputs: Outputs, *, subject: str, data: str) -> Breakdown | None:
        """Return what a metric beside the teacher is made of, part by part; by default nothing."""
        return None

    def groups(self, outputs: Outputs, image: ImageSpec) -> Groups:
        """Return what images are sorted by, on contact sheets and where a choice is spread; by default nothing."""
        return Groups(of=np.zeros(len(outputs[self.names[0]]), np.int64))

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the parameters, as recipes and files hold them."""
        return {"name": self.name, **(asdict(self) if is_dataclass(self) else {})}

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same task with the same parameters."""
        return isinstance(other, Task) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        """Return what is equal for equal tasks."""
        return hash(self.name)
