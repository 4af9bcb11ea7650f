"""How a command ends: the one place that turns what happened into an exit code and a message.

What belongs here: the exit codes. A user's mistake gives a message without a traceback; anything unforeseen is a bug
and shows one.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from dfqkit.cli.options import discard_stdout, note
from dfqkit.progress import PULSE
from dfqkit_export.errors import DfqkitError

EXIT_CODES = """\
exit codes:
  0    good; of `run` also where the verdict is `not judged`, which is no error and no OK
  1    a check failed: the verdict is `failed`, or, of `check`, `not judged` without --allow-not-judged
  2    usage, recipe, teacher or file: the message says what to do
  3    a runtime, device or extra is not available on this machine
  4    a bug in dfqkit, with a traceback
  130  interrupted, with the command that resumes

Results go to stdout, everything else to stderr. DFQKIT_ASSETS names the folder that holds files recipes
name, DFQKIT_PROGRESS=0 hides progress, NO_COLOR is respected.
"""

BUG, USAGE, INTERRUPTED = 4, 2, 130

_AGAIN = "give the same command again, or `dfqkit run --resume DIR` for a run"


class Interrupted(KeyboardInterrupt):
    """An interrupt of something that ``command`` continues."""

    def __init__(self, command: str) -> None:
        super().__init__(command)
        self.command = command


@contextlib.contextmanager
def resumable(command: str) -> Iterator[None]:
    """Say, where what is inside gets interrupted, how to continue it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise Interrupted(command) from interrupt


def guarded(action: Callable[[], int]) -> int:
    """Do something and return the exit code that fits how it ended."""
    with _terminated_is_interrupted(), _without_chatter():
        try:
            code = action()
            sys.stdout.flush()
        except SystemExit as ending:  # argparse, which has said why
            return _flushed(ending.code if isinstance(ending.code, int) else 0)
        except Interrupted as interrupt:
            note(f"\nInterrupted. Continue with: {interrupt.command}")
            return INTERRUPTED
        except KeyboardInterrupt:
            note("\nInterrupted.")
            return INTERRUPTED
        except DfqkitError as error:
            note(f"error: {error}")
            return error.exit_code
        except BrokenPipeError:
            discard_stdout()
            return 0
        except ModuleNotFoundError as error:
            from dfqkit_export.lazy import missing_extra

            missing = missing_extra(error)
            if missing is None:
                return _unforeseen(error)
            note(f"error: {missing}")
            return missing.exit_code
        except Exception as error:  # the last resort: every other error is one that nobody foresaw
            return _unforeseen(error)
        finally:
            PULSE.stop()
        return code


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
    return code


def _unforeseen(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        note(f"error: No space left: {error}. Free some, then {_AGAIN}.")
        return USAGE
    if isinstance(error, MemoryError):
        from dfqkit_export.backends.isolation import TOO_LARGE

        note(f"error: {TOO_LARGE}")
        return USAGE
    note(traceback.format_exc().rstrip("\n"))
    note(
        "This is a bug in dfqkit. Please report it with the lines above and what `dfqkit env` prints. What was "
        f"completed is kept: to continue, {_AGAIN}."
    )
    return BUG


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep from users what only developers of torch and Brevitas can act on."""
    import logging
    import warnings

    # Brevitas imports it, and it says that a machine without a GPU has none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"brevitas\.")
        warnings.filterwarnings("ignore", message=".*pkg_resources")
        yield


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """Take SIGTERM (a scheduler, `kill`) as Ctrl-C, so that it says how to continue, too."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
