"""Work on several processes, measured: python tests/benchmarks/cluster.py {sets,near-zero,speed,torchrun} [--help].

``sets`` makes one set in order, by 1, 2 and 3 workers of Ray, and with workers killed by SIGKILL at random moments, and
compares the folders byte by byte. ``near-zero`` does thousands of shards that do next to nothing: what is left is what
the driver, Ray and the lists cost. ``speed`` takes the time of a command with one worker and with two. ``torchrun``
distils with one process and two, and with one of two killed, and compares first losses, kept step and result.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SET = ["synthesize", "digits/zeroq-w8a8-ort", "--set", "synthesis.steps=20", "--set", "synthesis.batch=8"]


def dfqkit(*words: str) -> list[str]:
    return [sys.executable, "-m", "dfqkit", *words]


def digest(folder: Path) -> str:
    """Hash of all files of a folder with their names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    told = hashlib.sha256()
    for path in files:
        told.update(f"{path.relative_to(folder)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return told.hexdigest()


def children(pid: int) -> Iterator[tuple[int, str]]:
    """All processes below one, with their titles."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                yield int(child), Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            yield from children(int(child))


def with_kills(command: list[str], kills: int, rng: random.Random) -> int:
    """Run a command and kill, at random moments, a worker of Ray that has a part; return how many were killed."""
    process = subprocess.Popen(command)
    done = 0
    while process.poll() is None:
        time.sleep(rng.uniform(0.1, 1.0))
        busy = [pid for pid, title in children(process.pid) if title.startswith("ray::_one")]
        if busy and done < kills:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(busy), signal.SIGKILL)
                done += 1
    if process.returncode:
        sys.exit(f"{shlex.join(command)} ended with {process.returncode}")
    return done


def sets(args: argparse.Namespace) -> dict[str, Any]:
    """The same set in every way; returns its digests."""
    command = [*SET, "--n", str(args.shards * args.shard), "--shard", str(args.shard)]
    found: dict[str, str] = {}
    killed = 0

    def make(name: str, *words: str, kills: int = 0) -> None:
        nonlocal killed
        out = args.out / "set"  # one place, since a set's list names none, and a resumed one must not be met
        shutil.rmtree(out, ignore_errors=True)
        killed += with_kills(dfqkit(*command, "--out", str(out), *words), kills, random.Random(name))
        found[name] = digest(out)
        print(name, found[name][:16], flush=True)

    make("in order", "--independent")
    for workers in args.workers:
        make(f"{workers} workers", "--cluster", "local", "--workers", str(workers))
    for turn in range(args.times):
        make(f"killed {turn}", "--cluster", "local", "--workers", "2", kills=args.kills)
    return {"digests": found, "same": len(set(found.values())) == 1, "killed": killed}


def near_zero(common: Mapping[str, Any], index: int, _tell: Any) -> dict[str, Any]:
    """Do one shard that is nothing but its file and its list, as `bank_parts` leaves them."""
    from dfqkit_export.files import sealed, sha256_of_file, write_bytes

    path = Path(common["out"]) / f"shard-{index:05d}.bin"
    write_bytes(path, index.to_bytes(8, "little"))
    listed = sealed({"name": path.name, "n": 1, "sha256": sha256_of_file(path), "cost": 0})
    write_bytes(path.with_suffix(".json"), json.dumps(listed).encode())
    return listed


def overhead(args: argparse.Namespace) -> dict[str, Any]:
    """Rows of time and of the driver's memory for growing numbers of such shards."""
    from dfqkit.progress import Progress
    from dfqkit.run.parts import Job
    from dfqkit.run.ray_parts import executor
    from dfqkit_export.files import sealed, write_bytes

    where = executor(args.cluster, args.at_once)
    rows = []
    for count in (1, *args.counts):  # the first starts Ray and the workers
        out = args.out / f"near-zero-{count}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        start, spent = time.monotonic(), time.process_time()
        job = Job(
            name="shard",
            function=near_zero,
            common={"out": str(out)},
            indices=range(count),
            sizes=[1] * count,
            alone=str,
            threads=1,
        )
        with Progress(quiet=args.quiet).stage("shards", total=count) as bar:
            found = [listed for _, listed in sorted(where.run(job, bar), key=lambda pair: pair[0])]
        made = time.monotonic() - start
        manifest = json.dumps(sealed({"shards": found}), indent=2).encode()
        write_bytes(out / "set.json", manifest)
        rows.append(
            {
                "shards": count,
                "seconds": round(made, 2),
                "driver_cpu_seconds": round(time.process_time() - spent, 2),  # whatever else the machine does
                "manifest_seconds": round(time.monotonic() - start - made, 2),
                "manifest_bytes": len(manifest),
                "driver_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
        )
        shutil.rmtree(out)
    return {"rows": rows}


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a command with 1 and with 2 workers, in turn, and the ratio of the medians."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    digests = set()
    for _ in range(args.times):
        for workers, times in seconds.items():
            out = args.out / "speed"
            shutil.rmtree(out, ignore_errors=True)
            start = time.monotonic()
            words = [*args.command, "--out", str(out), "--cluster", args.cluster, "--workers", str(workers)]
            subprocess.run(dfqkit(*words), check=True, stdout=subprocess.DEVNULL)
            times.append(round(time.monotonic() - start, 1))
            digests.add(digest(out) if (out / "set.json").exists() else table(out / "bench.json"))
            print(workers, times[-1], f"load {os.getloadavg()[0]:.2f}", flush=True)
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[2])
    return {"seconds": seconds, "ratio": round(ratio, 2), "same": len(digests) == 1}


def table(path: Path) -> str:
    """Hash of a comparison's rows, without the seconds that they took."""
    rows = json.loads(path.read_text())["cells"]
    return hashlib.sha256(json.dumps([{**row, "seconds": None} for row in rows]).encode()).hexdigest()


def losses(args: argparse.Namespace) -> None:
    """Do a run, as one of the processes that torchrun started, and have the first one note every step's terms."""
    from dfqkit.cli import main as dfqkit_main
    from dfqkit.training.quantized_student import QuantizedStudentTrainer

    real = QuantizedStudentTrainer.run_step

    def noted(self: QuantizedStudentTrainer) -> dict[str, float]:
        terms = real(self)
        if self.ranks.first:
            with args.terms.open("a") as file:
                file.write(json.dumps({"step": self.step, **terms}) + "\n")
        return terms

    QuantizedStudentTrainer.run_step = noted  # type: ignore[method-assign]
    sys.exit(dfqkit_main(args.command))


def torchrun(args: argparse.Namespace) -> dict[str, Any]:
    """Distil with one process and two, and with one of the two killed."""
    found: dict[str, Any] = {}
    for name, world, kill in (("1", 1, False), ("2", 2, False), ("2, one killed", 2, True)):
        out = args.out / f"torchrun-{world}{'-killed' if kill else ''}"
        shutil.rmtree(out, ignore_errors=True)
        terms = out.with_suffix(".jsonl")
        terms.unlink(missing_ok=True)
        words = ["run", args.recipe, "--out", str(out), "--threads", "1"]
        words += [word for override in args.overrides for word in ("--set", override)]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        command += ["--max-restarts", "1", __file__, "--out", str(args.out), "losses", str(terms), "--", *words]
        start = time.monotonic()
        environment = {**os.environ, "DFQKIT_CHECKPOINT_SECONDS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        while kill and process.poll() is None:
            time.sleep(0.05)
            if terms.exists() and terms.read_text().count("\n") >= args.kill_after:
                workers = [pid for pid, title in children(process.pid) if " losses " in title]
                os.kill(workers[-1], signal.SIGKILL)
                kill = False
        process.wait()
        facts = json.loads((out / "manifest.json").read_text())["stages"]["distill"]
        metrics = {metric["name"]: metric for metric in json.loads((out / "report.json").read_text())["metrics"]}
        found[name] = {
            "seconds": round(time.monotonic() - start, 1),
            "distill_seconds": facts["seconds"],
            "exit": process.returncode,
            "kept": facts["facts"]["kept"],
            "student": facts["files"]["student.safetensors"]["sha256"],
            "top1_drop": [metrics["top1_drop"]["value"], metrics["top1_drop"]["stderr"]],
            "terms": [json.loads(line) for line in terms.read_text().splitlines()],
        }
        print(name, {key: value for key, value in found[name].items() if key != "terms"}, flush=True)
    apart = [
        max(abs(one[key] - two[key]) for key in one)
        for one, two in zip(*(found[n]["terms"] for n in "12"), strict=True)
    ]
    for each in found.values():
        del each["terms"]
    return {**found, "largest difference of a term in each of the first steps": apart[:10]}


def main() -> None:
    """Measure what is asked for and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/cluster"))
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("sets")
    one.add_argument("--shards", type=int, default=64)
    one.add_argument("--shard", type=int, default=8, help="images in each")
    one.add_argument("--workers", type=int, nargs="*", default=[1, 2, 3])
    one.add_argument("--times", type=int, default=10, help="sets with kills")
    one.add_argument("--kills", type=int, default=1, help="kills in each of them")
    one.set_defaults(measure=sets)
    one = commands.add_parser("near-zero")
    one.add_argument("--counts", type=int, nargs="+", default=[1000, 2000, 5000, 10000])
    one.add_argument("--cluster", default="local")
    one.add_argument("--at-once", type=int, default=None)
    one.add_argument("--quiet", action="store_true")
    one.set_defaults(measure=overhead)
    one = commands.add_parser("speed")
    one.add_argument("--times", type=int, default=3)
    one.add_argument("--cluster", default="local")
    one.add_argument("command", nargs="+", help="dfqkit's words, without --out, behind --")
    one.set_defaults(measure=speed)
    one = commands.add_parser("torchrun")
    one.add_argument("--recipe", default="digits/dfq-w4a4-ort")
    one.add_argument("--set", dest="overrides", action="append", default=[])
    one.add_argument("--kill-after", type=int, default=60, help="steps")
    one.set_defaults(measure=torchrun)
    one = commands.add_parser("losses")
    one.add_argument("terms", type=Path)
    one.add_argument("command", nargs="+")
    one.set_defaults(measure=losses)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(args.measure(args), indent=1))


if __name__ == "__main__":
    main()
