"""Quantized files of many teachers, the drop of each on real images, and what synthetic images show of it.

    python -m tests.benchmarks.estimate_rows --cache runs/estimate                  # every row; an hour of one core
    python -m tests.benchmarks.estimate_rows --cache runs/estimate --only cifar-resnet8
    python -m tests.benchmarks.estimate_rows --cache runs/estimate --run cifar-resnet20=runs/w4a4/seed0

For each teacher of `estimate_teachers`: images of each source are made once, some calibrate, others grade. A row is a
file: made by a scheme of `SMALL` or `LARGE`; the first of these rounded to fewer bits, which costs no calibration; or
made worse on purpose (`estimate_faults`). It is run in ONNX Runtime on the labelled images, which tell its drop, and on
the images of each source, whose logits beside the teacher's are its features. ``--run`` adds the file of a finished run
of `dfqkit run` whose report has the drop on real images, seen on the run's own grading images; of the teacher's first
run these then grade its other files, too.

A teacher's rows are written to --out when all are made, and one that stands there is not made again. `estimate_study`
fits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from dfqkit.config.quant import QuantConfig
from dfqkit.config.synthesis import Demand, SynthesizerConfig
from dfqkit.progress import silent
from dfqkit.run.ladder import PULLED
from dfqkit.run.parts import Executor, Job, Tell
from dfqkit.run.ray_parts import executor
from dfqkit.seeds import derive
from dfqkit.students.capture import float_graph
from dfqkit.students.onnx_file import write_float, write_qdq
from dfqkit.students.placement import quantized_graph
from dfqkit.students.sensitivity import Imitated
from dfqkit.students.student import calibrate_student, equalized_graph
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.synthesis.methods.dfq import DFQConfig
from dfqkit.synthesis.methods.procedural import ProceduralConfig
from dfqkit_export.backends import DEFAULT_TARGET
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.estimate.features import measure_features
from dfqkit_export.images.stored import StoredBank
from dfqkit_export.tasks.classification import paired_drop, top1
from tests.benchmarks.estimate_faults import FAULTS, File
from tests.benchmarks.estimate_teachers import TEACHERS, Known
from tests.benchmarks.real_size import rows_in

OUT = Path(__file__).parents[2] / "recipes" / "estimate" / "rows.jsonl"
#: Images that calibrate, and as many that grade, where they are small and where they are large.
COUNT = {False: 128, True: 32}
DRAWN, GENERATED = ProceduralConfig(), DFQConfig(generators=1, batch=64, width=32, warmup=120)
#: Source of the calibration images, bits, and what else the scheme sets; of the first, others are made.
SMALL: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("zeroq", "w8a8", {}),
    ("procedural", "w4a4", {}),
)
ENDS = {"activation_range": "percentile"}
LARGE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("procedural", "w8a8", ENDS),
    ("procedural", "w6a8", ENDS),
    ("procedural", "w8a6", ENDS),
    ("zeroq", "w4a8", ENDS | {"weight_rounding": "gptq"}),
)
#: Bits of weights and activations that files of 8 are rounded to.
ROUNDED = {
    False: ((5, 8), (4, 8), (8, 5), (6, 6), (5, 5), (4, 5), (3, 8)),
    True: ((5, 8), (6, 7)),
}
#: Faults of files of 8 bits with their strengths; at a layer drawn by chance.
BROKEN = {
    False: (("bias-dropped", 0.5), ("weight-noise-everywhere", 0.08), ("folded-wrong", 0.25), ("input-off", 0.2)),
    True: (("scale-up", 8.0), ("input-off", 0.2)),
}


def rounded(file: File, weights: int, activations: int) -> None:
    """Round the inner weights of a file of 8 bits to fewer, and make the steps of its inner activations coarser."""
    step = 2 ** (8 - weights)
    for layer in range(1, len(file.layers) - 1):
        node, codes = file.codes(layer, 1)
        file.replace(node, 0, np.clip(np.rint(codes / step) * step, -128, 127).astype(codes.dtype))
    for index in range(1, len(file.quantizers) if activations < 8 else 0):
        FAULTS["scale-up"][0](file, index, 2.0 ** (8 - activations), np.random.default_rng(0))


@dataclass(frozen=True)
class Study:
    """One teacher with its images, graph and files, in a folder that keeps what is expensive."""

    name: str
    folder: Path

    @cached_property
    def known(self) -> Known:
        return TEACHERS[self.name](self.name, self.folder.parent / "weights")

    @cached_property
    def graph(self) -> Any:
        teacher = self.known.teacher
        return float_graph(teacher.model, teacher.image, teacher.task, teacher.names)

    @cached_property
    def images(self) -> dict[str, NDArray[np.uint8]]:
        """Images of every source; the last `COUNT` grade."""
        large = self.known.large
        configs = {"zeroq": PULLED.model_copy(update={"steps": 12}) if large else PULLED, "procedural": DRAWN}
        configs |= {"dfq": GENERATED}
        wanted = [name for name in configs if name in self.known.sources or (self.folder / f"{name}.npy").exists()]
        calibrating = {source for source, _, _ in (LARGE if large else SMALL)}
        return {
            name: self._made(name, configs[name], (2 if name in calibrating else 1) * COUNT[large]) for name in wanted
        }

    def _made(self, name: str, config: SynthesizerConfig, count: int) -> NDArray[np.uint8]:
        file = self.folder / f"{name}.npy"
        if not file.exists():
            print(f"{self.name}: {count} images of {name}", file=sys.stderr, flush=True)
            teacher = self.known.teacher
            maker = build_synthesizer(config, teacher, derive(0, self.name, name), Demand(training=0, fresh=count))
            for _ in range(maker.warmup_rounds):
                maker.synthesize()
            pixels = teacher.image.denormalize(torch.cat([maker.sample(min(32, count)) for _ in range(0, count, 32)]))
            np.save(file, (pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy())
        found: NDArray[np.uint8] = np.load(file)
        return found

    @property
    def graders(self) -> dict[str, NDArray[np.uint8]]:
        """The images of each source that calibrate nothing."""
        return {name: found[-COUNT[self.known.large] :] for name, found in self.images.items()}

    def schemes(self) -> Iterator[tuple[str, str, QuantConfig]]:
        """Name, source and scheme of every sound file."""
        for source, bits, sets in LARGE if self.known.large else SMALL:
            words = [str(value) for key, value in sets.items() if key != "activation_range"]
            yield (
                " ".join([source, bits, *words]),
                source,
                QuantConfig.model_validate({"bits": bits, "scales": "float", **sets}),
            )

    def quantized(self, source: str, scheme: QuantConfig, file: Path) -> None:
        """Write the file of a scheme, calibrated on the first half of a source's images."""
        teacher, made = self.known.teacher, self.images[source]
        x = teacher.image.normalize(torch.from_numpy(made[: COUNT[self.known.large]]).float() / 255)
        batches = list(x.split(16 if self.known.large else 64))
        reference = equalized_graph(self.graph, scheme, batches)
        student = quantized_graph(reference, scheme, DEFAULT_TARGET, teacher.image)
        imitated = Imitated(graph=self.graph, task=teacher.torch_task)
        calibrate_student(student, batches, scheme, teacher.image, reference=reference, imitated=imitated)
        write_qdq(student, DEFAULT_TARGET, file, metadata={})

    def logits(self, file: Path, images: NDArray[np.uint8], stored: Path) -> NDArray[np.float32]:
        """Logits of a file in ONNX Runtime, computed once."""
        if not stored.exists():
            spec, session, size = self.known.teacher.image, OrtSession(file, threads=1), 20 if self.known.large else 200
            parts = [images[start : start + size] for start in range(0, len(images), size)]
            stored.parent.mkdir(parents=True, exist_ok=True)
            np.save(
                stored,
                np.concatenate([session.predict(spec.normalize(p.astype(np.float32) / 255), size) for p in parts]),
            )
        found: NDArray[np.float32] = np.load(stored)
        return found

    def answers(self, file: Path, words: str) -> dict[str, NDArray[np.float32]]:
        """Logits of a file on the real images and on each grader's."""
        place = self.folder / "logits" / words.replace(" ", "_")
        return {
            key: self.logits(file, images, place / f"{key}.npy")
            for key, images in {"real": self.known.images, **self.graders}.items()
        }

    def files(self) -> Iterator[tuple[str, str, Path]]:
        """Name, kind and path of every file, made where it is asked for first."""
        (self.folder / "files").mkdir(parents=True, exist_ok=True)
        base = None
        for words, source, scheme in self.schemes():
            if source not in self.images:
                continue
            file = self.folder / "files" / f"{words.replace(' ', '_')}.onnx"
            base = base or file
            if not file.exists():
                self.quantized(source, scheme, file)
            yield words, scheme.weight_rounding, file
        assert base is not None
        for bits in ROUNDED[self.known.large]:
            words = "rounded w{}a{}".format(*bits)
            yield words, "rounded", self._changed(base, words, lambda file, _, bits=bits: rounded(file, *bits))
        for fault, strength in BROKEN[self.known.large]:
            words = f"{fault} {strength:g}"
            yield words, "fault", self._changed(base, words, partial(self._break, fault, strength))

    def _break(self, fault: str, strength: float, file: File, rng: np.random.Generator) -> None:
        FAULTS[fault][0](file, int(rng.integers(1 << 16)), strength, rng)

    def _changed(self, base: Path, words: str, change: Callable[[File, np.random.Generator], None]) -> Path:
        """A file with a change, whose random numbers follow from its name."""
        path = self.folder / "files" / f"{words.replace(' ', '_')}.onnx"
        if not path.exists():
            seed = int(hashlib.sha256(f"{self.name} {words}".encode()).hexdigest()[:8], 16)
            file = File(onnx.load(str(base)))
            change(file, np.random.default_rng(seed))
            onnx.save(file.model, str(path))
        return path

    def rows(self, done: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        """Every row that is not there yet."""
        teacher = self.folder / "teacher.onnx"
        if not teacher.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_float(self.graph, teacher, metadata={})
        reference, labels = self.answers(teacher, "teacher"), self.known.labels
        accuracy = top1(reference["real"], labels, subject="", data="").value
        for words, kind, file in self.files():
            if (self.name, words) in done:
                continue
            found = self.answers(file, words)
            paired = paired_drop(reference["real"], found["real"], labels, subject="", data="")
            yield {
                "teacher": self.name, "file": words, "kind": kind, "teacher_top1": accuracy,
                "drop": paired.value, "stderr": paired.stderr, "images": len(labels),
                "seen": {key: asdict(measure_features(reference[key], found[key])) for key in self.graders},
            }  # fmt: skip


def of_run(name: str, folder: Path, cache: Path) -> dict[str, Any]:
    """The row of a finished run: its file on the images that graded it, of which the last grade other files."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))

    def metric(name: str, subject: str) -> dict[str, Any]:
        known = [each for each in report["metrics"] if each["data"].startswith("real:")]
        return next(dict(each) for each in known if (each["name"], each["subject"]) == (name, subject))

    bank = StoredBank.open(folder / "images" / "grading.safetensors")
    images = np.concatenate([codes for codes, _ in bank.each_shard()])
    source = bank.source.partition(":")[0]
    if not (cache / name / f"{source}.npy").exists():
        (cache / name).mkdir(parents=True, exist_ok=True)
        np.save(cache / name / f"{source}.npy", images)
    inputs = bank.spec.normalize(images.astype(np.float32) / 255)
    both = [OrtSession(folder / file, threads=1).predict(inputs, 100) for file in ("teacher.onnx", "model.onnx")]
    drop = metric("top1_drop", "onnxruntime")
    return {
        "teacher": name, "file": f"{report['title']} seed {report['provenance']['seed']}", "kind": "trained",
        "teacher_top1": metric("top1", "teacher")["value"], "drop": drop["value"], "stderr": drop["stderr"],
        "images": drop["n"], "seen": {source: asdict(measure_features(*both))},
    }  # fmt: skip


def keep(row: dict[str, Any], file: Path) -> None:
    """Add a row to those kept, figures to five digits."""
    text = json.dumps(row, default=float)
    short = json.loads(text, parse_float=lambda value: float(f"{float(value):.5g}"))
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(short) + "\n")
    seen = ", ".join(f"{key} {found['kl']:.3f}" for key, found in row["seen"].items())
    print(f"{row['teacher']}: {row['file']}: {row['drop']:.2f} ± {row['stderr']:.2f}; {seen}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the rows that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="keeps weights, images, files and logits")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", nargs="+", choices=TEACHERS)
    parser.add_argument("--cluster", help="makes the rows of several teachers at once, as `dfqkit bench` does trials")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--run", action="append", default=[], metavar="TEACHER=FOLDER")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    done = {(row["teacher"], row["file"]) for row in rows_in(options.out)}
    for name, _, folder in (each.partition("=") for each in options.run):
        row = of_run(name, Path(folder), options.cache)
        if (row["teacher"], row["file"]) not in done:
            keep(row, options.out)
    names = options.only or ([] if options.run else list(TEACHERS))
    make(names, options.cache, options.out, executor(options.cluster, options.workers))
    return 0


def make(names: Sequence[str], cache: Path, out: Path, where: Executor) -> None:
    """Keep the rows of teachers in their order, whichever is made first."""
    job = Job(
        name="teacher",
        function=teacher_part,
        common={
            "teachers": list(names),
            "cache": str(cache.resolve()),
            "done": [[row["teacher"], row["file"]] for row in rows_in(out)],
        },
        indices=range(len(names)),
        sizes=[1] * len(names),
        alone=lambda index: f"python -m tests.benchmarks.estimate_rows --cache {cache} --only {names[index]}",
        threads=1,
    )
    made: dict[int, list[dict[str, Any]]] = {}
    kept = 0
    with silent().stage("teachers", total=job.size) as bar:
        for index, rows in where.run(job, bar):
            made[index] = rows
            while kept in made:
                for row in made[kept]:
                    keep(row, out)
                kept += 1


def teacher_part(common: Mapping[str, Any], index: int, _tell: Tell) -> list[dict[str, Any]]:
    """Make the rows of a teacher that are not there; its files and logits stay, so that little is made twice."""
    name = common["teachers"][index]
    study, done = Study(name, Path(common["cache"]) / name), {(teacher, file) for teacher, file in common["done"]}
    rows: list[dict[str, Any]] = json.loads(json.dumps(list(study.rows(done)), default=float))
    return rows


if __name__ == "__main__":
    sys.exit(main())
