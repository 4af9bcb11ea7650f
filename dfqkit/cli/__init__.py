"""The command line: one module a subcommand, each of which says what it takes and imports what it needs when it runs.

What belongs here: the top-level parser, `main`, and the process of its own for files that anybody may have made (which
commands are given such files they say themselves: `options.add_command`). No module of this package imports torch
before a command needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from dfqkit.cli import run_command
from dfqkit.cli.logs import logged
from dfqkit.cli.options import Parser, note, result
from dfqkit.cli.outcome import EXIT_CODES, guarded
from dfqkit.progress import processes
from dfqkit_export._version import __version__

__all__ = ["command_line", "main"]

_DESCRIPTION = (
    "Quantize a trained vision model without its data, and prove it in the runtime. Begin with `dfqkit quantize` "
    "and a model of your own, of which `dfqkit inspect` says what it offers, or with `dfqkit list recipes` and `dfqkit "
    "run RECIPE`."
)
#: The modules ``NAME_command``, in the order of `dfqkit --help`.
_COMMANDS = (
    *("quantize", "init", "run", "synthesize", "inspect", "list", "recipe", "record", "report", "check", "ci"),
    *("compare", "profile", "prove", "bundle", "sentinel", "bank", "bench", "completion", "env"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, that of the process without ``argv``, and return its exit code (`dfqkit --help` lists them)."""
    if sys.stdout.isatty() and "COLUMNS" not in os.environ:  # tables and children know how wide the terminal is
        os.environ["COLUMNS"] = str(shutil.get_terminal_size().columns)
    return guarded(lambda: dispatch(argv))


def dispatch(argv: Sequence[str] | None, *, own_process: bool = False) -> int:
    """Do what the arguments say; where files of unknown origin are among them, in a process of its own."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = command_line().parse_args(words, argparse.Namespace(words=words))
    if processes() > 1 and args.handler is not run_command.run:
        args.parser.error(f"torchrun started {processes()} processes, which `dfqkit run` alone can share: start one")
    if args.foreign(args) and not own_process:
        return relayed(words)
    with logged(args.log_file, words, verbose=args.verbose):
        code: int = args.handler(args)
    return code


def relayed(argv: Sequence[str]) -> int:
    """Do a command in a child process (`answer`), repeat what it says, and return its exit code."""
    from dfqkit_export.backends.isolation import call_isolated, foreign_limits

    found = call_isolated(
        f"{__name__}:answer",
        {"argv": list(argv)},
        runtime="What reads or runs the file",
        doing=f"`dfqkit {argv[0]}` was at work",
        limits=foreign_limits(),
        fresh=False,
    )
    if found["stdout"]:
        result(found["stdout"])
    if found["stderr"]:
        note(found["stderr"].rstrip("\n"))
    code: int = found["code"]
    return code


def answer(argv: list[str]) -> dict[str, Any]:
    """Do a command in this process, a child, and return what it says and its exit code."""
    said = {"stdout": io.StringIO(), "stderr": io.StringIO()}
    with contextlib.redirect_stdout(said["stdout"]), contextlib.redirect_stderr(said["stderr"]):
        code = guarded(lambda: dispatch(argv, own_process=True))
    return {"code": code, **{name: text.getvalue() for name, text in said.items()}}


def command_line() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(prog="dfqkit", description=_DESCRIPTION, epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"dfqkit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in _COMMANDS:
        import_module(f"{__name__}.{name}_command").add(commands)
    return parser
