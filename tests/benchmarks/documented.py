"""Run the commands of README and docs that take minutes, or list all with how each is run.

    python tests/benchmarks/documented.py --list
    python tests/benchmarks/documented.py --into OUT [--page docs/index.md] [--given FOLDER] [--limit 180]

Each page has a folder, in which its commands run in order, word for word, with `bash -e`; the first that fails ends its
page, while one that judges a file and finds faults (exit 1) does not. Commands of a page see what those before them
left there, and what FOLDER holds: the files of their own that readers are told to name (`best.pth`, `model.onnx`, ...).
Each line says when its command was begun, what became of it, and how long it took; with a limit, a command that takes
longer is ended and told, and its page goes on. What is in a sentence (`python tests/...`) is listed, and run with --all
alone: these take hours, and each says itself what it needs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests._documented import BENCHMARK, CI, ROOT, Command, commands, files, pages

#: Commands that end with 1 where what they look at is not good.
_JUDGING = frozenset({"check", "compare", "inspect", "prove"})


def run_page(page: Path, folder: Path, chosen: list[Command], limit: float | None) -> Iterator[str]:
    """Run commands of a page in its folder, and say what became of each, up to the first that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files(page).items():
        (folder / name).write_text(text, encoding="utf-8")
    for command in chosen:
        when, begun = f"{datetime.now(UTC):%Y-%m-%d %H:%M}", time.monotonic()
        shell = subprocess.Popen(["bash", "-euo", "pipefail", "-c", command.text], cwd=folder, start_new_session=True)
        try:
            code = shell.wait(limit)
            judged = code == 1 and bool(_JUDGING & set(command.words[:2]))
            became = "ok, finds faults" if judged else f"exit {code}" if code else "ok"
            code = 0 if judged else code
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
            code, became = 0, f"over {limit:.0f} s"
        yield f"{when} {became} {time.monotonic() - begun:.0f} s {page.relative_to(ROOT)}: {command.text}"
        if code:
            break


def main() -> int:
    """List or run; the exit code is 1 where a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list all commands and count them by how they are run")
    parser.add_argument("--into", type=Path, metavar="OUT", help="folder for what they make")
    parser.add_argument("--page", action="append", default=[], metavar="FILE", help="only this page; several times")
    parser.add_argument("--given", type=Path, metavar="FOLDER", help="files that pages presume, copied beside each")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="end a command that takes longer")
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
        tiers = (BENCHMARK,) if page.name == "README.md" else (CI, BENCHMARK)  # its two of CI begin in a checkout
        chosen = [one for one in inside if one.tier in tiers and not one.script]
        chosen = [one for one in chosen if args.all or not one.text.startswith("python tests/")]
        if not chosen or (args.page and name not in args.page) or not any(one.tier == BENCHMARK for one in chosen):
            continue
        if args.given is not None:
            shutil.copytree(args.given, args.into / page.stem, dirs_exist_ok=True)
        for line in run_page(page, args.into / page.stem, chosen, args.limit):
            print(line, flush=True)
            failed += line.split()[2] == "exit"
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
