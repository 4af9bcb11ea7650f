"""Cases whose truth is known: files, good and broken, their drop on real images, and their logits on synthetic ones.

What belongs here: finding the cells of `dfqkit bench` folders, breaking some of them, and running everything once.
`estimate_study` fits and judges.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import ArtefactError
from dfqkit_export.estimate.features import Features, measure_features
from dfqkit_export.files import sha256_of_file
from dfqkit_export.images.labelled import load_images
from dfqkit_export.images.stored import StoredBank
from dfqkit_export.tasks.classification import paired_drop, top1
from tests.benchmarks.estimate_faults import FAULTS, File

BATCH = 50
# Sound files that are broken, a source and bits each; faults take turns.
BASES = (("dfq", "w8a8"), ("zeroq", "w8a8"), ("zeroq", "w4a8"))
# Which images grade: of the first source that did not make the file's own; `grading` are those of a run with dfq.
GRADING = "images/grading.safetensors"
GRADERS = ("grading", "dfq", "fastdfkd")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file whose drop is known, seen on one set of synthetic images."""

    teacher: str
    name: str
    kind: str
    grader: str
    main: bool
    teacher_top1: float
    drop: float
    drop_stderr: float
    features: Features


class Codes:
    """Images uint8 (N, C, H, W), and what tells them from others."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = np.ascontiguousarray(images)
        self.digest = hashlib.sha256(self.images.data).hexdigest()[:16]

    @classmethod
    def read(cls, *paths: Path) -> Codes:
        """The images of stored sets, one after the other."""
        return cls(np.concatenate([codes for path in paths for codes, _ in StoredBank.open(path).each_shard()]))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A folder of `dfqkit bench`, the images that grade its files, and the labelled images that tell the truth."""

    name: str
    folder: Path
    graders: dict[str, Codes]
    runs: Sequence[Path]
    spec: Any
    real: Codes
    labels: NDArray[np.int64]
    cache: Path

    @classmethod
    def open(cls, name: str, folder: Path, runs: Sequence[Path], data: Path, cache: Path) -> Bench:
        """Read the images of every source, calibrating and held out, and those that graded the first of `runs`."""
        sets = {
            path.parent.parent.parent.name: [path.parent / "calibration.safetensors", path]
            for path in sorted(folder.glob("cells/*/w8a8-calibration-s0/images/held_out.safetensors"))
        }
        if runs:
            sets = {"grading": [runs[0] / GRADING], **sets}
        spec = StoredBank.open(next(iter(sets.values()))[0]).spec
        real = load_images(data, spec)
        if real.labels is None:
            message = f"{data} has no labels; the truth needs them."
            raise ArtefactError(message)
        return cls(
            name=name,
            folder=folder,
            graders={key: Codes.read(*paths) for key, paths in sets.items()},
            runs=runs,
            spec=spec,
            real=Codes(real.images.transpose(0, 3, 1, 2)),
            labels=real.labels,
            cache=cache,
        )

    def cells(self) -> Iterator[tuple[str, str, Path]]:
        """Source, bits with mode, and file of every finished cell."""
        for path in sorted(self.folder.glob("cells/*/*/cell.json")):
            yield path.parent.parent.name, path.parent.name.removesuffix("-s0"), path.parent / "model.onnx"

    def logits(self, model: Path, seen: Codes) -> NDArray[np.float32]:
        """Logits of a file on images, computed once."""
        stored = self.cache / f"{sha256_of_file(model)[:16]}-{seen.digest}.npy"
        if not stored.exists():
            images = self.spec.normalize(seen.images.astype(np.float32) / np.float32(255))
            np.save(stored, OrtSession(model, threads=1).predict(images, BATCH))
        found: NDArray[np.float32] = np.load(stored)
        return found

    def cases(self) -> Iterator[Case]:
        """Every cell on every grader, whole runs on their own grading images, then broken files on the main graders."""
        cells = list(self.cells())
        teacher = cells[0][2].with_name("teacher.onnx")
        answers = self.logits(teacher, self.real)
        accuracy = top1(answers, self.labels, subject="", data="").value
        case = partial(self._case, teacher, teacher_top1=accuracy)
        for source, name, model in cells:
            main = self._main(source)
            for key in [key for key in self.graders if key != source]:
                drop = _measured(model.with_name("cell.json"))
                yield case(model, self.graders[key], drop, name=f"{source} {name}", grader=key, main=key == main)
        for run in self.runs:
            report = json.loads((run / "report.json").read_text())
            name = f"run {report['title'].rpartition('/')[2]} seed {report['provenance']['seed']}"
            drop = _measured(run / "report.json")
            yield case(run / "model.onnx", Codes.read(run / GRADING), drop, name=name, grader="own", main=True)
        for source, name, model in self._broken():
            paired = paired_drop(answers, self.logits(model, self.real), self.labels, subject="", data="")
            key, drop = self._main(source), (paired.value or 0.0, paired.stderr or 0.0)
            yield case(model, self.graders[key], drop, name=name, grader=key, main=True, kind="fault")

    def _main(self, source: str) -> str:
        return next(key for key in GRADERS if key in self.graders and key != source)

    def _case(self, teacher: Path, model: Path, seen: Codes, drop: tuple[float, float], **facts: Any) -> Case:
        print(f"{self.name}: {facts['name']} on {facts['grader']}", file=sys.stderr, flush=True)
        features = measure_features(self.logits(teacher, seen), self.logits(model, seen))
        facts = {"kind": "cell"} | facts
        return Case(teacher=self.name, drop=drop[0], drop_stderr=drop[1], features=features, **facts)

    def _broken(self) -> Iterator[tuple[str, str, Path]]:
        """Write each fault at each strength into one of the sound files, at a layer drawn by chance."""
        folder = self.cache / "faults" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        count = 0
        for fault, (apply, strengths) in FAULTS.items():
            for strength in strengths:
                source, bits = BASES[count % len(BASES)]
                seed = int(hashlib.sha256(f"{self.name} {fault} {strength}".encode()).hexdigest()[:8], 16)
                rng = np.random.default_rng(seed)
                index, count = int(rng.integers(1 << 16)), count + 1
                path = folder / f"{fault}-{strength:g}.onnx"
                if not path.exists():
                    file = File(onnx.load(str(self.folder / f"cells/{source}/{bits}-calibration-s0/model.onnx")))
                    apply(file, index, strength, rng)
                    onnx.save(file.model, str(path))
                yield source, f"{source} {bits}, {fault} {strength:g}", path


def _measured(path: Path) -> tuple[float, float]:
    """Drop and its standard error on the labelled images, from a cell or a report."""
    wanted = ("top1_drop", "onnxruntime")
    metrics = json.loads(path.read_text())["metrics"]
    drop = next(metric for metric in metrics if (metric["name"], metric["subject"]) == wanted)
    return drop["value"], drop["stderr"]
