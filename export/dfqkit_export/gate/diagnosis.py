"""Why a file regressed: the layer or the cause, where there is one.

What belongs here: what the differences of all layers together mean, experiments that cost a run of the sentinel images,
and the first layer whose output changed. A cause is a sentence for whoever reviews the change; the surest is first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.backends import get_target
from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.checker.rules_common import find_shared_grids
from dfqkit_export.errors import ArtefactError
from dfqkit_export.gate.baseline import Case
from dfqkit_export.gate.change import Change, times
from dfqkit_export.gate.judged import VERDICT
from dfqkit_export.gate.measurement import Measurement, Subject
from dfqkit_export.gate.signature import distances, sketch, unpack_sketches
from dfqkit_export.gate.verdicts import FAILING, Row
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.activations import layer_outputs
from dfqkit_export.measure.kinds import INTEGER_OPS, STRUCTURE
from dfqkit_export.sentinel import SENSITIVE, normalized
from dfqkit_export.tasks.answering import answers
from dfqkit_export.words import some

#: Images that layers are compared on.
_IMAGES = 8
#: Points of agreement by which an experiment must do better to count, and how near perfect it must come.
_RESTORED = 15.0
#: A layer's output counts as changed where its squared distance is above this share, and this many times what any layer
#: before it had: files calibrated on other images stay below 0.02 and grow slowly with depth.
_DISTANT, _JUMP = 0.05, 6.0
_FEW = 3
_OTHER_WEIGHTS = 0.08
#: Octaves: files calibrated on the poorest images moved a scale by two.
_UNCALIBRATED = 3.0
_HALF, _NEARLY_ALL = (0.25, 0.75), 0.8
_FAR = "activation range left uncalibrated"


def causes_of(rows: Sequence[Row], measured: Measurement, case: Case | None, changes: Sequence[Change]) -> list[str]:
    """Return why a case fails, the surest first, or that there is no single cause; empty where it passes.

    Rows about the file itself, which are no metrics, are their own cause.
    """
    failing = [row for row in rows if row.verdict in FAILING or row.verdict == "expected"]
    causes = [
        f"{'refused' if row.verdict == 'refused' else row.metric}: {row.reason}" for row in failing if row.now is None
    ]
    worse = {row.metric for row in failing if row.now is not None}
    answers = worse - {STRUCTURE.name, INTEGER_OPS.name}
    if case is not None and worse:
        causes += explain(measured, case, changes, regressed=bool(answers))
    if INTEGER_OPS.name in worse and measured.in_float:
        causes.append(f"integer kernels lost: {some(measured.in_float, _FEW)} run in float")
    # That a file is broken, or gives nothing to measure, is no cause: it comes last, behind what broke it.
    last = {
        VERDICT,
        *(
            row.metric
            for row in failing
            if row.verdict == "missing" and case is not None and row.metric in case.metrics
        ),
    }
    broken = [cause for cause in causes if cause.partition(": ")[0] in last]
    causes = [cause for cause in causes if cause not in broken]
    if worse and not causes:
        causes.append(f"no single cause: {_unexplained(measured, case)}")
    return causes + broken


def _unexplained(measured: Measurement, case: Case | None) -> str:
    if measured.signature is None:
        return "numbers alone were given; check the bundle that they are of"
    if case is not None and case.files.get("model") == measured.files.get("model"):
        return "the file is the recorded one, so look at the runtime and the machine"
    return "no layer, operator, scale or statement of the file tells it apart"


def explain(measured: Measurement, case: Case, changes: Sequence[Change], *, regressed: bool) -> list[str]:
    """Return what made a file fail, the surest first; empty where nothing is known.

    Where its answers did not get worse, it is only of another kind, and no experiment is made.
    """
    found = list(_of_kind(changes))
    subject = measured.subject
    if subject is None or not regressed:
        return found
    preprocessing = preprocessing_changes(subject, case)
    if preprocessing:
        return [*(f"preprocessing: {text}" for text in preprocessing), *found]
    behind = () if found else _first_distant(measured, case)  # last: it ends the session of the experiments
    found = [*_shared_grids(subject, changes), *_experiments(measured, subject), *found, *_of_values(changes), *behind]
    return found or list(_of_ranges(changes))


def preprocessing_changes(subject: Subject | None, case: Case | None) -> list[str]:
    """Return where shape, classes or normalisation differ from what the teacher was given, and from before."""
    if subject is None:
        return []
    truth = subject.sentinel.spec.to_dict()
    stated: dict[str, dict[str, Any] | None] = {"the manifest states": subject.bundle.image.to_dict()}
    text = subject.metadata.get("dfqkit.image")
    if text is not None:
        stated["the ONNX metadata (dfqkit.image) state"] = _spec_in(text)
    found = []
    for place, values in stated.items():
        if values is None:
            found.append(f"{place} {text!r:.200}, which describes no images")
        elif differs := [key for key in dict.fromkeys([*truth, *values]) if truth.get(key) != values.get(key)]:
            said, given = (" and ".join(f"{key} {_value(one.get(key))}" for key in differs) for one in (values, truth))
            found.append(f"{place} {said}, the teacher was given {given}")
    before = case.facts.get("image") if case is not None else None
    if not found and isinstance(before, dict):
        found += [
            f"{key} was {_value(before[key])} in the baseline and is {_value(truth.get(key))}"
            for key in before
            if before[key] != truth.get(key)
        ]
    return found


def _spec_in(text: str) -> dict[str, Any] | None:
    try:
        return ImageSpec.from_dict(json.loads(text)).to_dict()
    except (ArtefactError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "(" + ", ".join(f"{item:g}" if isinstance(item, int | float) else str(item) for item in value) + ")"
    return "not stated" if value is None else str(value)


def layer_sketches(measured: Measurement) -> dict[str, NDArray[np.float64]]:
    """Return sketches of what the layers put out on the first sensitive images, normalised as the manifest says.

    The session in which the file was measured is closed before: two of a large file are too much memory at once.
    """
    subject = measured.subject
    if subject is None:
        return {}
    if measured.session is not None:
        measured.session.close()
    chosen = np.flatnonzero(subject.sentinel.kind == SENSITIVE)[:_IMAGES]
    chosen = chosen if chosen.size else np.arange(min(_IMAGES, len(subject.sentinel)))
    images = normalized(subject.sentinel.images[chosen], subject.bundle.image)
    outputs = layer_outputs(subject.bundle.model, images, optimized=not subject.as_written, lean=True)
    return {name: sketch(values) for name, values in outputs.items()}


def _shared_grids(subject: Subject, changes: Sequence[Change]) -> Iterator[str]:
    """Yield where tensors of different ranges share a grid, in a file whose graph is another than it was."""
    if {"graph", "quantizers"}.intersection(change.kind for change in changes):
        graph = QdqGraph(subject.model, get_target(subject.bundle.target))
        yield from (f"one grid: {each.node}: {each.message}" for each in find_shared_grids.find(graph))


def _experiments(measured: Measurement, subject: Subject) -> Iterator[str]:
    """Yield what the answers look like, and what they would be with the channels in the other order."""
    if measured.outputs is None or measured.session is None:
        return
    layers = measured.signature.layers.items() if measured.signature is not None else ()
    names = [name for name, layer in layers if layer.weight]
    first, last = (names[0], names[-1]) if names else ("the first layer", "the last layer")
    sentinel = subject.sentinel
    task, teacher = sentinel.task, sentinel.answers
    agreement = 100 * float(task.same_answer(teacher, measured.outputs).mean())
    wanted, given = (task.groups(each, sentinel.spec) for each in (teacher, measured.outputs))
    told = task.signs(teacher, measured.outputs)
    yield from told
    swapped = _swapped(wanted.of, given.of)
    if swapped and not told:
        pairs = " and ".join(f"{a} for {b}" for a, b in swapped)
        yield f"{wanted.many} swapped: the file answers {pairs} and the other way round; look at {last}"
    if subject.bundle.image.shape[0] == 3 and not swapped:
        codes = sentinel.images
        # Swapped where images are read, or behind the normalisation, as in the first layer's weights.
        orders = (normalized(codes[:, ::-1], subject.bundle.image), normalized(codes, subject.bundle.image)[:, ::-1])
        tried = (answers(measured.session, task, np.ascontiguousarray(images)) for images in orders)
        other = max(100 * float(task.same_answer(teacher, found).mean()) for found in tried)
        if other > agreement + _RESTORED:
            yield (
                f"channels swapped: with the channels in the other order (RGB for BGR) agreement is {other:.1f} % "
                f"instead of {agreement:.1f} %; look at {first} and at what prepares its input"
            )


def _swapped(wanted: NDArray[np.int64], given: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pairs of groups of which most images get the other's answer, in both directions."""
    usual = {int(c): int(np.bincount(given[wanted == c]).argmax()) for c in np.unique(wanted)}
    counts = {c: int((wanted == c).sum()) for c in usual}
    strict = {c: u for c, u in usual.items() if counts[c] >= 2 and (given[wanted == c] == u).mean() > 0.5}
    return [(a, b) for a, b in strict.items() if a < b and strict.get(b) == a]


def _of_kind(changes: Sequence[Change]) -> Iterator[str]:
    """Differences that are wrong whatever the accuracy, one sentence for many layers of one kind."""
    wrong = [change for change in changes if change.wrong]
    named = any(change.kind in ("weight_scale", "activation_scale", "folding") for change in wrong)
    for kind in dict.fromkeys(change.kind for change in wrong):
        alike = [change for change in wrong if change.kind == kind]
        if kind == "bias_scale" and named:
            continue  # whose scale it is has been said
        far = kind == "activation_scale" and abs(alike[0].size) >= _UNCALIBRATED
        yield f"{_FAR if far else _LABELS.get(kind, kind)}: {_some(alike)}"


_LABELS = {
    "granularity": "granularity changed",
    "bits": "bits changed",
    "type": "type of the codes changed (uint8 for int8, or a layer left in float)",
    "bias": "bias changed",
    "bias_scale": "scales do not fit each other",
    "weight_scale": "scale changed",
    "weights": "weights changed",
    "activation_scale": "scale changed",
    "folding": "BatchNorm folding",
    "layers": "other layers",
    "operators": "other operators",
    "graph": "other graph",
    "quantizers": "other quantizers",
    "zero_point": "zero point",
    "interface": "other inputs or outputs",
}


def _of_values(changes: Sequence[Change]) -> Iterator[str]:
    """Yield what the differences of numbers mean, over all layers."""
    other_kind = {c.layer for c in changes if c.kind in ("granularity", "bits", "type") and c.wrong}
    coded = [c for c in changes if c.kind in ("weights", "rounding") and c.layer not in other_kind and not c.wrong]
    if len(coded) > _FEW and _floored(coded):
        names, share = some([c.layer for c in coded], _FEW), -float(np.median([c.shift for c in coded]))
        yield (
            f"rounding changed: the weight codes of {len(coded)} layers ({names}) are {share:.2f} lower on "
            "average, as when weights are rounded down instead of to the nearest"
        )
    elif len(coded) > _FEW and float(np.median([c.size for c in coded])) > _OTHER_WEIGHTS:
        size = float(np.median([c.size for c in coded]))
        yield (
            f"other weights: the codes of {len(coded)} layers differ, by {size:.0%} of their size in the median layer, "
            "as those of another checkpoint do"
        )
    else:
        large = [c for c in coded if c.size >= _OTHER_WEIGHTS]
        if 0 < len(large) <= _FEW:
            yield f"weights changed: {_some(large)}"
    for kind, label in (("constants", "other numbers"), ("bias_values", "bias changed"), ("zero_point", "zero point")):
        others = [c for c in changes if c.kind == kind and not c.wrong]
        if 0 < len(others) <= _FEW:
            yield f"{label}: {_some(others)}"
    scaled = [c for c in changes if c.kind in ("weight_scale", "folding") and not c.wrong]
    if 0 < len(scaled) <= _FEW:
        yield f"{'BatchNorm folding' if scaled[0].kind == 'folding' else 'scale changed'}: {_some(scaled)}"
    far = [c for c in changes if c.kind == "activation_scale" and not c.wrong and abs(c.size) >= _UNCALIBRATED]
    if 0 < len(far) <= _FEW:
        yield f"{_FAR}: {_some(far)}"


def _floored(coded: Sequence[Change]) -> bool:
    """Return whether codes are about half of one lower nearly everywhere, also in a file that was calibrated anew."""
    shifts = [c.shift for c in coded]
    low, high = _HALF
    small = float(np.median([c.size for c in coded if c.kind == "weights"] or [0.0])) < 4 * _OTHER_WEIGHTS
    return small and low < -float(np.median(shifts)) < high and float(np.mean(np.less(shifts, 0))) >= _NEARLY_ALL


def _of_ranges(changes: Sequence[Change]) -> Iterator[str]:
    """Yield the last resort: where weights tell nothing, the activations' ranges."""
    ranges = [c for c in changes if c.kind == "activation_scale"]
    if ranges:
        factor = 2 ** float(np.median([abs(c.size) for c in ranges]))
        yield (
            f"calibration changed: the activation scales of {len(ranges)} layers differ, and are {times(factor)} what "
            "they were, or the other way round, in the median layer; nothing else tells, as after a calibration on "
            "other images (noise, or too few)"
        )


def _first_distant(measured: Measurement, case: Case) -> Iterator[str]:
    """Yield the first layer whose output is not what it was."""
    base = unpack_sketches({str(k): v for k, v in case.sketches.items()})
    if not base:
        return
    try:
        found = distances(base, layer_sketches(measured))
    except ArtefactError:
        return  # an explanation less; the verdict stands without it
    highest = 0.0
    for name, distance in found.items():
        if distance > _DISTANT and distance > _JUMP * highest:
            before = f", those of all layers before it {_db(highest)} dB or less" if highest else ""
            yield f"first layer to differ: the output of {name} is {_db(distance)} dB from the baseline's{before}"
            return
        highest = max(highest, distance)


def _db(distance: float) -> str:
    return f"{10 * np.log10(max(distance, 1e-12)):.0f}"


def _some(changes: Sequence[Change]) -> str:
    return some([change.text for change in changes], _FEW, "; ")
