"""The same file in the kernels of other processors: run there on the same images, and compared bit for bit.

What belongs here: what is run, and what is said of each family. The file runs as it ships, in the runtime's own
optimizations; a second run lays open the codes behind each operator, and says where the first ones part. Emulation
shows numbers, never speed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.backends import DEFAULT
from dfqkit_export.backends.processor import saturates, this_processor
from dfqkit_export.comparison.portability import emulated
from dfqkit_export.comparison.portability.bounds import Proof
from dfqkit_export.comparison.portability.environment import Environment, environment_of
from dfqkit_export.comparison.portability.families import Family, own_family, runs
from dfqkit_export.errors import ArtefactError, RuntimeCrashedError, RuntimeUnavailableError
from dfqkit_export.files import sha256_of_file
from dfqkit_export.images.inputs import Inputs, entrance, own_batch
from dfqkit_export.measure.kinds import PORTABLE, Metric
from dfqkit_export.onnxfile.graph import SourceGraph
from dfqkit_export.onnxfile.model import load_onnx
from dfqkit_export.tasks import DEFAULT_TASK, Task

#: What is found of a family.
PROVEN, EQUAL, PARTS, UNSEEN = "proven equal", "equal on these images", "parts", "not looked at"
_BATCH = 32
#: Bytes of codes that are kept of one run.
_MOST_CODES = 2**28
_LAST = 400  # characters of what a program said before it died
#: Seconds that one family may take.
SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """The first operator whose codes part.

    Attributes:
        name: Of the operator.
        op: What it is.
        codes: Largest difference, in codes.
        share: Of the codes that differ.
    """

    name: str
    op: str
    codes: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is found of the file in one family's kernels.

    Attributes:
        family: Its name.
        title: The same for people.
        verdict: `PROVEN`, `EQUAL`, `PARTS` or `UNSEEN`.
        version: Of ONNX Runtime, as it ran; "" where it did not.
        how: What ran it.
        n: Images.
        bits: Share of the numbers of all outputs that are the same in every bit; None where it did not run.
        largest: Largest difference of two numbers of the outputs.
        flips: Images with another answer.
        first: Where codes part first; None where none do, or they could not be seen.
        exact: Verdict with `session.x64quantprecision` set to 1, where it parts without and that could help.
        why: What kept it from being run, and what keeps it from being proven, as clauses.
        seconds: That it took, which says nothing about speed.
    """

    family: str
    title: str
    verdict: str
    version: str = ""
    how: str = ""
    n: int = 0
    bits: float | None = None
    largest: float | None = None
    flips: int | None = None
    first: Place | None = None
    exact: str = ""
    why: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Portability:
    """What was found of a file, family by family.

    Attributes:
        file: Its name.
        sha256: Its hash, by which a report knows that it is about the same file.
        images: Where the images come from.
        n: How many.
        reference: What computed the answers that all are compared with.
        rows: One a family.
    """

    file: str
    sha256: str
    images: str
    n: int
    reference: str
    rows: tuple[Row, ...]

    def worse(self, names: Sequence[str]) -> list[Row]:
        """Return the rows of families that part, and of those named that were not looked at."""
        return [row for row in self.rows if row.verdict == PARTS or (row.verdict == UNSEEN and row.family in names)]

    def metric(self) -> Metric:
        """Return the share of the families that compute the same bits; of one that was not looked at nobody knows."""
        same = sum(row.verdict in (PROVEN, EQUAL) for row in self.rows)
        value = 100.0 * same / len(self.rows) if self.rows else None
        return PORTABLE.metric(subject=DEFAULT.name, data=self.images, value=value, n=len(self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What one run gave: outputs by place, codes by tensor, and what ran."""

    version: str
    outputs: list[NDArray[Any]]
    codes: dict[str, NDArray[Any]] = field(default_factory=dict)
    undisturbed: bool = True


def prove(
    path: Path,
    inputs: Inputs,
    names: Iterable[str],
    *,
    versions: Sequence[str] = (),
    task: Task = DEFAULT_TASK,
    begins: Callable[[str], None] = lambda _: None,
) -> Portability:
    """Run a file in the kernels of several families and say where its numbers are the same.

    Args:
        path: The ONNX file.
        inputs: The images.
        names: Of the families.
        versions: Of ONNX Runtime, to be run in each family; nothing takes the installed or newest one that runs there.
        task: What the outputs mean: which images have another answer.
        begins: Is told what begins.

    Raises:
        ArtefactError: The file or the images cannot be used.
        RuntimeUnavailableError: ONNX Runtime is not installed.
        TargetError: A family is unknown.
    """
    wanted = runs(names, versions)
    begins(f"proving {path.name}: what it computes on this machine")
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as name:
        native = own_family() or Family(name="", title="this machine", machine="", cpu="", addition="")
        careful = saturates(this_processor())
        case = _Case(path, inputs, Path(name), exact=careful)
        proof = Proof(path)
        rows = []
        for family, version in wanted:
            begins(f"proving {path.name}: {family.title} {version}".rstrip())
            rows.append(_row(case, family, version, proof.against(family), task))
    note = ", session.x64quantprecision 1" if careful else ""
    return Portability(
        file=path.name,
        sha256=sha256_of_file(path),
        images=inputs.source,
        n=len(inputs.images),
        reference=f"ONNX Runtime {case.reference.version} on this machine ({native.title}{note})",
        rows=tuple(rows),
    )


def _row(case: _Case, family: Family, version: str, against: Sequence[str], task: Task) -> Row:
    row = Row(family=family.name, title=family.title, verdict=UNSEEN if against else PROVEN, why=tuple(against))
    begun = time.monotonic()
    try:
        environment = environment_of(family, version)
        found = case.run(environment)
    except (RuntimeUnavailableError, RuntimeCrashedError) as error:
        return replace(row, why=(str(error).rstrip("."), *against), seconds=time.monotonic() - begun)
    bits, largest, flips = case.compared(found, task)
    row = replace(row, version=found.version, how=environment.how, n=case.n, bits=bits, largest=largest, flips=flips)
    if row.bits == 1.0:
        return replace(row, verdict=EQUAL if against else PROVEN, seconds=time.monotonic() - begun)
    exact = ""
    if family.saturates:
        try:
            other = case.run(environment, exact=True)
            same = case.compared(other, task)[0] == 1.0
            exact = EQUAL if same else PARTS
        except RuntimeCrashedError:
            exact = UNSEEN
    try:
        first = case.first(case.run(environment, lay_open=True))
    except RuntimeCrashedError:
        first = None
    return replace(row, verdict=PARTS, exact=exact, first=first, seconds=time.monotonic() - begun)


class _Case:
    """A file with the images it is run on, laid out for `emulated` in a folder, and what this machine answers."""

    def __init__(self, path: Path, inputs: Inputs, folder: Path, *, exact: bool) -> None:
        self.n = len(inputs.images)
        self._path, self._folder = path.resolve(), folder
        model = load_onnx(path)
        self._named = [value.name for value in model.graph.output]
        graph = SourceGraph(model.graph)
        self._makers = _makers(graph, model)
        door, fixed = entrance(model, path), own_batch(model)
        batch = fixed or _BATCH
        images = inputs.images
        if len(images) % batch and fixed:
            images = np.concatenate([images, np.repeat(images[-1:], -len(images) % batch, axis=0)])
        self._batches = range(0, len(images), batch)
        for number, start in enumerate(self._batches):
            feed = _named(door.feed(images[start : start + batch]))
            np.savez(folder / f"feed-{number}.npz", allow_pickle=False, **feed)
        self._exposed = folder / "exposed.onnx"
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._makers if name not in self._named)
        onnx.save(model, str(self._exposed), save_as_external_data=model.ByteSize() > 2**30)
        self._open = len(self._batches)
        self._here = partial(self.run, Environment(command=(sys.executable,), how="on this machine"), exact=exact)
        self.reference = self._here()

    @cached_property
    def _codes_here(self) -> _Answers:
        """What this machine answers laid open, which is only asked where a family parts."""
        return self._here(lay_open=True)

    def run(self, environment: Environment, *, exact: bool = False, lay_open: bool = False) -> _Answers:
        """Run the file somewhere.

        Raises:
            RuntimeCrashedError: The program died, or took too long.
        """
        request = {
            "model": str(self._path),
            "exposed": str(self._exposed),
            "batches": len(self._batches),
            "open_batches": self._open if lay_open else 0,
            "tensors": list(self._makers) if lay_open else [],
            "exact": exact,
        }
        for stale in (*self._folder.glob("codes-*.npz"), *self._folder.glob("out-*.npz"), *self._folder.glob("ans*")):
            stale.unlink()
        (self._folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        _start(environment, self._folder)
        said = json.loads((self._folder / "answer.json").read_text(encoding="utf-8"))
        outputs = self._stored("out", len(self._named))
        if not lay_open:
            return _Answers(version=said["version"], outputs=outputs)
        inner = self._stored("codes", len(self._named) + len(self._makers), self._open)
        size = sum(part.nbytes for part in inner[len(self._named) :])
        if size > _MOST_CODES and self._open == len(self._batches):  # of the rest, outputs are enough
            self._open = max(1, int(self._open * _MOST_CODES / size))
        seen = len(inner[0])
        return _Answers(
            version=said["version"],
            outputs=outputs,
            codes=dict(zip(self._makers, inner[len(self._named) :], strict=True)),
            undisturbed=all(_same(own[:seen], laid[:seen]).all() for own, laid in zip(outputs, inner, strict=False)),
        )

    def _stored(self, stem: str, width: int, batches: int | None = None) -> list[NDArray[Any]]:
        parts = []
        for number in range(len(self._batches) if batches is None else batches):
            with np.load(self._folder / f"{stem}-{number}.npz") as stored:
                parts.append([stored[str(place)] for place in range(width)])
        return [np.concatenate(column)[: self.n] for column in zip(*parts, strict=True)]

    def compared(self, found: _Answers, task: Task) -> tuple[float, float, int]:
        """Return what a `Row` says of outputs beside this machine's: `bits`, `largest` and `flips`."""
        same = [_same(a, b) for a, b in zip(found.outputs, self.reference.outputs, strict=True)]
        numbers = sum(part.size for part in same)
        differ = [
            float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0))
            for a, b in zip(found.outputs, self.reference.outputs, strict=True)
        ]
        names = task.named_in(tuple(self._named))
        both = [
            {
                ours: dict(zip(self._named, one.outputs, strict=True))[theirs]
                for ours, theirs in zip(task.names, names, strict=True)
            }
            for one in (self.reference, found)
        ]
        flips = int((~task.same_answer(*both)).sum())
        return sum(int(part.sum()) for part in same) / max(numbers, 1), max(differ), flips

    def first(self, found: _Answers) -> Place | None:
        """Return where codes part first; None where laying them open changed what is computed."""
        reference = self._codes_here
        if not (found.undisturbed and reference.undisturbed):
            return None
        for tensor, (name, op) in self._makers.items():
            a, b = (one.codes[tensor].astype(np.int64) for one in (found, reference))
            seen = min(len(a), len(b))
            apart = np.abs(a[:seen] - b[:seen])
            if apart.any():
                return Place(name=name, op=op, codes=int(apart.max()), share=float((apart > 0).mean()))
        return None


def _makers(graph: SourceGraph, model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Return each tensor of codes, in the file's order, with name and operator of what computes it."""
    found = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in graph.activations and node.output[0]:
            maker = graph.source(node.input[0], {"Relu", "Clip"})
            found[node.output[0]] = (maker.name, maker.op_type) if maker is not None else (node.name, node.op_type)
    return found


def _named(feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    if any("/" in name or name == "file" for name in feed):
        message = f"Inputs are called {', '.join(feed)}; a slash or 'file' cannot be passed on. Rename them."
        raise ArtefactError(message)
    return dict(feed)


def _same(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where two arrays have the same bits."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return np.zeros(a.shape, np.bool_)
    kind = np.dtype(f"u{a.dtype.itemsize}")
    equal: NDArray[np.bool_] = np.ascontiguousarray(a).view(kind) == np.ascontiguousarray(b).view(kind)
    return equal


def _start(environment: Environment, folder: Path) -> None:
    program = [*environment.command, str(Path(emulated.__file__)), str(folder)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment.variables}
    try:
        done = subprocess.run(
            program, capture_output=True, text=True, check=False, timeout=SECONDS, env=variables, cwd=folder
        )
    except subprocess.TimeoutExpired:
        message = f"it took more than {SECONDS:.0f} s; give fewer images (--limit)"
        raise RuntimeCrashedError(message) from None
    if done.returncode or not (folder / "answer.json").is_file():
        said = done.stderr.strip()[-_LAST:] or "nothing was said"
        message = f"the runtime ended with {done.returncode} there: {said}"
        raise RuntimeCrashedError(message)
