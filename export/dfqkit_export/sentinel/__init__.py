"""The sentinel set: a few images with the teacher's answers, by which a file is checked again after every change.

What belongs here: the set and its file (`file`), and choosing one (`choice`) from images that may serve (`candidates`),
by what copies of the file that are worse in a known way (`probes`) answer.
"""

from __future__ import annotations

from dfqkit_export.sentinel.candidates import Candidates, candidates_of
from dfqkit_export.sentinel.choice import Choice, TeacherFile, choose, usual_choice
from dfqkit_export.sentinel.file import (
    PLAIN,
    SENSITIVE,
    SENTINEL_FILE,
    Sentinel,
    normalized,
    read_sentinel,
    sentinel_bytes,
    write_sentinel,
)

__all__ = [
    "PLAIN", "SENSITIVE", "SENTINEL_FILE", "Candidates", "Choice", "Sentinel", "TeacherFile", "candidates_of", "choose",
    "normalized", "read_sentinel", "sentinel_bytes", "usual_choice", "write_sentinel",
]  # fmt: skip
