"""Damage every place of a run's folder, one at a time, and say which command took it without a word.

    python tests/benchmarks/damage.py --out /dev/shm/damage [--stride 7] [--only distill]

Three folders: a finished run, and one interrupted in each of two stages. About 3,350 places, a quarter of an hour of
one core for all, least where OUT is in memory; `--stride` tries every so many, `--only` does one folder, so that
processes can share the work once the first has made the folders. Ends with 1 where a damage led to a traceback, to
other bytes, or to a refusal without a place.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests._damage import Judge, interrupted_run, places
from tests._shared import TINY, run

_FOLDERS = ("run", "synthesize", "distill")
_OTHER = [*TINY, "seed=1"]


class _Capture:
    """What pytest's `capsys` does, here."""

    def __init__(self) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()

    def readouterr(self) -> tuple[str, str]:
        """Return what was written since the last time."""
        found = self.out.getvalue(), self.err.getvalue()
        for stream in (self.out, self.err):
            stream.seek(0)
            stream.truncate()
        return found


def main() -> int:
    """Make the folders, then try the places."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stride", type=int, default=1, metavar="N")
    parser.add_argument("--only", choices=_FOLDERS, action="append", help="one of the folders (default: all)")
    options = parser.parse_args()
    os.environ |= {"DFQKIT_CHILD": "fork", "DFQKIT_CHILD_SECONDS": "100"}  # a new Python for each check takes seconds
    capture, found, tried, terminal = _Capture(), 0, 0, sys.stdout
    with contextlib.redirect_stdout(capture.out), contextlib.redirect_stderr(capture.err):
        for name, overrides in (("run", TINY), ("other-run", _OTHER)):
            if not (options.out / name / "report.json").exists():
                run(options.out / name, overrides=overrides)
            for stage in ("synthesize", "distill"):
                if not (options.out / name.replace("run", stage) / "manifest.json").exists():
                    interrupted_run(options.out / name.replace("run", stage), stage, 3, overrides)
        model = (options.out / "run" / "model.onnx").read_bytes()
        for name in options.only or _FOLDERS:
            judge = Judge(options.out / name, options.out / f"space-{name}", model, capture)
            for place in list(places(options.out / name, options.out / f"other-{name}"))[:: options.stride]:
                wrong, tried = judge.wrong(place), tried + 1
                found += bool(wrong)
                for text in wrong:
                    print(f"{name}: {text}", file=terminal, flush=True)
    print(f"{tried} places, {found} of them wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
