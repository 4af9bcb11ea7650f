"""Where two files, or one file in two runtimes, part: outputs, and the first layer whose outputs differ too much.

What belongs here: running both and measuring. What is said of it in words is `text`; which layer stands for
which is `matching`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.backends import DEFAULT, UNOPTIMIZED, get_backend
from dfqkit_export.backends.opening import open_session, realised_precision
from dfqkit_export.backends.session import batched
from dfqkit_export.comparison.layers import MAX_DIFFERING, MIN_SQNR, Apart, LayerDifference
from dfqkit_export.comparison.matching import Matching, match_layers
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.inputs import Inputs, model_image, own_batch
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.activations import LayerProbe, layer_scales
from dfqkit_export.measure.kinds import DROPS, Metric
from dfqkit_export.onnxfile.canonical.opened import forms, has_integer_operators, opened
from dfqkit_export.onnxfile.graph import SourceGraph
from dfqkit_export.onnxfile.model import load_onnx, metadata_in
from dfqkit_export.report.evidence import Seen, seen
from dfqkit_export.tasks import DEFAULT_TASK, Outputs, Task, entry_of, task_in
from dfqkit_export.tasks.answering import answer
from dfqkit_export.tasks.generic import Generic
from dfqkit_export.tasks.lookup import METADATA
from dfqkit_export.tasks.recognition import recognise
from dfqkit_export.words import some

_BATCH = 32
# Laying open what a runtime would fuse may change it. Changes below this share of the largest output do not count.
_UNDISTURBED = 1e-3


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two things compared.

    Attributes:
        path: The file.
        runtime: Name of the runtime that executes it, one of `backends.all_backends`.
    """

    path: Path
    runtime: str = DEFAULT.name


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came of a comparison.

    Attributes:
        a: The first side, the reference.
        b: The second.
        images: Where the images come from, in words.
        n: How many.
        random: Whether they are random numbers.
        flips: Images with another answer, of a classifier another class.
        margin: Largest margin (`Task.margins`) that A has among the flipped images; None without flips.
        logit_max_abs: Largest difference of two numbers of the outputs; None where one is not finite.
        logit_sqnr_db: Signal-to-noise ratio of the outputs.
        matching: Which layers stand for each other.
        layers: Their differences, in A's order; empty where a runtime shows outputs only.
        min_sqnr: The threshold that was used, in dB.
        notes: What a reader must know of how it was measured.
        shown: What the images show of B, were A its float teacher; None where an output is not finite.
        labelled: A's own accuracy and B's drop from it, on images with labels.
        task: What the outputs mean.
    """

    a: Side
    b: Side
    images: str
    n: int
    random: bool
    flips: int
    margin: float | None
    logit_max_abs: float | None
    logit_sqnr_db: float | None
    matching: Matching
    layers: tuple[LayerDifference, ...]
    min_sqnr: float = MIN_SQNR
    notes: tuple[str, ...] = ()
    shown: Seen | None = None
    labelled: tuple[Metric, ...] = ()
    task: Task = DEFAULT_TASK

    @property
    def first(self) -> LayerDifference | None:
        """The first layer that parts, or None."""
        return next((layer for layer in self.layers if layer.parts), None)

    @property
    def begins(self) -> LayerDifference | None:
        """The first layer that parts or has more other codes than stray rounding makes, 0.1 %; or None."""
        return next((one for one in self.layers if one.parts or (one.differing or 0.0) > MAX_DIFFERING), None)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        document = asdict(self)
        document.pop("task")
        for side in ("a", "b"):
            document[side]["path"] = str(document[side]["path"])
        document |= entry_of(self.task)
        named = {"first_to_part": self.first, "begins": self.begins}
        return {**document, **{key: layer.name if layer else None for key, layer in named.items()}}


def compare_files(
    a: Side,
    b: Side,
    inputs: Inputs,
    *,
    threads: int | None = None,
    min_sqnr: float = MIN_SQNR,
    task: Task | None = None,
) -> Comparison:
    """Run both sides on the same images and compare outputs and layers.

    A layer parts where not the same values are finite; where both sides quantize it with the same scale, when
    the mean squared difference is larger than the quantizer's own error, step^2 / 12 (as with 8 % of the values one
    code apart); elsewhere when its signal-to-noise ratio is below `min_sqnr`.

    Args:
        a: The reference.
        b: What is compared with it.
        inputs: At least one image.
        threads: Threads of runtimes on the CPU; None leaves the choice to them.
        min_sqnr: Threshold in dB.
        task: What the outputs mean; None: what A says of itself, or what they are recognised as.

    Raises:
        ArtefactError: A file is damaged, or the images or the outputs do not fit each other.
        RuntimeUnavailableError: A runtime is not installed.
    """
    models = load_onnx(a.path), load_onnx(b.path)
    batch, images = _batches(models, inputs.images)
    notes: list[str] = []
    task = _task_of(a, models[0], images[:batch], task, notes)
    first, second = (_outputs(side, task, images, batch, threads) for side in (a, b))
    for name in task.names:
        if first[name].shape != second[name].shape:
            message = (
                f"The outputs have the shapes {first[name].shape} and {second[name].shape}, so that they cannot be "
                "compared. Give two files that answer alike to the same images: with as many classes, or maps as large."
            )
            raise ArtefactError(message)
    matching = match_layers(*models)
    blind = [side.runtime for side in (a, b) if not get_backend(side.runtime).sees_layers]
    layers: tuple[LayerDifference, ...] = ()
    notes += [f"{name} gives outputs only, so that layers cannot be compared there." for name in blind]
    if not blind:
        with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
            sides = [_looked_at(side, model, Path(folder), notes) for side, model in zip((a, b), models, strict=True)]
            pair = _Pair(
                a=sides[0], b=sides[1], task=task, images=images, batch=batch, outputs=(first, second),
                threads=threads, min_sqnr=min_sqnr,
            )  # fmt: skip
            layers, more = pair.layers(matching)
            notes += more
    notes += _bias_notes({"A": (a.runtime, models[0]), "B": (b.runtime, models[1])})
    whole = Apart(None, None)
    for name in task.names:
        whole.add(first[name], second[name])
    flipped = ~task.same_answer(first, second)
    with np.errstate(invalid="ignore"):  # inf - inf
        margins = task.margins(first, first)[flipped]
    margin = float(margins.max()) if margins.size and np.isfinite(margins).all() else None
    shown: Seen | None = None
    labelled: list[Metric] = []
    if all(np.isfinite(side[name]).all() for side in (first, second) for name in task.names):
        image = model_image(models[0]) or _image_of(images, first[task.names[0]])
        shown = seen(task, image, first, second, data=inputs.source)
        if inputs.labels is not None:
            labels = inputs.labels[: len(images)]
            drops = task.metrics(first, second, labels, subject=b.runtime, data=inputs.source)
            labelled = [metric for metric in drops if metric.name in DROPS]
            labelled += task.metrics(None, first, labels, subject="teacher", data=inputs.source)
    return Comparison(
        a=a,
        b=b,
        images=inputs.source,
        n=len(images),
        random=inputs.random,
        flips=int(flipped.sum()),
        margin=margin,
        logit_max_abs=whole.max_abs,
        logit_sqnr_db=whole.sqnr_db,
        matching=matching,
        layers=layers,
        min_sqnr=min_sqnr,
        notes=tuple(notes),
        shown=shown,
        labelled=tuple(labelled),
        task=task,
    )


def _task_of(
    side: Side, model: onnx.ModelProto, images: NDArray[np.float32], task: Task | None, notes: list[str]
) -> Task:
    """Return what the outputs mean: as given, as the file says, or as they look; of a row of numbers, classes."""
    metadata = metadata_in(model)
    if task is None and METADATA in metadata:
        return task_in(metadata)
    found = open_session(side.runtime, side.path).run_all(images)
    first = next(iter(found.values()))
    row = first.ndim == 0 or first[0].size == max(first.shape[1:], default=1)
    if task is None and len(found) == 1 and row:
        return DEFAULT_TASK
    image = model_image(model) or _image_of(images, first)
    if task is not None:
        return task.fitted(found, image)
    known = recognise(found, image)
    if known.task is not None:
        notes.append(f"The outputs are taken for those of the task {known.task.name}: {known.reason}.")
        return known.task
    notes.append(f"{known.reason} They are compared as numbers; say what they mean with --task.")
    return Generic().fitted(found, image)


def _image_of(images: NDArray[np.float32], output: NDArray[Any]) -> ImageSpec:
    """Say of images what can be seen of them, where the file says nothing: they are normalised already."""
    ones = (1.0,) * images.shape[1]
    return ImageSpec(
        shape=(images.shape[1], images.shape[2], images.shape[3]),
        mean=tuple(0.0 for _ in ones),
        std=ones,
        classes=int(output.shape[1]) if output.ndim == 2 and output.shape[1] > 1 else 0,
    )


def _looked_at(side: Side, model: onnx.ModelProto, folder: Path, notes: list[str]) -> Side:
    """Return the file whose layers are looked at: of one of integer operators, what they stand for."""
    if not has_integer_operators(model):
        return side
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    onnx.save(opened(model), str(path))
    notes.append(
        f"{str(side.path)!r} has integer operators ({' and '.join(forms(model))}): its layers were looked at as the "
        "float operators between quantizers that they stand for, its outputs as it is."
    )
    return replace(side, path=path)


def _batches(
    models: tuple[onnx.ModelProto, onnx.ModelProto], images: NDArray[np.float32]
) -> tuple[int, NDArray[np.float32]]:
    fixed = {size for size in map(own_batch, models) if size is not None}
    if not fixed:
        return _BATCH, images
    size = max(fixed)
    whole = len(images) // size * size
    if len(fixed) > 1 or not whole:
        message = (
            f"The files take batches of {' and '.join(map(str, sorted(fixed)))} images, found {len(images)} image(s). "
            "Give files with the same or an open batch, and at least one whole batch of images."
        )
        raise ArtefactError(message)
    return size, images[:whole]


def _outputs(
    side: Side, task: Task, images: NDArray[np.float32], batch: int, threads: int | None
) -> dict[str, NDArray[Any]]:
    session = open_session(side.runtime, side.path, threads=threads)
    parts = []
    for part in batched(images, batch):
        found = answer(session, task, part)
        for values in found.values():
            if values.dtype.kind not in "fiu" or values.shape[:1] != (len(part),):
                message = (
                    f"An output of {str(side.path)!r} has type {values.dtype} and shape {values.shape} for {len(part)} "
                    f"image(s); allowed are numbers, as many for each image. Let the network give its {task.words}."
                )
                raise ArtefactError(message)
        parts.append(task.shaped(found))
    return {name: np.concatenate([part[name] for part in parts]) for name in task.names}


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Both sides with the outputs that they give undisturbed."""

    a: Side
    b: Side
    task: Task
    images: NDArray[np.float32]
    batch: int
    outputs: tuple[Outputs, Outputs]
    threads: int | None
    min_sqnr: float

    def layers(self, matching: Matching) -> tuple[tuple[LayerDifference, ...], list[str]]:
        """Compare the layers, all at once where that changes nothing, else each alone."""
        found, notes, changes = self._together(matching.pairs)
        hidden: list[dict[str, str]] = [{}, {}]
        disturbed = False
        for index, (side, change) in enumerate(zip((self.a, self.b), changes, strict=True)):
            # Rounding that is left out inside such kernels, few outputs may tell.
            fused = _hidden(side) if change > _UNDISTURBED or not get_backend(side.runtime).rounds_inside else {}
            if fused or change > _UNDISTURBED:
                hidden[index], disturbed = fused, True
                notes.append(disturbance_note(side.runtime, load_onnx(side.path), fused))
        if not disturbed:
            return found, notes
        pairs = [pair for pair in matching.pairs if pair[0] not in hidden[0] and pair[1] not in hidden[1]]
        return tuple(layer for pair in pairs for layer in self._together([pair])[0]), notes

    def _together(
        self, pairs: Sequence[tuple[str, str]]
    ) -> tuple[tuple[LayerDifference, ...], list[str], tuple[float, float]]:
        probes = [
            LayerProbe(side.path, runtime=side.runtime, threads=self.threads, layers={pair[index] for pair in pairs})
            for index, side in enumerate((self.a, self.b))
        ]
        sums = {pair: Apart(probes[0].scales[pair[0]], probes[1].scales[pair[1]]) for pair in pairs}
        changes, shapes = [0.0, 0.0], dict[tuple[str, str], str]()
        for start, part in zip(range(0, len(self.images), self.batch), batched(self.images, self.batch), strict=True):
            seen = [probe.run(part) for probe in probes]
            for index, (found, _) in enumerate(seen):
                own = self.task.named_in(tuple(found))
                for name, theirs in zip(self.task.names, own, strict=True):
                    plain = self.outputs[index][name][start : start + len(part)]
                    changes[index] = max(changes[index], _change(plain, found[theirs].reshape(plain.shape)))
            for pair, apart in sums.items():
                first, second = seen[0][1][pair[0]], seen[1][1][pair[1]]
                if first.shape == second.shape:
                    apart.add(first, second)
                else:
                    shapes[pair] = f"{pair[0]} gives {first.shape[1:]} in A and {second.shape[1:]} in B: not compared."
        layers = tuple(apart.difference(*pair, self.min_sqnr) for pair, apart in sums.items() if pair not in shapes)
        return layers, list(shapes.values()), (changes[0], changes[1])


def _change(plain: NDArray[np.float32], seen: NDArray[np.float32]) -> float:
    with np.errstate(invalid="ignore"):  # inf - inf
        apart = np.nanmax(np.abs(plain - seen.astype(np.float32)), initial=0.0)
    largest = np.nanmax(np.abs(plain), initial=0.0)
    return float(apart / largest) if largest else float(apart)


def _hidden(side: Side) -> dict[str, str]:
    # Layers inside a kernel that goes on to a later layer, which is where they can be seen undisturbed.
    if get_backend(side.runtime).executed is None:
        return {}
    last: dict[str, str] = {}
    layers = [layer for layer in realised_precision(side.path, side.runtime).layers if layer.kernel]
    for layer in layers:
        last[layer.kernel] = layer.name
    return {layer.name: last[layer.kernel] for layer in layers if last[layer.kernel] != layer.name}


def disturbance_note(runtime: str, model: onnx.ModelProto, hidden: Mapping[str, str]) -> str:
    """Say that layers were looked at one by one, without those hidden in one kernel with a later one, their value."""
    text = (
        f"Looking at all layers at once changes what {runtime} computes, because it then fuses less; so each was "
        "looked at alone"
    )
    if hidden:
        shown = [f"{name} with {last}" for name, last in hidden.items()]
        text += f", without the {len(hidden)} that it computes in one kernel with a later one ({some(shown, 3)})"
    scales = layer_scales(model)
    rounded = [name for name in hidden if scales.get(name) is not None]
    backend = get_backend(runtime)
    if rounded and not backend.rounds_inside:
        text += f". For {len(rounded)} the file rounds to codes in between, which {backend.title} then leaves out"
    return f"{text}."


def _bias_notes(sides: Mapping[str, tuple[str, onnx.ModelProto]]) -> list[str]:
    """Say where a runtime rounds float biases, which matters for weights of few bits, whose scales are large."""
    found = []
    for side, (runtime, model) in sides.items():
        graph = SourceGraph(model.graph)
        count = sum(_float_bias(layer, graph) for layer in graph.layers())
        if get_backend(runtime).rounds_biases and count:
            found.append(
                f"In {side}, {runtime} rounds the float biases of {count} convolution(s) to multiples of input scale "
                f"x weight scale, which the file does not say; {UNOPTIMIZED.name} does not."
            )
    return found


def _float_bias(layer: onnx.NodeProto, graph: SourceGraph) -> bool:
    if layer.op_type != "Conv" or len(layer.input) < 3 or graph.constant(layer.input[2]) is None:
        return False
    makers = [graph.producer(name) for name in layer.input[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
