"""Exceptions for what a user can fix, and the exit code each one stands for.

What belongs here: one base class, one child for each kind of thing that can be wrong. A message says what was wrong,
what was found, what is allowed, and what to do next; the command line prints it without a traceback. Anything else that
is raised is a bug.
"""

from __future__ import annotations

from typing import ClassVar


class DfqkitError(Exception):
    """Something that the user can fix.

    Attributes:
        exit_code: Status with which the command line ends when this error reaches it.
    """

    exit_code: ClassVar[int] = 2


class RecipeError(DfqkitError):
    """A recipe that is not readable, not complete, or asks for what does not exist."""


class TeacherError(DfqkitError):
    """A teacher that cannot be loaded, does not fit its image specification, or cannot serve the method asked for."""


class TargetError(DfqkitError):
    """A request that the deployment target cannot carry out."""


class ArtefactError(DfqkitError):
    """A file (images, model, report) that is missing, damaged, of another version, or not what it claims to be."""


class BusyError(ArtefactError):
    """A folder in which another process is working."""


class RuntimeUnavailableError(DfqkitError):
    """A runtime that is not installed on this machine."""

    exit_code: ClassVar[int] = 3


class MissingExtraError(RuntimeUnavailableError):
    """A package that only some commands need, and that is not installed."""


class RuntimeCrashedError(DfqkitError):
    """A vendor's library that crashed, hung or gave up without an answer, in a process of its own."""

    exit_code: ClassVar[int] = 3


class CheckFailedError(DfqkitError):
    """A measured value that lies on the wrong side of its floor."""

    exit_code: ClassVar[int] = 1
