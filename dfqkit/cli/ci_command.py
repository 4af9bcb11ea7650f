"""`dfqkit ci`: the workflow file that checks a committed bundle, for GitHub Actions or GitLab."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from dfqkit.cli.options import Commands, add_command, document, note, result, wrote
from dfqkit_export._version import __version__

_DESCRIPTION = (
    "Write the workflow file that checks a committed bundle against its committed baseline at every change, without "
    "torch, data or a GPU. It is a file of your own from then on: read it, and commit it."
)
_FILES = {
    "github": ("github-actions.yml", ".github/workflows/accuracy.yml"),
    "gitlab": ("gitlab-ci.yml", ".gitlab-ci.yml"),
}
#: What the shipped files name, which the options replace.
_BUNDLE, _WHEEL, _TESTS = "models/classifier.zip", f"models/dfqkit-{__version__}-py3-none-any.whl", "tests/accuracy"


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "ci", _ci, "write the workflow that checks a bundle", _DESCRIPTION)
    parser.add_argument("service", choices=tuple(_FILES), help="which CI runs it")
    parser.add_argument("--bundle", default=_BUNDLE, metavar="FILE", help=f"the bundle, in the repository ({_BUNDLE})")
    text = f"what pip installs dfqkit from, such as a wheel in the repository ({_WHEEL})"
    parser.add_argument("--dfqkit", default=_WHEEL, metavar="WHAT", help=text)
    text = "folder of tests that use the fixture accuracy_check (default: none are run)"
    parser.add_argument("--tests", metavar="DIR", help=text)
    parser.add_argument(
        "--out", metavar="FILE", help="where to write it; - prints it (default: where the service looks)"
    )


def _ci(args: argparse.Namespace) -> int:
    from dfqkit.config.files import library
    from dfqkit_export.errors import ArtefactError
    from dfqkit_export.files import write_bytes

    name, usual = _FILES[args.service]
    text = (library() / "ci" / name).read_text(encoding="utf-8")
    text = text.replace(_BUNDLE, args.bundle).replace(_WHEEL, args.dfqkit)
    text = _without_tests(text) if args.tests is None else text.replace(_TESTS, args.tests)
    if args.out == "-":
        result(document({"workflow": text}) if args.json else text, verbatim=True)
        return 0
    out = Path(args.out or usual)
    if out.exists():
        message = f"'{out}' is there already. Print the workflow with --out - and add it by hand, or name another file."
        raise ArtefactError(message)
    write_bytes(out, text.encode())
    told = (
        f"Wrote {out}. It checks {args.bundle} against dfqkit-baseline.json with what is installed from {args.dfqkit}."
    )
    wrote(args, {"path": str(out)}, told)
    if not Path(args.bundle).exists():
        note(f"{args.bundle} is not there yet: `dfqkit bundle` makes it, `dfqkit check ... --update` the baseline.")
    return 0


def _without_tests(text: str) -> str:
    """Return a workflow without the step, or line, that runs pytest, and without installing it."""
    text = re.sub(r"      - name: Tests that use.*?(?=      - uses: actions/upload-artifact)", "", text, flags=re.S)
    text = re.sub(r"    # Tests that use.*?\n    - python -m pytest.*?\n", "", text)
    return re.sub(r" pytest==\S+", "", text)
