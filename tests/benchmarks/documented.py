"""Run the commands of README and docs that take minutes, or list all with how each is run.

    python tests/benchmarks/documented.py --list
    python tests/benchmarks/documented.py --into OUT [--page docs/tutorials/four-bits.md]

Each page has a folder, in which its commands run in order, word for word, with `bash -e`; the first that fails ends its
page. Commands of a page see what those before them left there. What is in a sentence (`python tests/...`) is listed,
and run with --all alone: these take hours, and each says itself what it needs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests._documented import BENCHMARK, CI, ROOT, Command, commands, files, pages


def run_page(page: Path, folder: Path, chosen: list[Command]) -> list[tuple[Command, float, int]]:
    """Run commands of a page in its folder; return each with its seconds and exit code, up to the first that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files(page).items():
        (folder / name).write_text(text, encoding="utf-8")
    done = []
    for command in chosen:
        begun = time.monotonic()
        ended = subprocess.run(["bash", "-euo", "pipefail", "-c", command.text], cwd=folder, check=False)
        done.append((command, time.monotonic() - begun, ended.returncode))
        if ended.returncode:
            break
    return done


def main() -> int:
    """List or run; the exit code is 1 where a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list all commands and count them by how they are run")
    parser.add_argument("--into", type=Path, metavar="OUT", help="folder for what they make")
    parser.add_argument("--page", action="append", default=[], metavar="FILE", help="only this page; several times")
    parser.add_argument("--all", action="store_true", help="also what stands in sentences")
    args = parser.parse_args()
    found = {page: commands(page) for page in pages()}
    if args.list or args.into is None:
        for page, inside in found.items():
            for command in inside:
                print(f"{command.tier:10} {page.relative_to(ROOT)}: {' '.join(command.text.split())}")
        print(dict(Counter(command.tier for inside in found.values() for command in inside)))
        return 0
    os.environ["CHECKOUT"] = str(ROOT)
    failed = 0
    for page, inside in found.items():
        name = str(page.relative_to(ROOT))
        chosen = [one for one in inside if one.tier in (CI, BENCHMARK) and not one.script]
        chosen = [one for one in chosen if args.all or not one.text.startswith("python tests/")]
        if not chosen or (args.page and name not in args.page) or not any(one.tier == BENCHMARK for one in chosen):
            continue
        for command, seconds, code in run_page(page, args.into / page.stem, chosen):
            print(f"{'ok' if code == 0 else f'exit {code}'} {seconds:.0f} s {name}: {command.text}", flush=True)
            failed += code != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
