"""A run's sentinel set: the images by which its file is checked again later.

What belongs here: which of a run's images are candidates. How they are chosen is `dfqkit_export.sentinel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit.run.export import MODEL, TEACHER
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.stored import StoredBank
from dfqkit_export.sentinel import SENTINEL_FILE, TeacherFile, candidates_of, choose, usual_choice, write_sentinel

if TYPE_CHECKING:
    from dfqkit.run.context import Context

_USED = ("calibration", "held_out", "judging")


def write_run_sentinel(context: Context) -> list[str]:
    """Choose from the run's grading images and write the set; returns its file, none where there is nothing to choose.

    Images that trained or selected the student are left out, wherever they come from: a source of stored images can
    give the same one twice.
    """
    path, bank = context.folder.path, context.recipe.bank
    if not bank.grading:
        return []
    used = [path / "images" / f"{name}.safetensors" for name in _USED]
    grading = StoredBank.open(path / "images" / "grading.safetensors")
    exclude = [StoredBank.open(file) for file in used if file.exists()]
    try:
        candidates = candidates_of([grading], exclude)
    except ArtefactError:
        return []  # fewer images than a set needs
    teacher = TeacherFile(path=context.file(TEACHER), name=context.teacher.name, sha256=context.teacher.sha256)
    choice = usual_choice(candidates.spec, context.recipe.seed, candidates.task)
    sentinel = choose(context.file(MODEL), teacher, candidates, choice)
    file = context.file(SENTINEL_FILE)
    write_sentinel(file, sentinel)
    return [file.name]
