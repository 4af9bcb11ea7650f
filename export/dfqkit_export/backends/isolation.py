"""Code that may crash in a process of its own, so that its end is an error message and not ours.

What belongs here: calling a function of this program in a child process with limits on time and memory. What goes in
and comes out is JSON; arrays and other large things travel as files that both sides are given the path of.

Who is trusted: a file that this process has just written is run in this process. What anybody else may have made (the
files that `check`, `compare`, `profile`, `inspect` and `sentinel` are given) is parsed and run in a child, whatever the
runtime; vendors' builders always are. A child guards against crashes, hangs and floods, not against a file that takes
over the runtime: it runs as the same user.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from dfqkit_export import errors
from dfqkit_export.errors import DfqkitError, RuntimeCrashedError
from dfqkit_export.words import plain

_PACKAGE = "dfqkit_export"
_CHILD = f"import sys; from {_PACKAGE}.backends.isolation import serve; serve(sys.argv[1])"
_REQUEST, _ANSWER, _OUTPUT = "request.json", "answer.json", "output.txt"
_LAST_LINES = 8
_LAST_BYTES = 4000
#: Where these are loaded there are threads, which a copy of the process would not have.
_THREADED = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "torch")
_SECONDS, _GIB, _HOW = "DFQKIT_CHILD_SECONDS", "DFQKIT_CHILD_GIB", "DFQKIT_CHILD"

#: What is said of a file for which memory does not suffice.
TOO_LARGE = (
    "The file needs more memory than it is given: sizes in it are damaged, or too large for this machine. Check that "
    f"it is the right one; {_GIB} sets another limit, in GiB."
)


class UnforeseenError(Exception):
    """What nobody foresaw, raised in a child: its text is the child's traceback."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child may take.

    Attributes:
        seconds: After which it is killed.
        gib: Memory of its own in GiB, beyond which it is refused more; None sets no limit. Not on Windows.
    """

    seconds: float = 600.0
    gib: float | None = None


def foreign_limits() -> Limits:
    """Return the limits for files of unknown origin: 15 minutes and three quarters of the memory, or what is set.

    The environment's DFQKIT_CHILD_SECONDS and DFQKIT_CHILD_GIB, numbers above 0, take their place.
    """
    return Limits(seconds=_stated(_SECONDS) or 900.0, gib=_stated(_GIB) or _most_memory())


def _stated(name: str) -> float | None:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else None
    except ValueError:
        value = 0.0
    if value is not None and not 0 < value < float("inf"):
        message = f"{name} must be a number above 0, found {text!r}. Set another one, or none."
        raise errors.ArtefactError(message)
    return value


def _most_memory() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return 0.75 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def call_isolated(
    function: str,
    arguments: Mapping[str, Any],
    *,
    runtime: str,
    doing: str,
    limits: Limits | None = None,
    fresh: bool = True,
) -> Any:
    """Call a function of this program in a child process and return its result.

    The child works in this process's folder and finds the modules that this process finds. Arguments and result are
    what JSON can hold.

    Args:
        function: "module:function"; the module may be relative to `dfqkit_export`.
        arguments: Its keyword arguments.
        runtime: The runtime's name for people, for messages.
        doing: What is being done, for messages: "building 'model.onnx'".
        limits: What it may take.
        fresh: Whether it must be a new Python. False allows a copy of this process, which starts at once, where
            nothing is loaded that a copy does not survive (DFQKIT_CHILD=fork or =fresh decides otherwise).

    Raises:
        DfqkitError: Of the class, and with the message, of the one that the function raised.
        RuntimeCrashedError: The child died, ended without an answer, or took too long.
        UnforeseenError: The function raised anything else.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="dfqkit-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        request = {"function": function, "arguments": dict(arguments), "cwd": str(Path.cwd()), "gib": limits.gib}
        (folder / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
        start = _new_python if fresh or not _may_fork() else _copy
        ending = start(folder, limits.seconds)
        if not ending and not (folder / _ANSWER).is_file():
            ending = "the process ended without an answer"
        if ending:
            raise RuntimeCrashedError(_crash_message(runtime, doing, ending, _last_lines(folder / _OUTPUT)))
        answer = json.loads((folder / _ANSWER).read_text(encoding="utf-8"))
    if "unforeseen" in answer:
        raise UnforeseenError(answer["unforeseen"])
    if "error" in answer:
        raise getattr(errors, answer["error"]["class"], RuntimeCrashedError)(answer["error"]["message"])
    return answer["value"]


def serve(folder: str) -> None:
    """Answer the request in a folder; what the child process runs."""
    request = json.loads((Path(folder) / _REQUEST).read_text(encoding="utf-8"))
    os.chdir(request["cwd"])
    _restrict(request["gib"])
    try:
        name = request["function"]
        function: Callable[..., Any] = resolve_name(name if name.startswith("dfqkit") else f"{_PACKAGE}.{name}")
        answer = {"value": function(**request["arguments"])}
    except DfqkitError as error:
        answer = {"error": {"class": type(error).__name__, "message": str(error)}}
    except MemoryError:
        answer = {"error": {"class": "ArtefactError", "message": TOO_LARGE}}
    except Exception:  # told to the parent, for whom it is a bug
        answer = {"unforeseen": traceback.format_exc()}
    unfinished = Path(folder) / f"{_ANSWER}.part"
    unfinished.write_text(json.dumps(answer), encoding="utf-8")
    unfinished.replace(Path(folder) / _ANSWER)


def _restrict(gib: float | None) -> None:
    """Let this process write no dump of itself, and have no more memory than that."""
    if os.name == "nt":
        return
    import resource  # not there on Windows

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if gib is not None:
        most = int(gib * 2**30)
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _may_fork() -> bool:
    wanted = os.environ.get(_HOW, "")
    if wanted or sys.platform != "linux":
        return wanted == "fork"
    return threading.active_count() == 1 and not any(name in sys.modules for name in _THREADED)


def _new_python(folder: Path, seconds: float) -> str:
    """Run the child in a new Python; returns how it ended where that was not well, else nothing."""
    # What is relative, and "", would be taken from the child's own folder.
    own = Path(__file__).parents[2]
    path = [str(Path(entry).absolute()) for entry in sys.path if entry]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, str(own)]), "PYTHONUNBUFFERED": "1"}
    with (folder / _OUTPUT).open("wb") as output:
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", _CHILD, str(folder)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _too_long(seconds)
    return _ending(done.returncode)


def _copy(folder: Path, seconds: float) -> str:
    """Run the child in a copy of this process; returns what `_new_python` does."""
    alive, held = os.pipe()  # the child's end closes when it dies, however that happens
    child = os.fork()
    if child == 0:
        _as_copy(folder)
    os.close(held)
    try:
        ended = bool(select.select([alive], [], [], seconds)[0])
    except BaseException:
        ended = False
        raise
    finally:
        os.close(alive)
        if not ended:
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return _ending(code) if ended else _too_long(seconds)


def _as_copy(folder: Path) -> None:
    """Be the child, and end without what the parent wants to happen when it ends."""
    gc.disable()  # garbage may be the parent's sessions, whose ends wait for threads that no copy has
    code = 1
    try:
        faulthandler.disable()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with _output_to(folder / _OUTPUT):
            serve(str(folder))
        code = 0
    finally:
        os._exit(code)


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send what is written to stdout and stderr, by libraries too, into a file; stdin is empty."""
    with path.open("w", encoding="utf-8", errors="replace") as output, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield


def _too_long(seconds: float) -> str:
    return f"it was stopped after {seconds:g} seconds without an answer"


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
    return [plain(line).rstrip() for line in text.splitlines() if line.strip()][-_LAST_LINES:]


def _crash_message(runtime: str, doing: str, ending: str, lines: list[str]) -> str:
    said = "\n".join(f"  {line}" for line in lines) or "  nothing"
    return (
        f"{runtime} crashed while {doing}: {ending}. This is a fault of the vendor's library, set off by the file or "
        "by the machine; nothing was written. Check the file with 'dfqkit inspect FILE --target TARGET', which does "
        f"not load the library, and try another version of it. The last it said:\n{said}"
    )
