"""Where in the user's own code something happened: of an exception, of a node of a graph, of a batch made a constant.

What belongs here: telling the model's lines from those of torch, of the standard library and of this package.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import fx

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def is_users(filename: str) -> bool:
    """Whether a traceback's frame lies in the model's own code: not in torch, the standard library, or this package."""
    path = Path(filename)
    packages = {Path(sysconfig.get_path(key)) for key in ("purelib", "platlib")}
    here = Path(__file__).parents[1]
    if filename.startswith("<") or path.is_relative_to(Path(torch.__file__).parent):
        return False
    if path.is_relative_to(here) and not path.is_relative_to(here / "models"):
        return False
    in_packages = any(path.is_relative_to(folder) for folder in packages)
    return in_packages or not path.is_relative_to(Path(sysconfig.get_path("stdlib")))


def place_of_error(error: BaseException) -> str:
    """Return the user's line in which an exception was raised, with file, name and code; empty for none."""
    return _last([(f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(error.__traceback__)])


def place_of_node(node: fx.Node) -> str:
    """Return the user's line that a node of an exported graph came from; empty where nobody noted it."""
    found = _FRAME.findall(str(node.meta.get("stack_trace") or ""))
    return _last([(file, int(line), name) for file, line, name in found])


def at(place: str) -> str:
    """Return a place as the end of a clause; nothing for none."""
    return f" at {place}" if place else ""


def _last(frames: list[tuple[str, int, str]]) -> str:
    for file, line, name in reversed(frames):
        if is_users(file):
            code = linecache.getline(file, line).strip()
            return f"{file}:{line} in {name}" + (f": `{code}`" if code else "")
    return ""


class _BatchConstants(logging.Handler):
    """Notes the line of the model at which torch.export first fixed the batch size; its exception does not say.

    torch (2.8 to 2.15) logs `eval Eq(s31, 2) [guard added]` at that moment, with the model's code on the stack.
    """

    def __init__(self, caller: str) -> None:
        super().__init__()
        self.caller = caller  # frames up to this file's last are not the model's
        self.place = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Look at the stack if a symbol was found equal, or unequal, to a number."""
        if self.place or not re.match(r"eval (Eq|Ne)\(s\d+, \d+\)", record.getMessage()):
            return
        stack = list(traceback.extract_stack())
        start = max((i for i, frame in enumerate(stack) if frame.filename == self.caller), default=0)
        self.place = _last([(f.filename, f.lineno or 0, f.name) for f in stack[start:]])


@contextlib.contextmanager
def watched_export(caller: str) -> Iterator[_BatchConstants]:
    """Keep torch.export, called from the file ``caller``, from printing on failure, and note where it fixes a batch."""
    constants = _BatchConstants(caller)
    torch_log, shapes_log = logging.getLogger("torch"), logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = torch_log.level, shapes_log.level, shapes_log.propagate
    torch_log.setLevel(logging.CRITICAL)
    shapes_log.setLevel(logging.INFO)
    shapes_log.propagate = False
    shapes_log.addHandler(constants)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield constants
    finally:
        shapes_log.removeHandler(constants)
        torch_log.setLevel(before[0])
        shapes_log.setLevel(before[1])
        shapes_log.propagate = before[2]
