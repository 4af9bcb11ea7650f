"""Opening what is checked or deployed: a bundle's folder or zip, or the folder of a run.

What belongs here: `Bundle`, and how each of the three becomes one. Nothing that is opened is trusted: see `entries`.
"""

from __future__ import annotations

import logging
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dfqkit_export.backends import DEFAULT_TARGET
from dfqkit_export.bundle.archive import digests, member_names, take
from dfqkit_export.bundle.entries import (
    MAX_MODEL,
    check_names,
    parse_json,
    plain_file,
    printable,
    read_json,
    read_text,
    refusal,
)
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import SEAL, seal_holds, sha256_of_file
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.onnxfile.model import load_onnx, metadata_in
from dfqkit_export.report import Report
from dfqkit_export.sentinel import SENTINEL_FILE, Sentinel, read_sentinel
from dfqkit_export.tasks import Task, task_in

_LOG = logging.getLogger(__name__)

SCHEMA, KIND = 1, "dfqkit-bundle"
MANIFEST, MODEL_FILE, TEACHER_FILE = "manifest.json", "model.onnx", "teacher.onnx"
REPORT_FILE, RECIPE_FILE, LABELS_FILE = "report.json", "recipe.yaml", "labels.txt"
GRADING_FILE = "images/grading.safetensors"
#: What is read of a zip; whatever else it holds is only hashed, and never becomes a file.
_READ = (MANIFEST, MODEL_FILE, TEACHER_FILE, SENTINEL_FILE, REPORT_FILE, RECIPE_FILE, LABELS_FILE)
_RUN_FILES = (MODEL_FILE, TEACHER_FILE, SENTINEL_FILE, REPORT_FILE)
_MAX_RECIPE, _MAX_LABELS = 2**20, 4 * 2**20
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle or the folder of a run, opened with `open_bundle`; its parts are read when they are asked for.

    Attributes:
        path: What was given.
        root: Where its files lie; of a zip, those that are read, and only while it is open.
        name: Of the recipe, or of the file.
        target: What it was made for.
        image: Shape and normalisation.
        teacher: ``name`` and ``sha256``.
        synthesis: ``method``, ``data_free`` (True, False, or None where that is not known) and ``noise``.
        quant: The scheme; empty where it is not known.
        command: What made it; empty where it is not known.
        files: sha256 by name, as the manifest has it.
        whole: Whether the manifest lists all that is there, as a bundle's does and a run's does not.
    """

    path: Path
    root: Path
    name: str
    target: str
    image: ImageSpec
    teacher: Mapping[str, str]
    synthesis: Mapping[str, Any]
    quant: Mapping[str, Any]
    command: str
    files: Mapping[str, str]
    whole: bool

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.root / MODEL_FILE

    @cached_property
    def sentinel(self) -> Sentinel | None:
        """The images that it is checked with, and the teacher's answers."""
        path = plain_file(self.root, SENTINEL_FILE)
        return None if path is None else read_sentinel(path)

    @cached_property
    def report(self) -> Report | None:
        """What was measured of it."""
        path = plain_file(self.root, REPORT_FILE)
        return None if path is None else _report_in(path)

    @cached_property
    def recipe(self) -> str | None:
        """The resolved recipe: text, which is never interpreted here."""
        path = plain_file(self.root, RECIPE_FILE)
        return None if path is None else read_text(path, _MAX_RECIPE)

    @cached_property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes."""
        path = plain_file(self.root, LABELS_FILE)
        return None if path is None else labels_of(path, self.image.classes)

    @cached_property
    def task(self) -> Task:
        """What its outputs mean."""
        return task_in(metadata_in(load_onnx(self.model, weights=False)))

    def damaged(self) -> list[str]:
        """Return the names of files that are missing, or not as the manifest lists them."""
        if self.path != self.root:
            found = digests(self.path, self.files)
        else:
            paths = {name: plain_file(self.root, name) for name in self.files}
            found = {name: sha256_of_file(path) for name, path in paths.items() if path is not None}
        return [name for name, sha256 in self.files.items() if found.get(name) != sha256]

    def unlisted(self) -> set[str]:
        """Return the names of files that its manifest does not list, the manifest itself aside."""
        if self.path != self.root:
            found = member_names(self.path)
        else:
            entries = (path for path in self.root.rglob("*") if path.is_symlink() or not path.is_dir())
            found = {path.relative_to(self.root).as_posix() for path in entries}
        return found - {MANIFEST, *self.files}


@contextmanager
def open_bundle(path: str | Path) -> Iterator[Bundle]:
    """Open a bundle's folder or zip, or the folder of a run.

    What is read of a zip lies in a temporary folder that is gone afterwards.

    Raises:
        ArtefactError: It is none of them, of another version, damaged, or holds what no bundle may hold.
    """
    path = Path(path)
    if not path.exists() and before_replacing(path).is_dir():
        _LOG.warning("'%s' was being replaced when that was interrupted; the bundle before is used.", path)
        path = before_replacing(path)
    if path.is_dir():
        yield _opened(path, path)
        return
    if not path.is_file():
        raise refusal(path, "is not there. Give a bundle's folder or .zip, or the folder of a run.")
    if not zipfile.is_zipfile(path):
        raise refusal(
            path,
            "cannot be read: it is no zip, or a damaged one. Give a bundle's folder or .zip, or the folder of a run; "
            "`dfqkit bundle` makes a bundle of a run.",
        )
    with tempfile.TemporaryDirectory(prefix="dfqkit-bundle-", ignore_cleanup_errors=True) as folder:
        take(path, Path(folder), _READ)
        yield _opened(path, Path(folder))


def before_replacing(path: Path) -> Path:
    """Return where a bundle's folder stands while another takes its place, if the system cannot swap two in a step."""
    return path.with_name(f".{path.absolute().name}.old")


def labels_of(path: Path, classes: int) -> tuple[str, ...]:
    """Return names of classes, one a line.

    Raises:
        ArtefactError: There are more or fewer than classes, or one cannot be shown.
    """
    lines = tuple(line.strip() for line in read_text(path, _MAX_LABELS).splitlines())
    if len(lines) != classes or not all(line and printable(line) for line in lines):
        told = f"has {len(lines)} lines; needed are {classes}, one name for each class, in the order of the outputs,"
        raise refusal(path, f"{told} each with something that can be shown.")
    return lines


def _opened(path: Path, root: Path) -> Bundle:
    manifest = plain_file(root, MANIFEST)
    if manifest is None:
        raise refusal(path, f"has no {MANIFEST}: it is no bundle and no folder of a run. `dfqkit bundle` makes one.")
    facts = read_json(manifest)
    schema, kind = facts.get("schema"), facts.get("kind")
    if schema != SCHEMA or isinstance(schema, bool) or (kind != KIND and "stages" not in facts):
        newer = "A newer dfqkit made it: upgrade." if isinstance(schema, int) and schema > SCHEMA else "Make it again."
        told = f"has a manifest of the kind {kind!r:.40}, schema {schema!r:.40}; read are bundles and runs of schema"
        raise refusal(path, f"{told} {SCHEMA}. {newer}")
    try:
        bundle = _of_bundle(path, root, facts) if kind == KIND else _of_run(path, root, facts)
        _check_files(bundle)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        message = f"The manifest of '{path}' contradicts itself: {type(error).__name__}: {error!s:.200}. Make it again."
        raise ArtefactError(message) from error
    _require_shown(bundle)
    for name in bundle.files:
        plain_file(root, name)  # refuses links before anything is read through one
    model = plain_file(root, MODEL_FILE)
    if model is None or not 0 < model.stat().st_size < MAX_MODEL:
        raise refusal(path, f"has no {MODEL_FILE}, or one that is too large. Finish the run, or copy the bundle again.")
    return bundle


def _of_bundle(path: Path, root: Path, facts: Mapping[str, Any]) -> Bundle:
    return Bundle(
        path=path,
        root=root,
        name=facts["name"],
        target=facts["target"],
        image=ImageSpec.from_dict(facts["image"]),
        teacher={key: facts["teacher"][key] for key in ("name", "sha256")},
        synthesis={key: facts["synthesis"][key] for key in ("method", "data_free", "noise")},
        quant=dict(facts["quant"]),
        command=facts["command"],
        files={str(name): str(entry["sha256"]) for name, entry in facts["files"].items()},
        whole=True,
    )


def _of_run(path: Path, root: Path, facts: Mapping[str, Any]) -> Bundle:
    """Return what a run's manifest, its model's metadata and its report say together."""
    listed = {
        str(name): str(entry["sha256"])
        for stage in facts["stages"].values()
        if stage.get("status") == "complete"
        for name, entry in stage["files"].items()
    }
    if not seal_holds(facts):
        raise refusal(path / MANIFEST, f"was changed since it was written: it does not fit its {SEAL}. Put it back.")
    # Without a sentinel set one is chosen from the images that grade.
    names = _RUN_FILES if SENTINEL_FILE in listed else (*_RUN_FILES, GRADING_FILE)
    files = {name: listed[name] for name in names if name in listed}
    if _SHA256.fullmatch(str(facts["digest"])):
        files[RECIPE_FILE] = facts["digest"]
    if MODEL_FILE not in files or plain_file(root, MODEL_FILE) is None:
        message = f"The run in '{path}' has not exported its model yet. Run `dfqkit run --resume {path}`."
        raise ArtefactError(message)
    others = sorted(name for name in listed if Path(name).match("model.*.onnx"))
    if others:
        told = f"is a run for several targets: it has {', '.join([MODEL_FILE, *others])}, and one is wanted here."
        raise refusal(path, f"{told} Make a run for its target alone, with --set target=NAME.")
    metadata = metadata_in(load_onnx(root / MODEL_FILE, weights=False))
    report_file = plain_file(root, REPORT_FILE)
    report = None if report_file is None else _report_in(report_file)
    method = metadata.get("dfqkit.synthesizer", "")
    told = metadata.get("dfqkit.warnings", "")
    return Bundle(
        path=path,
        root=root,
        name=metadata.get("dfqkit.recipe") or path.resolve().name,
        target=metadata.get("dfqkit.target", DEFAULT_TARGET.name),
        image=ImageSpec.from_dict(parse_json(metadata["dfqkit.image"])),
        teacher={"name": metadata.get("dfqkit.teacher", ""), "sha256": metadata.get("dfqkit.teacher_sha256", "")},
        synthesis={
            "method": method,
            "data_free": None if report is None else report.synthesis.get("data_free"),
            "noise": method == "noise" or "andom noise" in told,  # of a mixture's member, too
        },
        quant=dict(parse_json(metadata.get("dfqkit.quant", "{}"))),
        command=str(facts["facts"].get("command", "")),
        files=files,
        whole=False,
    )


def _report_in(path: Path) -> Report:
    try:
        return Report.from_json(read_text(path))
    except ArtefactError as error:
        raise refusal(path, f"is no report that can be used. {error}") from error


def _check_files(bundle: Bundle) -> None:
    check_names(bundle.files, f"The manifest of '{bundle.path}'")
    for name, sha256 in bundle.files.items():
        if not _SHA256.fullmatch(sha256):
            message = f"the sha256 of {name!r} is {sha256!r:.80}"
            raise ValueError(message)


def _require_shown(bundle: Bundle) -> None:
    """Texts that are shown on terminals and in logs must be plain ones."""
    shown = {
        "name": bundle.name, "target": bundle.target, "command": bundle.command,
        "teacher": bundle.teacher["name"], "teacher_sha256": bundle.teacher["sha256"],
        "method": bundle.synthesis["method"],
    }  # fmt: skip
    for key, text in shown.items():
        if not printable(text) or len(text) > 1000:
            message = f"The manifest of '{bundle.path}' has {key} {text!r:.80}, which is no plain text. Make it again."
            raise ArtefactError(message)
    if bundle.synthesis["data_free"] not in (True, False, None) or not isinstance(bundle.synthesis["noise"], bool):
        message = f"The manifest of '{bundle.path}' has a synthesis that is neither true nor false. Make it again."
        raise ArtefactError(message)
