"""What a run depends on beside its recipe, and must find again whenever it goes on: teacher, student code, data files.

What belongs here: what each of them is known by. A recipe names files and factories, and what stands behind a name can
be replaced between two stages; the folder (`RunFolder.bind`) keeps what was there first and refuses another.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from dfqkit.config.files import find_file
from dfqkit.teacher.identity import code_of, identity_of
from dfqkit.teacher.sources import is_stored
from dfqkit_export.errors import RecipeError
from dfqkit_export.files import sha256_of_file
from dfqkit_export.images.bank_file import SET_FILE

if TYPE_CHECKING:
    from dfqkit.config.recipe import Recipe
    from dfqkit.run.context import Context
    from dfqkit.run.folder import RunFolder

#: What the folder calls them in its messages.
TEACHER, STUDENT, DATA = "teacher", "student network", "data of the synthesis section"

_BACK = "Put back what was there then, or begin another run with another --out: parts of both would be mixed."


def bind_teacher(context: Context) -> None:
    """Refuse to go on with a teacher of other weights or other code than the one that the run began with."""
    recipe, file = context.recipe, _weights(context.recipe)
    identity = identity_of(context.teacher)
    before = context.folder.bound(TEACHER)
    if before and before.get("sha256") == identity["sha256"]:
        identity["file"] = before.get("file")  # the same weights, however they are stored
    else:
        identity["file"] = None if file is None else sha256_of_file(file)
    named = f"teacher.weights is '{recipe.teacher.weights}', teacher.factory '{recipe.teacher.factory}'. "
    context.folder.bind(TEACHER, identity, named + _BACK)


def weights_changed(folder: RunFolder, recipe: Recipe) -> bool:
    """Return whether the file of the teacher's weights is there and not the one that the run began with."""
    before, file = folder.bound(TEACHER).get("file"), _weights(recipe)
    return before is not None and file is not None and sha256_of_file(file) != before


def bind_student(context: Context) -> None:
    """Refuse other code, or another start, of the float student than the run began with."""
    section = context.recipe.student
    assert section is not None
    start = None if section.start is None else find_file(section.start, context.recipe.directory)
    identity = {"code": code_of(None, section.factory), "start": None if start is None else sha256_of_file(start)}
    context.folder.bind(STUDENT, identity, f"student.factory is '{section.factory}'. {_BACK}")


def bind_data(context: Context) -> None:
    """Refuse other files or folders behind the names in the synthesis section than the run began with."""
    recipe = context.recipe
    found = {name: _fingerprint(find_file(name, recipe.directory)) for name in recipe.synthesis.files()}
    if found:
        context.folder.bind(DATA, found, _BACK)


def _weights(recipe: Recipe) -> Path | None:
    try:
        factory = recipe.teacher.factory
        name = factory.partition(":")[2] if is_stored(factory) else recipe.teacher.weights
        file = None if name is None else find_file(name, recipe.directory)
    except RecipeError:  # it is gone, or was a module at hand
        return None
    return file if file is not None and file.is_file() else None


def _fingerprint(path: Path) -> str:
    """Return a hash of a file; of a set its list, which has the hashes of the rest; of a folder its names and sizes."""
    if not path.is_dir():
        return sha256_of_file(path)
    if (path / SET_FILE).is_file():
        return sha256_of_file(path / SET_FILE)
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    names = "\n".join(f"{entry.relative_to(path).as_posix()} {entry.stat().st_size}" for entry in files)
    return hashlib.sha256(names.encode()).hexdigest()
