"""Kill a recipe with SIGKILL at random moments, resume it each time, and compare the file with an undisturbed run's.

    python tests/benchmarks/kill_resume.py digits/dfq-w4a4-ort --kills 10 --out runs/killed

Each kill is a run of its own: killed once at a random moment of the undisturbed run's length, then resumed to the end.
Smaller runs have values of their own, and more checkpoints: `DFQKIT_CHECKPOINT_SECONDS=1 ... --set distill.steps=50`.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    """Run undisturbed once, then kill and resume."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe, as in a run")
    options = parser.parse_args()
    command = [sys.executable, "-m", "dfqkit", "run"]
    recipe = [options.recipe, *(part for item in options.set for part in ("--set", item))]
    start = time.monotonic()
    whole = [*command, *recipe, "--out", str(options.out / "whole"), "-q"]
    code = subprocess.run(whole, check=False, stdout=subprocess.DEVNULL).returncode
    if code not in (0, 1):  # 1: whole, and its figures are below a floor
        return code
    length = time.monotonic() - start
    wanted = _digest(options.out / "whole")
    print(f"undisturbed: {length:.0f} s, model.onnx {wanted[:16]}")
    moments, same = random.Random(options.seed), 0
    for number in range(options.kills):
        folder = options.out / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        moment = moments.uniform(3, length)
        process = subprocess.Popen([*command, *recipe, "--out", str(folder), "-q"], stdout=subprocess.DEVNULL)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # The first seconds make no folder yet; the same command then simply begins.
        resume = ["--resume", str(folder)] if folder.is_dir() else [*recipe, "--out", str(folder)]
        subprocess.run([*command, *resume, "-q"], check=False, stdout=subprocess.DEVNULL)
        found = _digest(folder)
        same += found == wanted
        verdict = "same" if found == wanted else "DIFFERS"
        print(f"kill {number + 1}: after {moment:.0f} s, model.onnx {found[:16]} {verdict}")
    print(f"{same} of {options.kills} resumed to the same bytes")
    return 0 if same == options.kills else 1


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
