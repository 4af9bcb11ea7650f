"""The files of a stored set of images: what each says about itself, and whether they fit together.

What belongs here: the form on disk, and every check that reads no image. A set is a folder: ``set.json`` (what it is,
who made it of what, and the sha256 of every shard) beside shards ``shard-00000.safetensors``, each of which holds uint8
``images`` (N, C, H, W) and what the teacher answered, float32 (N, ...) by the name of its output, and says in its own
header what it is; so that a lone shard, or a file from the ``images`` folder of a run, is read as a set of one. A set
that names no task is a classifier's: one output, a number for each class. The readers are `stored`; who writes sets is
`dfqkit.run.bank_folder`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import SEAL, seal_holds
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.images.tensors import TensorFile

SCHEMA = 1
SET_FILE = "set.json"
#: The one metadata entry of every shard.
HEADER = "imagebank"
#: The tensor of images; every other one is an output of the teacher.
IMAGES = "images"

_AGAIN = "Make it again with `dfqkit synthesize`."
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, ArtefactError)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a set; its sha256 is what the set lists, None for a lone file, which nothing vouches for."""

    path: Path
    n: int
    sha256: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """What a set says of itself, checked.

    Attributes:
        path: The folder, or the lone file.
        spec: Shape and normalisation of its images.
        teacher: sha256 of the weights of the teacher that answered.
        source: What made the images.
        outputs: Shape of the teacher's answer to one image, by output; empty while there is no shard.
        task: The teacher's task, ``name`` and parameters; empty for a classifier.
        shards: Its files, in order.
        wanted: How many images it was to have; more than it has while it is unfinished.
        facts: Everything in ``set.json``; empty for a lone file.
    """

    path: Path
    spec: ImageSpec
    teacher: str
    source: str
    outputs: dict[str, tuple[int, ...]]
    task: dict[str, Any]
    shards: tuple[Shard, ...]
    wanted: int
    facts: dict[str, Any]


def set_contents(path: Path) -> Contents:
    """Read what a set's folder or a lone file says, and check that all files are there with what they should hold."""
    if path.is_dir():
        contents = _listed(path)
        for shard in contents.shards:
            _require_shard(shard, contents)
        return contents
    if not path.exists():
        message = (
            f"Cannot read the image bank '{path}': it is not there. Give the folder that `dfqkit synthesize` made, "
            "or one file of images."
        )
        raise ArtefactError(message)
    return _header(path)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of a file that cannot be read that it was to be an image bank, and how to make one."""
    try:
        yield
    except (ArtefactError, ValueError, AttributeError, RecursionError) as error:
        message = f"Cannot read the image bank '{path}': {error} {_AGAIN}"
        raise ArtefactError(message) from error


def _header(path: Path) -> Contents:
    """Return what one file says, checked against its tensors."""
    with reading(path):
        file = TensorFile(path)
        header = json.loads(file.metadata.get(HEADER, "{}"))
        schema = header.get("schema")
        forms = file.forms
    _require_schema(schema, path, "an image bank")
    try:
        spec, n, task = ImageSpec.from_dict(header["image"]), forms[IMAGES][1][0], dict(header.get("task", {}))
        answers = [name for name in forms if name != IMAGES]
        needed = {IMAGES: ("U8", (n, *spec.shape))}
        needed |= {name: ("F32", (n, *(forms[name][1][1:] if task else [spec.classes]))) for name in answers}
        for name, form in needed.items():
            if forms[name] != form:
                message = f"its {name} are {forms[name]}, its header asks for {form}"
                raise ValueError(message)
        if not answers or (not task and len(answers) > 1):
            message = f"it holds {', '.join(forms)}, and no answers of a teacher or those of another task than it says"
            raise ValueError(message)
        return Contents(
            path=path,
            spec=spec,
            teacher=str(header["teacher"]),
            source=str(header["source"]),
            outputs={name: forms[name][1][1:] for name in answers},
            task=task,
            shards=(Shard(path=path, n=n, sha256=None),),
            wanted=n,
            facts={},
        )
    except _DAMAGED as error:
        message = f"Image bank '{path}' contradicts itself: {type(error).__name__}: {error}. {_AGAIN}"
        raise ArtefactError(message) from error


def _listed(path: Path) -> Contents:
    """Return what the list of a folder says."""
    file = path / SET_FILE
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        inside = sorted(entry.name for entry in (path / "images").glob("*.safetensors"))
        hint = f"It has images/: give one of its files, {', '.join(inside)}." if inside else "Give the folder of one."
        message = f"'{path}' is not an image set: it has no {SET_FILE}. {hint}"
        raise ArtefactError(message) from error
    except (OSError, ValueError, RecursionError) as error:
        message = f"Cannot read '{file}': {error}. {_AGAIN}"
        raise ArtefactError(message) from error
    _require_schema(facts.get("schema") if isinstance(facts, dict) else None, file, "a list of an image set")
    if not seal_holds(facts):
        message = f"'{file}' was changed since it was written: its entries do not fit its {SEAL}. {_AGAIN}"
        raise ArtefactError(message)
    try:
        shards = tuple(_entry(path, entry) for entry in facts["shards"])
        contents = Contents(
            path=path,
            spec=ImageSpec.from_dict(facts["image"]),
            teacher=str(facts["teacher"]["sha256"]),
            source=str(facts["source"]),
            outputs=_header(shards[0].path).outputs if shards and shards[0].path.is_file() else {},
            task=dict(facts.get("task", {})),
            shards=shards,
            wanted=int(facts["wanted"]),
            facts=facts,
        )
        n = sum(shard.n for shard in shards)
        if facts["n"] != n or contents.wanted < n:
            message = f"its shards have {n} images, it says {facts['n']} of {contents.wanted}"
            raise ValueError(message)
    except _DAMAGED as error:
        message = f"'{file}' contradicts itself: {type(error).__name__}: {error}. {_AGAIN}"
        raise ArtefactError(message) from error
    return contents


def _entry(path: Path, entry: Mapping[str, Any]) -> Shard:
    name = str(entry["name"])
    if Path(name).name != name:
        message = f"a shard's name must be that of a file beside it, found {name!r}"
        raise ValueError(message)
    return Shard(path=path / name, n=int(entry["n"]), sha256=str(entry["sha256"]))


def _require_schema(schema: object, path: Path, kind: str) -> None:
    if schema == SCHEMA:
        return
    newer = isinstance(schema, int) and schema > SCHEMA
    message = f"'{path}' is not {kind} that this version reads (schema {schema}, needed {SCHEMA}). " + (
        "A newer version of dfqkit made it: upgrade." if newer else _AGAIN
    )
    raise ArtefactError(message)


def _require_shard(shard: Shard, contents: Contents) -> None:
    if not shard.path.is_file():
        message = (
            f"Image set '{shard.path.parent}' is cut short: {shard.path.name} is missing. Copy the set again with all "
            f"its files, or make it again."
        )
        raise ArtefactError(message)
    own = _header(shard.path)
    same = ("spec", "teacher", "source", "outputs", "task")
    if own.wanted == shard.n and all(getattr(own, key) == getattr(contents, key) for key in same):
        return
    message = (
        f"'{shard.path}' is not the shard that {SET_FILE} lists: it has {own.wanted} images and {shard.n} are listed, "
        "or it is of another teacher, shape or source. Copy the set again, or make it again."
    )
    raise ArtefactError(message)
