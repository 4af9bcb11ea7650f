"""Vendor libraries in a process of their own, so that their crash is an error message and not our end.

What belongs here: calling a function of this package in a child process. What goes in and comes out is JSON; arrays and
other large things travel as files that both sides are given the path of.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from dfqkit_export import errors
from dfqkit_export.errors import DfqkitError, RuntimeCrashedError

_PACKAGE = "dfqkit_export"
_CHILD = f"from {_PACKAGE}.backends.isolation import serve; serve()"
_REQUEST, _ANSWER, _OUTPUT = "request.json", "answer.json", "output.txt"
_LAST_LINES = 8
_LAST_BYTES = 4000


def call_isolated(
    function: str, arguments: Mapping[str, Any], *, runtime: str, doing: str, timeout: float = 600.0
) -> Any:
    """Call a function of this package in a new Python process and return its result.

    The child runs in an empty temporary folder, so paths among the arguments must be absolute. It finds the modules
    that this process finds. Arguments and result are what JSON can hold.

    Args:
        function: "module:function", the module relative to `dfqkit_export`.
        arguments: Its keyword arguments.
        runtime: The runtime's name for people, for messages.
        doing: What is being done, for messages: "building 'model.onnx'".
        timeout: Seconds after which the child is killed.

    Raises:
        DfqkitError: Of the class, and with the message, of the one that the function raised.
        RuntimeCrashedError: The child died, ended without an answer, or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="dfqkit-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        request = {"function": function, "arguments": dict(arguments)}
        (folder / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
        ending = _run(folder, timeout)
        if not ending and not (folder / _ANSWER).is_file():
            ending = "the process ended without an answer"
        if ending:
            raise RuntimeCrashedError(_crash_message(runtime, doing, ending, _last_lines(folder / _OUTPUT)))
        answer = json.loads((folder / _ANSWER).read_text(encoding="utf-8"))
    if "error" in answer:
        raise getattr(errors, answer["error"]["class"], RuntimeCrashedError)(answer["error"]["message"])
    return answer["value"]


def serve() -> None:
    """Answer the request in the current folder; what the child process runs."""
    request = json.loads(Path(_REQUEST).read_text(encoding="utf-8"))
    function: Callable[..., Any] = resolve_name(f"{_PACKAGE}.{request['function']}")
    try:
        answer = {"value": function(**request["arguments"])}
    except DfqkitError as error:
        answer = {"error": {"class": type(error).__name__, "message": str(error)}}
    unfinished = Path(f"{_ANSWER}.part")
    unfinished.write_text(json.dumps(answer), encoding="utf-8")
    unfinished.replace(_ANSWER)


def _run(folder: Path, timeout: float) -> str:
    """Run the child; returns how it ended where that was not well, else nothing."""
    # The child works elsewhere, so what is relative here would be lost, and "" would be the child's own folder.
    own = Path(__file__).parents[2]
    path = [str(Path(entry).absolute()) for entry in sys.path if entry]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, str(own)]), "PYTHONUNBUFFERED": "1"}
    with (folder / _OUTPUT).open("wb") as output:
        try:
            done = subprocess.run(
                [sys.executable, "-c", _CHILD],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it was stopped after {timeout:g} seconds without an answer"
    return _ending(done.returncode)


def _ending(code: int) -> str:
    if code == 0:
        return ""
    if code > 0:
        return f"the process ended with exit code {code}"
    known = {item.value: item.name for item in signal.Signals}
    return f"the process was killed by signal {known.get(-code, 'unknown')} ({-code})"


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LAST_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-_LAST_LINES:]


def _crash_message(runtime: str, doing: str, ending: str, lines: list[str]) -> str:
    said = "\n".join(f"  {line}" for line in lines) or "  nothing"
    return (
        f"{runtime} crashed while {doing}: {ending}. This is a fault of the vendor's library, set off by the file or "
        "by the machine; nothing was written. Check the file with 'dfqkit inspect FILE --target TARGET', which does "
        f"not load the library, and try another version of it. The last it said:\n{said}"
    )
