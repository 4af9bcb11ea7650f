"""The target's own runtime, or one of its family, asked about the exported file where ONNX Runtime is not the target.

What belongs here: which runtime is asked for which target, and what a report says where it is absent, refuses the file
or crashes. What the runtime answers is read in `dfqkit_export.backends`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.backends import DEFAULT, backend_of, witness_for
from dfqkit_export.backends.base import Options
from dfqkit_export.backends.onnxruntime.session import EXACT_PRODUCTS
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.backends.precision import Realised
from dfqkit_export.backends.processor import saturates, this_processor
from dfqkit_export.backends.session import Session
from dfqkit_export.backends.target import Target
from dfqkit_export.comparison.portability import portability_table, prove
from dfqkit_export.errors import ArtefactError, RuntimeCrashedError
from dfqkit_export.images.inputs import Inputs
from dfqkit_export.measure.breakdown import Breakdown
from dfqkit_export.measure.kinds import Metric
from dfqkit_export.measure.metrics import integer_share
from dfqkit_export.profiling.node_times import node_times
from dfqkit_export.report import Finding, Floor, LayerRow
from dfqkit_export.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a runtime said of the file.

    Attributes:
        subject: That runtime, as metrics name it; empty where the target has none.
        realised: How each layer is executed, or None where the runtime was not asked or refused the file.
        warnings: What a reader of the report must know first.
        findings: Why the file fails, whatever was measured elsewhere.
    """

    subject: str
    realised: Realised | None = None
    warnings: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def metrics(self) -> list[Metric]:
        """Return the share of integer layers, where the runtime answered."""
        return [integer_share(self.realised, subject=self.subject)] if self.realised else []

    def answerable(self, floors: Iterable[Floor]) -> list[Floor]:
        """Return the floors without those about a runtime that was not asked; `warnings` says that it was not."""
        absent = self.subject if self.realised is None and not self.findings else None
        return [floor for floor in floors if floor.subject != absent]

    def tell(self, rows: Iterable[LayerRow], times: Mapping[str, float]) -> tuple[LayerRow, ...]:
        """Return the rows with what this runtime executed in place of another, and its times by `kernel_times`.

        Nothing stands where it did not say. Of layers that run as one the first has the time.
        """
        known = {layer.name: layer for layer in self.realised.layers} if self.realised else {}
        told, left = [], dict(times)
        for row in rows:
            layer = known.get(row.name)
            precision, executed_as, detail = (layer.precision, layer.executed_as, layer.detail) if layer else ("",) * 3
            ms = left.pop(layer.kernel, None) if layer else None
            told.append(replace(row, precision=precision, executed_as=executed_as, detail=detail, ms=ms))
        return tuple(told)


def ask_runtime(path: Path, target: Target) -> Account:
    """Have the runtime of a target's family load the exported file and say how it executes each layer."""
    witness = witness_for(target)
    subject = witness.name if witness else ""
    missing = witness.missing() if witness else "no runtime of it is known here"
    if missing:
        warning = (
            f"{target.title} has not seen this file, nor has anything of its family: {missing}. What is measured here "
            "is what the file says, computed in ONNX Runtime; what runs in integers on the target is not known, and "
            "floors on that were left out."
        )
        return Account(subject=subject, warnings=(warning,))
    try:
        return Account(subject=subject, realised=realised_precision(path, subject), warnings=_saturation(target))
    except (ArtefactError, RuntimeCrashedError) as error:
        finding = Finding(metric="accepted", subject=subject, value=0.0, floor=1.0, message=str(error))
        return Account(subject=subject, findings=(finding,))


def _saturation(target: Target) -> tuple[str, ...]:
    """Warn where this machine would compute something else in a session that is not told to be exact."""
    fits = target.weights.reduce_range or target.sums_fit
    if backend_of(target) is not DEFAULT or fits or not saturates(this_processor()):
        return ()
    return (
        "This processor has no VNNI, and products of 8-bit codes saturate on such ones unless the session sets "
        f"{EXACT_PRODUCTS} to 1, as was done here. Set it wherever the file runs on one, or make the file for "
        "a target whose weights fill 7 bits (`dfqkit list targets`).",
    )


def kernel_times(path: Path, images: NDArray[np.float32], repeats: int) -> dict[str, float]:
    """Return the milliseconds of everything that ONNX Runtime runs of a file, by name; nothing for no repeats."""
    return {node.name: node.ms for node in node_times(path, images, repeats=repeats)} if repeats else {}


def own_runtime(path: Path, target: Target) -> Session | None:
    """Return the file in the target's own runtime; None where that is ONNX Runtime's CPU, or cannot run here."""
    backend = backend_of(target)
    if backend is DEFAULT or backend.missing():
        return None
    try:
        return backend.load(path, Options())
    except (ArtefactError, RuntimeCrashedError):
        return None  # `ask_runtime` makes a finding of it


def kernels_elsewhere(
    path: Path, names: Sequence[str], images: NDArray[np.float32], source: str, task: Task
) -> tuple[list[Metric], list[Breakdown]]:
    """Return what the families of kernels that a recipe names compute of the file, beside this machine."""
    if not names:
        return [], []
    found = prove(path, Inputs(images=images, source=source), names, task=task)
    return [found.metric()], [portability_table(found)]
