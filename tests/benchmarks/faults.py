"""Faults in a bundle: what `dfqkit check` says of each, and whether it stays quiet about good files.

Run it with ``python tests/benchmarks/faults.py BUNDLE [--into BUNDLE] [--good BUNDLE ...] [--variants]
[--more NPZ]``. BUNDLE is a bundle's folder or .zip, or a run's folder; the baseline is recorded from it. ``--good``
names files of the same network that must pass, such as those of other calibration seeds; each is measured on the
recorded sentinel set with one and two threads and with graph optimizations off. The last line says how many faults were
caught and how many false alarms there were; the exit code is 1 unless all and none. A fault that changes nothing in
this network, such as channels swapped where there is one, is left out and named.

``--more`` tries the faults of `_more_faults`, too, of a bundle's folder, and says what each costs on the labelled
images of NPZ: of those that cost half a point or more, and of those beside the model, all must be caught and 90 %
named.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.gate import Baseline, CaseOutcome, Options, check, check_path, open_subject
from dfqkit_export.gate.structure import read_structure
from dfqkit_export.images.labelled import load_images
from dfqkit_export.onnxfile.canonical import canonical
from dfqkit_export.sentinel import normalized
from tests import _more_faults
from tests._faults import FAULTS, VARIANTS, inject

SETTINGS = {
    "1 thread": Options(threads=1),
    "2 threads": Options(threads=2),
    "optimizations off": Options(threads=1, optimized=False),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--good", nargs="*", type=Path, default=[])
    parser.add_argument("--into", type=Path, help="put the faults into this good file instead of the recorded one")
    parser.add_argument("--more", type=Path, metavar="NPZ", help="try more faults; labelled images tell their cost")
    parser.add_argument("--variants", action="store_true", help="try further shapes of the faults, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good = args.into or args.bundle
        if good.is_file():
            shutil.unpack_archive(good, Path(folder) / "good")
            good = Path(folder) / "good"
        recorded = check([args.bundle], Baseline(), Options(update=True)).baseline
        assert recorded is not None
        assert recorded.cases, "the bundle itself was refused"
        _print_overhead(args.bundle, recorded)
        rows = []
        for name in (*FAULTS, *(VARIANTS if args.variants else ())):
            layer = inject(name, good, Path(folder) / name)
            if _as_it_was(good, Path(folder) / name):
                print(f"{name} is left out: this network computes the same with it.")
                continue
            outcome = check([Path(folder) / name], recorded)
            rows.append((name, layer, outcome, message_of(outcome.cases[0])))
        print("| fault | in layer | verdict | exit | message |\n|---|---|---|--:|---|")
        for name, layer, outcome, message in rows:
            named = "" if not layer or layer in message else " **layer not named**"
            print(f"| {name} | {layer} | {outcome.cases[0].verdict()} | {outcome.exit_code} | {message}{named} |")
        caught = sum(outcome.exit_code in (1, 2) for _, _, outcome, _ in rows)
        alarms = _false_alarms([args.bundle, *args.good], recorded)
        few = _more(good, args.more, Path(folder) / "more") if args.more is not None else False
    print(f"\ncaught {caught} of {len(rows)}; false alarms: {alarms} of {len(SETTINGS) * (1 + len(args.good))}")
    return int(caught < len(rows) or alarms > 0 or few)


def _as_it_was(good: Path, faulty: Path) -> bool:
    """Whether a fault changed nothing that is computed and no file beside the model, as the order of one channel."""
    names = {file.name for folder in (good, faulty) for file in folder.iterdir() if file.is_file()}
    for name in names - {"model.onnx", "manifest.json"}:
        if not (faulty / name).exists() or (good / name).read_bytes() != (faulty / name).read_bytes():
            return False
    facts = [json.loads((folder / "manifest.json").read_text()) for folder in (good, faulty)]
    for fact in facts:
        fact["files"].pop("model.onnx", None)
    try:
        models = [onnx.load(str(folder / "model.onnx")) for folder in (good, faulty)]
    except DecodeError:
        return False
    told = [sorted((entry.key, entry.value) for entry in model.metadata_props) for model in models]
    forms = [read_structure(canonical(m), [output.name for output in m.graph.output]).function for m in models]
    return facts[0] == facts[1] and told[0] == told[1] and forms[0] == forms[1]


def _more(good: Path, labelled: Path, folder: Path) -> bool:
    """Print what the check says of more faults; whether too few were caught or named."""
    folder.mkdir()
    bundle = _more_faults.prepared(good, folder / "good")
    entry = check_path(bundle, Baseline(), Options(update=True)).entry
    assert entry is not None
    whole, must, named = _top1(bundle, labelled), 0, 0
    print("\n| fault | drop | caught | named | message |\n|---|--:|---|---|---|")
    missed = []
    for name, fault in _more_faults.FAULTS.items():
        if not _more_faults.inject(name, bundle, folder / name):
            continue
        case = check_path(folder / name, Baseline(cases={entry_name(bundle): entry}))
        drop = None if fault.beside else whole - _top1(folder / name, labelled)
        told = " ".join([case.error, *case.causes])
        words = all(any(word in told for word in group) for group in fault.words)
        counts = drop is None or drop >= 0.5
        must, named = must + counts, named + (counts and case.failed() and words)
        missed += [name] if counts and not case.failed() else []
        cost = "-" if drop is None else f"{drop:.2f}"
        print(f"| {name} | {cost} | {'yes' if case.failed() else 'no'} | {'yes' if words else 'no'} | {told[:160]} |")
    print(f"\nmore: of {must} that cost 0.5 points or are beside the model, caught {must - len(missed)}, named {named}")
    return bool(missed) or named < 0.9 * must


def entry_name(bundle: Path) -> str:
    with open_subject(bundle) as subject:
        return subject.bundle.name


def _top1(bundle: Path, labelled: Path) -> float:
    """Share in % of the right answers on images as the bundle says that they are normalised."""
    with open_subject(bundle) as subject:
        found = load_images(labelled, subject.sentinel.spec)
        session = OrtSession(subject.bundle.model)
        outputs = [session.predict(batch) for batch in found.batches(subject.sentinel.spec, 64)]
    return float(100 * np.mean(np.concatenate(outputs).argmax(1) == found.labels))


def message_of(case: CaseOutcome) -> str:
    """What a reader sees first."""
    return case.error or "; ".join(case.causes[:2]) or next((row.reason for row in case.rows if row.reason), "")


def _print_overhead(path: Path, baseline: Baseline) -> None:
    """How long a check takes beside the runtime's own inference, the least of five of each."""
    whole, alone = [], []
    for _ in range(5):
        started = time.perf_counter()
        check([path], baseline, Options(threads=1))
        whole.append(time.perf_counter() - started)
        with open_subject(path) as subject:
            images = normalized(subject.sentinel.images, subject.bundle.image)
            session = OrtSession(subject.bundle.model, threads=1)
            started = time.perf_counter()
            session.predict(images)
            alone.append(time.perf_counter() - started)
    beside = min(whole) - min(alone)
    print(f"check: {min(whole):.2f} s, of which {beside:.2f} s beside inference on {len(images)} images\n")


def _false_alarms(paths: list[Path], baseline: Baseline) -> int:
    (name,) = baseline.cases
    alarms = 0
    for path in paths:
        for setting, options in SETTINGS.items():
            case = check_path(path, baseline, options, name=name)
            if case.failed():
                alarms += 1
                print(f"false alarm: {path} ({setting}): {case.verdict()}: {message_of(case)}")
                print("   ", "; ".join(f"{r.metric} {r.baseline} -> {r.now}" for r in case.rows if r.verdict != "ok"))
    return alarms


if __name__ == "__main__":
    sys.exit(main())
