"""How long the command line takes to answer what needs no torch: `python tests/benchmarks/start_up.py`.

Each command runs in a process of its own, once to warm the disk and then several times; the best is printed with
the limit that is to hold on a quiet machine. Exits with 1 where one does not hold, or where torch was imported.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

LIMITS = {
    "--help": 0.15,
    "recipe show digits/dfq-w4a4-ort": 0.6,
    "list synthesizers": 0.6,
    "list recipes": 0.6,
    "completion bash": 0.2,
}
PROGRAM = "import sys; from dfqkit.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    failed = False
    print("| command | best of | seconds | limit | torch |\n|---|--:|--:|--:|---|")
    for command, limit in LIMITS.items():
        seconds, torch = min(_timed(command) for _ in range(repeats + 1))
        failed |= torch or seconds > limit
        print(f"| `dfqkit {command}` | {repeats} | {seconds:.3f} | {limit} | {'imported' if torch else 'no'} |")
    return int(failed)


def _timed(command: str) -> tuple[float, bool]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PROGRAM, *command.split()], capture_output=True, check=False)
    return time.perf_counter() - start, done.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
