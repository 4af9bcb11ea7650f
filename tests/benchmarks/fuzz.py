"""Damaged files through the public commands: `python tests/benchmarks/fuzz.py [--count 5000] [--state FILE]`.

Seeded mutations of ONNX, safetensors, JSON, YAML, npz and zip files are given to the commands that read them, in a
worker that is started again whenever it dies; each has a limit of time. A signal, a traceback (also one that a child
process tells) or a hang is a fault: it is printed, and its file is kept beside the state. What is done is noted in the
state, so that the same command goes on where it was stopped. Exits with 1 where there was a fault. 5,000 mutations take
about half an hour on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests._fuzz import KINDS, Corpus, make_corpus

SECONDS = 20.0
Note = Callable[[int, dict[str, str]], None]


def attempt(corpus: Corpus, seed: int, folder: Path) -> tuple[str, str, str]:
    """Do one mutation in this process; returns its kind, the command, and what was wrong ("" for nothing)."""
    from dfqkit.cli import main

    case = corpus.case(seed, folder)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(case.command)
    text = said.getvalue()
    wrong = ""
    if code not in (0, 1, 2, 3):
        wrong = f"exit code {code}"
    elif "Traceback" in text or "bug in dfqkit" in text:
        wrong = "traceback"
    elif "was killed by signal" in text:
        wrong = "signal in the child"  # survived, with a message: counted apart
    elif "was stopped after" in text:
        wrong = "hang in the child"
    elif any(ord(c) < 32 and c not in "\n\t" for c in text) or "\n::" in text:
        wrong = "raw bytes"
    return case.kind, " ".join(case.command), f"{wrong}: {text[-3000:]}" if wrong else ""


def worker(corpus: Corpus, seeds: list[int], pipe: int) -> None:
    """Do mutations one after the other, and tell of each when it begins and ends."""
    for seed in seeds:
        os.write(pipe, (json.dumps({"begin": seed}) + "\n").encode())
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            kind, command, wrong = attempt(corpus, seed, folder)
        except BaseException as error:  # what main lets through is what is looked for
            kind, command, wrong = "?", "?", f"escaped: {error!r}"
        shutil.rmtree(folder, ignore_errors=True)
        os.write(pipe, (json.dumps({"end": seed, "kind": kind, "command": command, "wrong": wrong}) + "\n").encode())


def run(corpus: Corpus, seeds: range, done: dict[int, dict[str, str]], note: Note) -> None:
    """Do what is not done yet, with a new worker after each that died or hung."""
    while left := [seed for seed in seeds if seed not in done]:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            with contextlib.suppress(BaseException):
                worker(corpus, left, writing)
            os._exit(0)
        os.close(writing)
        _follow(child, reading, note)


def _follow(child: int, reading: int, note: Note) -> None:
    """Note what a worker tells until it ends, and what it was at when it died or hung."""
    current, rest = None, b""
    while True:
        ready = select.select([reading], [], [], SECONDS + 10)[0]
        data = os.read(reading, 1 << 20) if ready else b""
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in map(json.loads, lines):
            current = line.get("begin")
            if "end" in line:
                note(line.pop("end"), line)
    if not ready:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(reading)
    if current is not None:
        wrong = f"worker died: {code}" if ready else f"hang: more than {SECONDS + 10:g} s"
        note(current, {"kind": KINDS[current % len(KINDS)], "command": "?", "wrong": wrong})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="to do parts side by side (default: 0)")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--state", type=Path, default=Path("fuzz.jsonl"))
    args = parser.parse_args()
    os.environ |= {"DFQKIT_CHILD": "fork", "DFQKIT_CHILD_SECONDS": str(SECONDS), "DFQKIT_CHILD_GIB": "4"}
    done: dict[int, dict[str, str]] = {}
    if args.state.exists():
        done = {entry["seed"]: entry for entry in map(json.loads, args.state.read_text().splitlines())}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name, args.state.open("a") as state:

        def note(seed: int, entry: dict[str, str]) -> None:
            done[seed] = entry
            state.write(json.dumps({"seed": seed, **entry}) + "\n")
            state.flush()
            if entry["wrong"]:
                print(f"{seed}: {entry['command']}\n{entry['wrong']}\n", flush=True)

        run(make_corpus(Path(name)), range(args.first, args.first + args.count), done, note)
    counts = Counter((entry["kind"], entry["wrong"].partition(":")[0] or "none") for entry in done.values())
    wrongs = sorted({wrong for _, wrong in counts} - {"none"})
    print(f"| file | mutations | {' | '.join([*wrongs, 'without fault'])} |\n|---|--:|{'--:|' * (len(wrongs) + 1)}")
    for kind in [*KINDS, "?"]:
        row = [
            sum(n for (k, _), n in counts.items() if k == kind),
            *(counts[kind, wrong] for wrong in [*wrongs, "none"]),
        ]
        if row[0]:
            print(f"| {kind} | {' | '.join(map(str, row))} |")
    faults = sum(bool(entry["wrong"]) for entry in done.values())
    print(f"{len(done)} mutations, {faults} faults, {time.monotonic() - begun:.0f} s")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
