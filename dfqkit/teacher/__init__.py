"""Teachers: loading a trained network, verifying it, and what it offers; the public names are resolved on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit_export.lazy import attach

if TYPE_CHECKING:
    from dfqkit.teacher.load import Teacher, load_teacher

__all__ = ["Teacher", "load_teacher"]

__getattr__, __dir__ = attach(__name__, {"dfqkit.teacher.load": "Teacher load_teacher"})
