"""Harmless rewritings of a file: whether `dfqkit check` stays quiet about each.

Run it with ``python tests/benchmarks/rewrites.py BUNDLE ...``. A BUNDLE is a bundle's folder; its baseline is recorded
from it. The last line of each says how many kinds there were and how many alarms; the exit code is 1 unless none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfqkit_export.gate import Baseline, Options, check_path
from tests._rewrites import IN_FILE, REWRITES, rewrite


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    alarms = 0
    for bundle in parser.parse_args().bundles:
        made = check_path(bundle, Baseline(), Options(update=True))
        assert made.entry is not None, "the bundle itself was refused"
        baseline, before = Baseline(cases={made.name: made.entry}), alarms
        for name in (*REWRITES, *IN_FILE):
            with tempfile.TemporaryDirectory() as folder:
                rewrite(name, bundle, Path(folder, "rewritten"))
                case = check_path(Path(folder, "rewritten"), baseline)
            if case.failed():
                alarms += 1
                told = [f"{row.metric} {row.verdict}: {row.reason}" for row in case.rows if row.verdict != "ok"]
                print(f"alarm: {name}: {case.error or '; '.join([*case.causes, *told])}")
        print(f"{bundle}: {len(REWRITES) + len(IN_FILE)} kinds, {alarms - before} alarms")
    return int(alarms > 0)


if __name__ == "__main__":
    sys.exit(main())
