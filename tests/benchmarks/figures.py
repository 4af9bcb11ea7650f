"""Which published figures are older than what they depend on, and the command that makes each again.

    python tests/benchmarks/figures.py                     # each with its state, digest and command
    python tests/benchmarks/figures.py --make [NAME ...]   # run the commands of those that are older, or of these
    python tests/benchmarks/figures.py --mark [NAME ...]   # write in the pages which are older; that these are new

A digest is of the code and the recipes that can move the figures, without comments, docstrings and descriptions. In a
page `<!-- figures: NAME DIGEST -->` stands behind the heading of the figures and holds the digest of the day they were
made; where that is not today's, the line below says so. What --make ran is noted in OUT/made.json with its digest, its
output is OUT/NAME.txt, and a command that ended is not run again, so that an interrupted call continues. Figures are
put into the pages by hand; --mark NAME then notes today's digest.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What a page says below a marker whose digest is not today's.
OLDER = "**Older than the code:** not made again since what these figures depend on was changed."
#: A marker, and whether the line that says so is below.
MARKER = re.compile(rf"<!-- figures: ([\w-]+) (\w+) -->\n\n?({re.escape(OLDER)}\n\n?)?")
#: The digest of figures that nobody noted one of when they were made.
UNKNOWN = "unknown"

_STUDENT = ("dfqkit/students/*.py", "dfqkit/config/quant.py", "dfqkit/run/quantize.py")
_LADDER = ("dfqkit/run/ladder.py", "dfqkit/config/ladder.py", "dfqkit/api.py")
_IMAGES = ("dfqkit/synthesis/**/*.py", "dfqkit/losses/*.py", "dfqkit/run/synthesize.py", "dfqkit/run/bank_making.py")
_TRAINED = ("dfqkit/training/*.py", "dfqkit/run/distill.py", "dfqkit/run/playing.py", "dfqkit/config/distill.py")
_MEASURED = (
    "export/dfqkit_export/measure/*.py",
    "export/dfqkit_export/tasks/*.py",
    "dfqkit/run/measuring.py",
    "dfqkit/run/answering.py",
)
_RUNTIME = ("export/dfqkit_export/backends/**/*.py", "export/dfqkit_export/onnxfile/*.py")
_GATE = ("export/dfqkit_export/gate/*.py", "export/dfqkit_export/sentinel/*.py")
_CALIBRATED = (*_STUDENT, *_LADDER, *_IMAGES, *_MEASURED)


@dataclass(frozen=True)
class Figures:
    """Figures of one heading: the page, the command, with {out} as the place of what it makes, and what moves them."""

    page: str
    command: str
    sources: tuple[str, ...]

    def digest(self, root: Path = ROOT) -> str:
        """Return the digest of the sources in a checkout."""
        found = hashlib.sha256()
        for pattern in sorted(self.sources):
            for file in sorted(path for path in root.glob(pattern) if path.is_file()):
                found.update(f"{file.relative_to(root)}\n{meaning(file)}\n".encode())
        return found.hexdigest()[:12]


def _bench(script: str, options: str = "--out {out}") -> str:
    return f"python tests/benchmarks/{script}.py {options}".rstrip()


_ROWS = "--out {out}/rows.jsonl --bits"
_SEEDS = "cifar10-resnet20/dfq-{0}-ort --seeds {1} --out {{out}}/{0}"
_DFQ = " && ".join(
    _bench("seeds", _SEEDS.format(bits, seeds)) for bits, seeds in (("w8a8", "0"), ("w4a8", "0"), ("w4a4", "0 1 2 3 4"))
)
FIGURES = {
    "cifar": Figures(
        "docs/results.md", _DFQ, (*_STUDENT, *_IMAGES, *_TRAINED, *_MEASURED, "recipes/cifar10-resnet20/dfq-*")
    ),
    "mobilenetv1": Figures(
        "docs/results.md",
        "dfqkit run imagenet-mobilenetv1/zeroq-w8a8-ort --out {out}",
        (*_STUDENT, *_IMAGES, *_MEASURED, "recipes/imagenet-mobilenetv1/zeroq-w8a8-ort.yaml"),
    ),
    "networks": Figures("docs/results.md", _bench("architectures", "--out {out} --images 24"), (*_STUDENT, *_RUNTIME)),
    "detectors": Figures(
        "docs/results.md", _bench("detectors"), (*_CALIBRATED, "tests/benchmarks/detectors.py")
    ),
    "text": Figures(
        "docs/results.md", _bench("ocr", "--models MODELS --out {out}"), (*_CALIBRATED, "tests/benchmarks/ocr.py")
    ),
    "layers": Figures(
        "docs/results.md", _bench("layer_rows"), (*_STUDENT, *_RUNTIME, "tests/benchmarks/layer_rows.py")
    ),
    "speed": Figures("docs/results.md", _bench("latency", "--threads 1"), ("dfqkit/students/*.py",)),
    "gate": Figures(
        "docs/results.md",
        "dfqkit run cifar10-resnet20/dfq-w8a8-ort --out {out}/run && rm -rf {out}/bundle && "
        f"dfqkit bundle {{out}}/run --out {{out}}/bundle && {_bench('faults', '{out}/bundle --variants')}",
        (*_GATE, *_MEASURED, "tests/_faults.py", "tests/_more_faults.py"),
    ),
    "estimate": Figures(
        "docs/results.md",
        "python -m tests.benchmarks.estimate_rows --cache {out} && python -m tests.benchmarks.estimate_study --write",
        ("export/dfqkit_export/estimate/*.py", "tests/benchmarks/estimate_*.py", "recipes/estimate/rows.jsonl"),
    ),
    "sources": Figures(
        "docs/results.md",
        "dfqkit bench 'cifar10-resnet20/[!d]*-w8a8-ort' 'cifar10-resnet20/d[af]*-w8a8-ort' "
        "cifar10-resnet20/deepinversion-w8a8-ort --bits w8a8 w4a8 w4a4 --seeds 0 --passes 64000 --images 256 --distill "
        "cifar10-resnet20/dfq-w4a4-ort --contestants dfq fastdfkd genie zeroq --device cpu --threads 1 --out {out}",
        (*_STUDENT, *_IMAGES, *_TRAINED, "dfqkit/bench/*.py"),
    ),
    "damage": Figures("docs/results.md", _bench("damage"), ("dfqkit/run/*.py", "tests/_damage.py")),
    "real-size-w4a8": Figures("docs/real-size.md", _bench("real_size", f"{_ROWS} w4a8"), _CALIBRATED),
    "real-size-w8a8": Figures("docs/real-size.md", _bench("real_size", f"{_ROWS} w8a8"), _CALIBRATED),
    "bf16": Figures(
        "docs/real-size.md",
        _bench("step_cost", "--large mobilenet_v1_075 --batch 32 --threads 1 --repeats 9 --methods zeroq deepinversion "
               "--bf16 --limit 9"),
        ("dfqkit/synthesis/pixels.py", "dfqkit/teacher/batchnorm_moments.py", "tests/benchmarks/step_cost.py"),
    ),
    "portability": Figures(
        "docs/portability.md",
        "dfqkit run digits/dfq-w8a8-ort --out {out}/w8a8 && "
        "dfqkit prove {out}/w8a8 --images recipes/digits/test.npz --limit 512",
        (*_STUDENT, *_RUNTIME, "export/dfqkit_export/comparison/portability/*.py"),
    ),
    "clusters": Figures(
        "docs/clusters.md",
        _bench("cluster", "sets --times 1 --kills 10"),
        ("dfqkit/run/ray_parts.py", "dfqkit/run/parts.py", "dfqkit/run/bank_*.py", "dfqkit/training/ranks.py"),
    ),
}  # fmt: skip


@functools.cache
def meaning(file: Path) -> str:
    """Return a file's text without what changes no figure: blanks, comment lines, docstrings, descriptions."""
    text = file.read_bytes()
    if file.suffix != ".py":
        return hashlib.sha256(text).hexdigest()
    lines = text.splitlines()
    for node in _words(ast.parse(text)):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        head, tail = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
        lines[first : last + 1] = [head, *[b""] * (last - first - 1), tail] if last > first else [head + tail]
    kept = (line.strip() for line in lines)
    return b"".join(b"".join(line.split()) for line in kept if not line.startswith(b"#")).decode()


def _words(tree: ast.Module) -> list[ast.expr]:
    """Return the texts of a module that are for people, the last first."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Expr | ast.keyword))
    found = [node.value for node in nodes if _for_people(node)]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset), reverse=True)


def _for_people(node: ast.Expr | ast.keyword) -> bool:
    if isinstance(node, ast.keyword):
        return node.arg in ("description", "help")
    return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def markers() -> Iterator[tuple[Path, str, str, bool]]:
    """Yield each marker of the pages: the page, whose it is, the digest, and whether it says that it is older."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for name, digest, older in MARKER.findall(page.read_text(encoding="utf-8")):
            yield page, name, digest, bool(older)


def marked(text: str, digests: dict[str, str], made: Sequence[str] = ()) -> str:
    """Return a page's text whose markers say what is older; of what was ``made`` they have the digest of today."""

    def one(found: re.Match[str]) -> str:
        name, digest = found[1], digests[found[1]] if found[1] in made else found[2]
        told = "" if digest == digests[name] else f"{OLDER}\n\n"
        return f"<!-- figures: {name} {digest} -->\n\n{told}"

    return MARKER.sub(one, text)


def make(names: Sequence[str], out: Path) -> int:
    """Run the commands of figures, but of those that ended with today's digest; return the first code that is not 0."""
    noted = out / "made.json"
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        if wanted := re.findall(r"\b[A-Z]{4,}\b", FIGURES[name].command):
            print(f"{name}: left out, since {', '.join(wanted)} must be given: {FIGURES[name].command}")
            continue
        done: dict[str, str] = json.loads(noted.read_text(encoding="utf-8")) if noted.exists() else {}
        digest, folder = FIGURES[name].digest(), out / name
        if done.get(name) == digest:
            continue
        # Commands continue what they find in their folder, which must not be of other code.
        folder = folder / digest
        folder.mkdir(parents=True, exist_ok=True)
        command = FIGURES[name].command.replace("{out}", shlex.quote(str(folder)))
        print(f"{name}: {command}", flush=True)
        with (out / f"{name}.txt").open("w", encoding="utf-8") as log:
            code = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command], cwd=ROOT, stdout=log, check=False
            ).returncode
        if code:
            print(f"{name}: exit code {code}; what it printed is in {out / name}.txt")
            return code
        noted.write_text(json.dumps({**done, name: digest}, indent=1), encoding="utf-8")
    return 0


def main() -> int:
    """List, make or mark; the exit code of a list is 1 where figures are older and no page says so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--make", nargs="*", metavar="NAME", choices=FIGURES, help="run commands")
    choice.add_argument("--mark", nargs="*", metavar="NAME", choices=FIGURES, help="write markers")
    parser.add_argument("--out", type=Path, default=Path("runs/figures"), help="folder of what --make makes")
    args = parser.parse_args()
    digests = {name: each.digest() for name, each in FIGURES.items()}
    stale = sorted({name for _, name, digest, _ in markers() if digest != digests[name]})
    if args.make is not None:
        return make(args.make or stale, args.out)
    if args.mark is not None:
        for page in {page for page, *_ in markers()}:
            page.write_text(marked(page.read_text(encoding="utf-8"), digests, args.mark), encoding="utf-8")
        return 0
    silent = {name for _, name, digest, told in markers() if digest != digests[name] and not told}
    for name, each in FIGURES.items():
        state = "older, unsaid" if name in silent else "older" if name in stale else "fresh"
        print(f"{name:15} {state:14} {digests[name]}  {each.page}: {each.command}")
    return int(bool(silent))


if __name__ == "__main__":
    sys.exit(main())
