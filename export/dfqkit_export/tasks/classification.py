"""Classification: one output, a number for each class, the largest of which is the answer.

What belongs here: all that the deployment half knows of classes. Functions of arrays take logits of shape (n, classes)
of the same images in the same order, the reference first, and compute in float64. Of equal numbers, the lower class
counts.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure import kinds, resampling
from dfqkit_export.measure.intervals import paired_interval
from dfqkit_export.measure.metrics import require_finite, same_shape, share, sqnr_db
from dfqkit_export.tasks.base import CLASSES, Groups, Labels, Outputs, OutputSpec, Samples, Task
from dfqkit_export.tasks.marks import Marks
from dfqkit_export.tasks.measured import choose
from dfqkit_export.tasks.parameters import ClassificationParameters

#: Name of the one output, where nobody named it otherwise.
LOGITS = ClassificationParameters.output

#: F1 of a teacher's labels, in percent, below which it has nothing to lose.
_LEAST_F1 = 10.0
#: In place of a probability of 0.
_LEAST = 1e-7

#: By which sums of float32 probabilities may miss 1.
LARGEST_ROUNDING = 1e-3

Logits = NDArray[np.floating[Any]]

_USE = """\
- Python, with numpy and onnxruntime: `python python/classify.py`, or `python python/classify.py image.npy`
- C++, with ONNX Runtime's headers and library: `cmake -S cpp -B build -DONNXRUNTIME_ROOT=... && cmake --build build`,
  then `build/classify ../model.onnx inputs.bin expected.bin`"""
_NOTE = """\
Small differences between processors are normal: kernels without VNNI and sums in another order move a logit by a step
or two of its scale. Another class is not."""


_SAMPLES = Samples(
    programs={
        "python/classify.py": f"{__package__}:samples/classify.py.txt",
        "cpp/main.cpp": f"{__package__}:samples/main.cpp.txt",
        "cpp/CMakeLists.txt": f"{__package__}:samples/CMakeLists.txt",
    },
    languages="Python, C++",
    use=_USE,
    same="class",
    note=_NOTE,
)


class Classification(ClassificationParameters, Task):
    """An image belongs to one of a number of classes, or has any number of labels."""

    name: ClassVar[str] = "classification"
    title: ClassVar[str] = "image classifier"
    words: ClassVar[str] = "logits"
    answer: ClassVar[str] = "argmax"

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """One number a class, or one."""
        meanings = {
            "classes": "one number a class, the largest for the likeliest",
            "binary": "one number, the larger the likelier the second of two classes",
            "labels": "one number a label, each for itself",
        }
        return (OutputSpec(name=self.output, shape=self.shape, meaning=meanings[self.form]),)

    @property
    def samples(self) -> Samples:
        """Programs of their own for a row of classes; of other forms the general ones."""
        usual = (self.form, self.shape) == ("classes", ClassificationParameters.shape)
        return _SAMPLES if usual else super().samples

    @property
    def offers(self) -> frozenset[str]:
        """Classes, of which one is right."""
        return frozenset({CLASSES} if self.form == "classes" else ())

    def fitted(self, found: Outputs, image: ImageSpec) -> Task:
        """Return the same with the network's name and shape; as it is, where they are the usual ones."""
        name, sizes = choose(self.name, found, self.output, range(5))
        shape: tuple[int | str, ...] = sizes
        if self.form != "binary" and image.classes:
            if max(sizes, default=0) == math.prod(sizes) == image.classes:
                place = sizes.index(image.classes)
                shape = (*sizes[:place], CLASSES, *sizes[place + 1 :])
            else:
                shape = (CLASSES,)  # which then does not fit, and is told so
        elif self.form == "classes":
            shape = (CLASSES,)
        return replace(self, output=name, shape=shape)

    def told(self, image: ImageSpec) -> str:
        """Return what the output is."""
        return f"Logits of {image.classes} classes." if self.form == "classes" else super().told(image)

    def shaped(self, outputs: Outputs) -> Outputs:
        """Return one row of logits an image: some files keep axes of size 1 beside the classes."""
        return {name: values.reshape(len(values), -1).astype(np.float32) for name, values in outputs.items()}

    def rows(self, outputs: Outputs) -> NDArray[Any]:
        """Return logits (N, classes), or (N, labels); of one number those of no and yes.

        Where the threshold is not 0.5, zero is the logit of it.
        """
        values = np.asarray(outputs[self.output])
        values = values.reshape(len(values), -1) if values.ndim != 2 else values
        if self.form == "classes":
            return values
        if self.scores == "probabilities":
            values = np.clip(values.astype(np.float64), _LEAST, 1 - _LEAST)
            values = np.log(values) - np.log1p(-values)
        values = values - math.log(self.threshold / (1 - self.threshold))
        return values if self.form == "labels" else np.concatenate([np.zeros_like(values), values], 1)

    def metrics(
        self, reference: Outputs | None, outputs: Outputs, labels: Labels | None, *, subject: str, data: str
    ) -> list[kinds.Metric]:
        """Measure accuracy where labels are there, and agreement, divergence and noise beside the teacher."""
        where: dict[str, Any] = {"subject": subject, "data": data}
        logits = self.rows(outputs)
        several = self.form == "labels"
        found = [] if labels is None else [f1(logits, labels, **where) if several else top1(logits, labels, **where)]
        if reference is None:
            return found
        teacher = self.rows(reference)
        if labels is not None and not several:
            found.append(paired_drop(teacher, logits, labels, **where))
        elif labels is not None and (f1(teacher, labels, **where).value or 0.0) >= _LEAST_F1:
            found.append(f1_drop(teacher, logits, labels, **where))
        if several:
            found.append(share(kinds.AGREEMENT, self.same_answer(reference, outputs), **where))
            found.append(resampling.mean(kinds.KL, binary_divergence(teacher, logits), **where))
        else:
            found += [agreement(teacher, logits, **where), kl(teacher, logits, **where)]
        return [*found, kinds.LOGIT_SQNR_DB.metric(value=sqnr_db(teacher, logits), n=len(logits), **where)]

    def beside(
        self, student: Outputs, outputs: Outputs, labels: Labels | None, *, subject: str, data: str
    ) -> list[kinds.Metric]:
        """Measure agreement with the student, and how far the two accuracies are apart where labels are there."""
        where: dict[str, Any] = {"subject": subject, "data": data}
        if self.form == "labels":
            return [share(kinds.STUDENT_AGREEMENT, self.same_answer(student, outputs), **where)]
        both = self.rows(student), self.rows(outputs)
        found = [agreement(*both, kind=kinds.STUDENT_AGREEMENT, **where)]
        if labels is None:
            return found
        ours, theirs = (top1(each, labels, **where).value or 0.0 for each in both)
        return [*found, kinds.STUDENT_TOP1_GAP.metric(value=abs(ours - theirs), n=len(labels), **where)]

    def per_image(self, reference: Outputs, outputs: Outputs) -> dict[str, NDArray[Any]]:
        """Return what every task does, and the divergence from the reference."""
        both = self.rows(reference), self.rows(outputs)
        apart = binary_divergence(*both) if self.form == "labels" else divergence(*both)
        return {**super().per_image(reference, outputs), kinds.DIVERGES.key: apart}

    def margins(self, reference: Outputs, outputs: Outputs) -> NDArray[np.float64]:
        """Return the number of the reference's class less the largest of the others; of labels the least."""
        answers, others = self.rows(reference), self.rows(outputs).astype(np.float64)
        if self.form == "labels":
            return np.asarray(np.where(answers > 0, others, -others).min(1))
        top = answers.argmax(1)
        rows = np.arange(len(top))
        first = others[rows, top].copy()
        others[rows, top] = -np.inf
        return np.asarray(first - others.max(1))

    def same_answer(self, reference: Outputs, outputs: Outputs) -> NDArray[np.bool_]:
        """Return on which images both name the same class, or the same labels."""
        both = self.rows(reference), self.rows(outputs)
        return np.asarray(((both[0] > 0) == (both[1] > 0)).all(1)) if self.form == "labels" else agrees(*both)

    def marks(self, outputs: Outputs) -> list[Marks]:
        """Return a line for each image: its class and how likely that is, or the labels that it has."""
        rows = self.rows(outputs).astype(np.float64)
        if self.form == "labels":
            return [Marks(text=" ".join(map(str, np.flatnonzero(row > 0))) or "none") for row in rows]
        shares = np.exp(_log_softmax(as_logits(rows)))
        return [Marks(text=f"{share.argmax()} ({100 * share.max():.0f} %)") for share in shares]

    def groups(self, outputs: Outputs, image: ImageSpec) -> Groups:
        """Return the class of each image, and its probability; of labels the likeliest."""
        logits = self.rows(outputs)
        if self.form == "labels":
            odds = 1 / (1 + np.exp(-logits.max(1).astype(np.float64)))
        else:
            logits = as_logits(logits)
            shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
            odds = 1 / np.exp(shifted).sum(1)
        return Groups(
            of=logits.argmax(1).astype(np.int64),
            count=max(image.classes, logits.shape[1]),
            confidence=odds.astype(np.float32),
            one="class",
            many="classes",
        )


def f1(logits: Logits, labels: Labels, *, subject: str, data: str) -> kinds.Metric:
    """Return the F1 of the labels named, over all images and labels, in percent: 2 right / (named + wanted)."""
    return resampling.ratio(kinds.LABELS_F1, *_named(logits, labels), subject=subject, data=data)


def f1_drop(reference: Logits, logits: Logits, labels: Labels, *, subject: str, data: str) -> kinds.Metric:
    """Return by how many points F1 falls from the reference to the subject, its interval over draws of the images."""
    sides = [_named(each, labels) for each in (reference, logits)]
    drawn = resampling.draws(len(logits))
    before, now = (100 * float(above.sum() / max(below.sum(), 1)) for above, below in sides)
    first, second = (100 * (drawn @ above) / np.maximum(drawn @ below, 1) for above, below in sides)
    interval = resampling.interval(first - second)
    return kinds.LABEL_DROP.metric(value=before - now, n=len(logits), interval=interval, subject=subject, data=data)


def _named(logits: Logits, labels: Labels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return twice the right labels of each image, and those named and wanted together, (N,) each."""
    named, wanted = _logits(logits) > 0, np.asarray(labels)
    if wanted.shape != named.shape or not np.isin(wanted, (0, 1)).all():
        message = (
            f"Labels must be {named.shape} of 0 and 1, one for each image and label; found {wanted.dtype} of "
            f"{wanted.shape}."
        )
        raise ArtefactError(message)
    right = 2.0 * (named & (wanted == 1)).sum(1)
    return right, named.sum(1) + wanted.sum(1).astype(np.float64)


def binary_divergence(reference: NDArray[Any], logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return KL(reference || logits) of each label's probability, summed over the labels, in nats, (N,)."""
    first, second = (np.asarray(values, np.float64) for values in (reference, logits))
    likely = 1 / (1 + np.exp(-first))
    on, off = np.logaddexp(0, -second) - np.logaddexp(0, -first), np.logaddexp(0, second) - np.logaddexp(0, first)
    found: NDArray[np.float64] = np.maximum(0.0, likely * on + (1 - likely) * off).sum(1)
    return found


def top1(logits: Logits, labels: Labels, *, subject: str, data: str) -> kinds.Metric:
    """Return the share of images whose largest logit is the label's, in percent."""
    return share(kinds.TOP1, _correct(logits, labels), subject=subject, data=data)


def agreement(
    reference: Logits, logits: Logits, *, subject: str, data: str, kind: kinds.MetricKind = kinds.AGREEMENT
) -> kinds.Metric:
    """Return the share of images, in percent, on which both sets of logits choose the same class; it needs no labels.

    The kind is `AGREEMENT` with the teacher, `STUDENT_AGREEMENT` where the reference is the student.
    """
    first, second = _pair(reference, logits)
    return share(kind, agrees(first, second), subject=subject, data=data)


def paired_drop(reference: Logits, logits: Logits, labels: Labels, *, subject: str, data: str) -> kinds.Metric:
    """Return by how many points top-1 falls from the reference to the subject, with error and interval of the pairs.

    The images on which both are right or both are wrong tell nothing about the difference; the standard error is that
    of the mean of the per-image differences d in {-1, 0, 1}, sqrt((mean(d^2) - mean(d)^2) / n), which is much smaller
    than that of either accuracy (McNemar, Psychometrika 1947, for the counts it rests on). The interval is
    `paired_interval`, which holds where few images change, or none.
    """
    _pair(reference, logits)
    difference = _correct(reference, labels).astype(np.float64) - _correct(logits, labels)
    n, lost, gained = difference.size, int((difference > 0).sum()), int((difference < 0).sum())
    low, high = paired_interval(lost, gained, n)
    return kinds.TOP1_DROP.metric(
        subject=subject,
        data=data,
        value=100.0 * float(difference.mean()),
        n=n,
        stderr=100.0 * float(difference.std() / math.sqrt(n)),
        interval=(100.0 * low, 100.0 * high),
    )


def kl(teacher: Logits, logits: Logits, *, subject: str, data: str) -> kinds.Metric:
    """Return the mean Kullback-Leibler divergence KL(teacher || subject) of the softmax distributions, in nats.

    The standard error is that of the mean, None for one image.
    """
    values = divergence(*_pair(teacher, logits))
    n = values.size
    return kinds.KL.metric(
        subject=subject,
        data=data,
        value=max(0.0, float(values.mean())),
        n=n,
        stderr=float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
    )


def agrees(reference: NDArray[Any], logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether both choose the same class; ties go to the lower class index."""
    same: NDArray[np.bool_] = np.asarray(reference, np.float64).argmax(1) == np.asarray(logits, np.float64).argmax(1)
    return same


def divergence(reference: NDArray[Any], logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return KL(reference || logits) of the softmax distributions, in nats.

    Rounding can push the divergence of equal distributions a few ulp below zero.
    """
    first, second = (_log_softmax(np.asarray(values, np.float64)) for values in (reference, logits))
    found: NDArray[np.float64] = (np.exp(first) * (first - second)).sum(axis=1)
    return found


def _correct(logits: Logits, labels: Labels) -> NDArray[np.bool_]:
    values, indices = _labelled(logits, labels)
    correct: NDArray[np.bool_] = values.argmax(axis=1) == indices
    return correct


def _labelled(logits: Logits, labels: Labels) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    values = _logits(logits)
    indices = np.asarray(labels)
    if indices.shape != (len(values),) or indices.dtype.kind not in "iu":
        message = (
            f"Labels must be {len(values)} integers, one for each image, found {indices.dtype} of {indices.shape}."
        )
        raise ArtefactError(message)
    if indices.min() < 0 or indices.max() >= values.shape[1]:
        message = (
            f"Labels must lie in [0, {values.shape[1]}), found {indices.min()} to {indices.max()}. "
            "Check that the data set and the model count classes alike."
        )
        raise ArtefactError(message)
    return values, indices.astype(np.int64)


def _pair(reference: Logits, logits: Logits) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return same_shape(_logits(reference), _logits(logits))


def _logits(logits: Logits) -> NDArray[np.float64]:
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        message = f"Logits must have shape (n, classes) with at least one image, found {values.shape}."
        raise ArtefactError(message)
    require_finite(values)
    return values


def as_logits(outputs: NDArray[Any]) -> NDArray[Any]:
    """Return probabilities (n, classes) as their logarithms, which are logits of the same predictions; others as given.

    A network whose last operator is a softmax gives probabilities, of which another softmax would make nearly equal
    ones. They are known by their values: none below 0, and every row sums to 1.
    """
    sums = outputs.sum(1, dtype=np.float64)
    if outputs.size == 0 or outputs.min() < 0 or np.abs(sums - 1).max() > LARGEST_ROUNDING:
        return outputs
    logits: NDArray[Any] = np.log(np.maximum(outputs, np.finfo(np.float32).tiny))
    return logits


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values = as_logits(values)
    shifted = values - values.max(axis=1, keepdims=True)
    normalized: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalized
