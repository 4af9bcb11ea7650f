"""Whether verdicts without labels and without floors are true: files of known drop, good and broken, judged.

    DFQKIT_ASSETS=... python -m tests.benchmarks.verdicts --out runs/verdicts [--teacher digits] [--write]

Makes the files of `verdict_files` (good ones by several methods, bits and seeds; broken ones by their recipe, their
calibration, or in the file), measures what each really loses on labelled images, and judges it without them: as
`dfqkit run` does, on the images of its method that trained nothing, and as `dfqkit check` does, on a sentinel set, with
a baseline of the good file that it was made from and with none. One JSON line a file; a second call goes on where the
first was stopped. A quarter of an hour of one core for all teachers. With --write the lines make the tables of
recipes/verdict. Exits with 1 where a file that loses five points is ok, or one that loses less than one is failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfqkit_export.backends import DEFAULT
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.opening import realised_precision
from dfqkit_export.errors import ArtefactError
from dfqkit_export.estimate import estimate_of
from dfqkit_export.files import sha256_of_file, write_bytes
from dfqkit_export.gate import Baseline, Case, CaseOutcome, Options, check_path
from dfqkit_export.images.stored import StoredBank
from dfqkit_export.measure.activations import layer_outputs
from dfqkit_export.measure.metrics import sqnr_db
from dfqkit_export.report import LayerRow
from dfqkit_export.report.evidence import seen
from dfqkit_export.report.judging import BROKEN, GOOD, Evidence, judge
from dfqkit_export.report.verdict import FAILED, NOT_JUDGED, OK
from dfqkit_export.sentinel import SENTINEL_FILE, TeacherFile, candidates_of, choose, usual_choice, write_sentinel
from dfqkit_export.tasks.classification import LOGITS, paired_drop
from tests.benchmarks.verdict_files import PLANS, Made, Maker

OUT = Path(__file__).parents[2] / "recipes" / "verdict"
LAYER_IMAGES = 32
_BATCH = 32


class Judge:
    """A teacher's files, judged one after the other."""

    def __init__(self, maker: Maker) -> None:
        self.maker, self.image, self.task = maker, maker.teacher.image, maker.teacher.task
        self.float = OrtSession(maker.float_file, threads=1)
        self.real = list(maker.test.batches(self.image, _BATCH))
        self.truth = np.concatenate([self.float.predict(batch, _BATCH) for batch in self.real])
        self.graders: dict[tuple[str, int], Any] = {}
        self.recorded: dict[str, Case | None] = {}

    def line(self, made: Made) -> dict[str, Any]:
        """What a file loses, and what is said of it."""
        session = OrtSession(made.model, threads=1)
        answers = np.concatenate([session.predict(batch, _BATCH) for batch in self.real])
        drop = paired_drop(self.truth, answers, self.maker.test.labels, subject="", data="")
        images, teacher, layers = self._grader(made)
        file = session.predict(images, _BATCH)
        shown = layer_outputs(made.model, images[:LAYER_IMAGES])
        rows = [
            LayerRow(name=name, op="", sqnr_student_db=sqnr_db(layers[name], values))
            for name, values in shown.items()
            if name in layers and layers[name].shape == values.shape and np.isfinite(values).all()
        ]
        both = {LOGITS: teacher}, {LOGITS: file}
        found = seen(self.task, self.image, *both, data=made.method)
        evidence = Evidence(
            seen=[found],
            layers=rows,
            integer=100.0 * (realised_precision(made.model).integer_ops or 0.0),
            estimate=estimate_of(self.task, *both, synthesizer=made.method),
            doubts=self.maker.recipe(made.method, made.seed).synthesis.warnings(),
        )
        judged = judge(evidence)
        return {
            **{key: value for key, value in asdict(made).items() if key != "model"},
            "drop": round(drop.value or 0.0, 3),
            "n": drop.n,
            "agreement": round(found.agreement, 2),
            "firm": round(found.firm_agreement, 2),
            "signal_db": None if found.signal_db is None else round(found.signal_db, 2),
            "least_layer_db": min((round(row.sqnr_student_db, 1) for row in rows if row.sqnr_student_db), default=None),
            "run": judged.verdict,
            **self._checked(made),
            "why": [finding.message for finding in judged.findings] or list(judged.reasons),
        }

    def _checked(self, made: Made) -> dict[str, str]:
        """What the gate says, with the sentinel set of the good file: against that one's baseline, and without any."""
        options = Options(threads=1, allow="its images are known" if made.method == "noise" else "")
        good = made.model.with_name("w8a8.onnx")
        if str(good) not in self.recorded:
            own = self._bundle(replace(made, model=good))
            self.recorded[str(good)] = check_path(own, Baseline(), replace(options, update=True), name="case").entry
        bundle = self._bundle(made)
        alone = check_path(bundle, Baseline(), replace(options, update=True), name="case")
        entry = alone.entry if made.kind == "good" else self.recorded[str(good)]
        states = {"alone": _state(alone), "check": NOT_JUDGED}
        if entry is not None:  # else there is no baseline: what is not judged is not recorded
            states["check"] = _state(check_path(bundle, Baseline(cases={"case": entry}), options, name="case"))
        return states

    def _bundle(self, made: Made) -> Path:
        folder = made.model.parent / "bundle"
        folder.mkdir(exist_ok=True)
        sentinel = made.model.parent / SENTINEL_FILE
        teacher = TeacherFile(path=self.maker.float_file, name=made.teacher, sha256=self.maker.teacher.sha256)
        if not sentinel.exists():
            bank = StoredBank.open(made.model.parent / "images" / "grading.safetensors")
            candidates = candidates_of([bank], [])
            choice = usual_choice(candidates.spec, 0, candidates.task)
            write_sentinel(sentinel, choose(made.model.with_name("w8a8.onnx"), teacher, candidates, choice))
        shutil.copy(made.model, folder / "model.onnx")
        shutil.copy(sentinel, folder / SENTINEL_FILE)
        manifest = {
            "schema": 1, "kind": "dfqkit-bundle", "name": "case", "target": DEFAULT.name, "dfqkit": "0",
            "image": self.image.to_dict(), "teacher": {"name": made.teacher, "sha256": teacher.sha256},
            "synthesis": {"method": made.method, "data_free": None, "noise": made.method == "noise"},
            "quant": {}, "command": "",
            "files": {
                file.name: {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
                for file in (folder / "model.onnx", folder / SENTINEL_FILE)
            },
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    def _grader(self, made: Made) -> Any:
        key = made.method, made.seed
        if key not in self.graders:
            codes = self.maker.banks(*key)[1].images.numpy()
            images = self.image.normalize(codes.astype(np.float32) / np.float32(255))
            layers = layer_outputs(self.maker.float_file, images[:LAYER_IMAGES])
            self.graders[key] = images, self.float.predict(images, _BATCH), layers
        return self.graders[key]


def _state(outcome: CaseOutcome) -> str:
    """What a check says, in the words of a verdict."""
    failing = [row for row in outcome.rows if row.fails(strict=False)]
    if outcome.error or any(row.verdict != NOT_JUDGED for row in failing):
        return FAILED
    return NOT_JUDGED if failing else OK


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines that are there, a half-written last one left out."""
    found = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def key_of(line: dict[str, Any]) -> str:
    """What tells a file from all others."""
    return "{teacher} {method} s{seed} {name}".format(**line)


def page(lines: Sequence[dict[str, Any]]) -> str:
    """The tables as Markdown: how many of each kind got which verdict, the ends of the two features, and every file."""
    broken = [line for line in lines if line["drop"] >= BROKEN]
    good = [line for line in lines if line["drop"] < GOOD]
    between = [line for line in lines if GOOD <= line["drop"] < BROKEN]
    text = [
        "# Verdicts on files of known drop, without labels and without floors", "",
        f"{len(lines)} files of {len({line['teacher'] for line in lines})} teachers, made and judged by "
        "`python -m tests.benchmarks.verdicts --write`. The drop is on labelled test images that no",
        "verdict saw.", "",
        "| files that lose | files | in | ok | failed | not judged |", "| --- | --: | --- | --: | --: | --: |",
    ]  # fmt: skip
    made, spoiled = ([line for line in good if (line["kind"] == "good") is well] for well in (True, False))
    for title, chosen in (
        (f"at least {BROKEN:g} points", broken),
        (f"{GOOD:g} to {BROKEN:g} points", between),
        (f"less than {GOOD:g} point, made as they should be", made),
        (f"less than {GOOD:g} point, although spoiled", spoiled),
    ):
        for place, what in (("run", "run"), ("check", "check"), ("alone", "check --update, no baseline")):
            counts = " | ".join(str(sum(line[place] == state for line in chosen)) for state in (OK, FAILED, NOT_JUDGED))
            text.append(f"| {title} | {len(chosen)} | {what} | {counts} |")
    text += [
        "",
        "`check` compares with the baseline of the good file that a broken or spoiled one was made from, and a",
    ]
    text += ["good one with its own: that it fails a spoiled file is what it is for, whatever that one loses."]
    text += ["", "## Where the limits lie", "", "| files | surest half, % | error, dB |", "| --- | --- | --- |"]
    for title, chosen in (("lose 5 points and more", broken), ("lose less than 1 point", good)):
        ends = [[line[name] for line in chosen if line[name] is not None] for name in ("firm", "signal_db")]
        text.append(f"| {title} | " + " | ".join(f"{min(e):.1f} to {max(e):.1f}" for e in ends) + " |")
    text += [
        "",
        "## Every file",
        "",
        "| teacher | images | file | drop | surest half, % | error, dB | run | check | alone |",
    ]
    text.append("| --- | --- | --- | --: | --: | --: | --- | --- | --- |")
    for line in sorted(lines, key=lambda line: (line["teacher"], -line["drop"])):
        cells = [
            line["teacher"],
            f"{line['method']} s{line['seed']}",
            line["name"],
            f"{line['drop']:.2f}",
            line["firm"],
        ]
        cells += [
            "equal" if line["signal_db"] is None else line["signal_db"],
            line["run"],
            line["check"],
            line["alone"],
        ]
        text.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(text) + "\n"


def wrong(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Verdicts that are not true."""
    places = ("run", "check", "alone")
    return [
        f"{key_of(line)} loses {line['drop']:.2f} and is {line[place]} in {place}"
        for line in lines
        for place in places
        if (line["drop"] >= BROKEN and line[place] == OK) or (line["drop"] < GOOD and line[place] == FAILED)
        if not (place == "check" and line["kind"] != "good" and line[place] == FAILED)  # another file than the recorded
    ]


def main() -> int:
    """Make, judge, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the files, the images and verdicts.jsonl")
    parser.add_argument("--teacher", action="append", choices=PLANS, help="one of them alone")
    parser.add_argument("--write", action="store_true", help=f"write the tables into {OUT.relative_to(OUT.parents[1])}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "verdicts.jsonl"
    done = {key_of(line) for line in lines_of(path)}
    for name in args.teacher or PLANS:
        judging: Judge | None = None
        for made in (maker := Maker(name=name, out=args.out, plan=PLANS[name])).files():
            if made.key in done:
                continue
            judging = judging or Judge(maker)
            try:
                line = judging.line(made)
            except ArtefactError as error:
                print(f"{made.key}: refused by name: {error}", file=sys.stderr)
                continue
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{made.key}: drop {line['drop']:.2f}, run {line['run']}, check {line['check']}", file=sys.stderr)
    lines = lines_of(path)
    if args.write:
        kept = [{key: value for key, value in line.items() if key != "why"} for line in lines]
        write_bytes(OUT / "verdicts.json", ("[\n" + ",\n".join(map(json.dumps, kept)) + "\n]\n").encode())
        write_bytes(OUT / "verdicts.md", page(lines).encode())
    problems = wrong(lines)
    print("\n".join([*problems, f"{len(lines)} files, {len(problems)} verdicts that are not true"]))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
