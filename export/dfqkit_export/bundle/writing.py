"""Writing a bundle from a run.

What belongs here: which files are taken or made, the manifest, and the folder or zip that they become.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqkit_export._version import __version__
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.bundle import reading
from dfqkit_export.bundle.archive import zipped
from dfqkit_export.bundle.card import model_card
from dfqkit_export.bundle.entries import plain_file, refusal
from dfqkit_export.bundle.origins import origins_of
from dfqkit_export.bundle.samples import sample_files, sample_places
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import exchange, sync_folder, write_bytes
from dfqkit_export.images.stored import StoredBank
from dfqkit_export.sentinel import (
    SENTINEL_FILE,
    Sentinel,
    TeacherFile,
    candidates_of,
    choose,
    read_sentinel,
    sentinel_bytes,
)
from dfqkit_export.tasks import entry_of

_CARD = "MODEL_CARD.md"
_USED = ("images/calibration.safetensors", "images/held_out.safetensors")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is bundled, and where it goes.

    Attributes:
        run: The folder of a run whose model is exported.
        out: A folder, new, empty or that of an older bundle; or a file that ends in ``.zip``.
        labels: Names of the classes, one a line.
        sentinel: A sentinel set in place of the run's own.
        real: Sets of real data, as `load_images` reads them, beside those that the run's recipe names.
        synthetic_only: Whether to refuse images that are pictures of real data, or nearly, or of unknown origin.
    """

    run: Path
    out: Path
    labels: Path | None = None
    sentinel: Path | None = None
    real: tuple[str, ...] = ()
    synthetic_only: bool = False


def write_bundle(order: Order) -> dict[str, int]:
    """Write a bundle, there whole or not at all; equal runs give equal bytes.

    Returns:
        Its files and their sizes in bytes.

    Raises:
        ArtefactError: The run is not complete or was changed, has no images to check with, or something else is where
            the bundle should go; or real data stands against `Order.synthetic_only`.
    """
    with reading.open_bundle(order.run) as run:
        if damaged := run.damaged():
            message = (
                f"{', '.join(damaged)} of '{order.run}' is not as the run left it. Put the original back, or delete it "
                f"and run `dfqkit run --resume {order.run}`, which makes it again."
            )
            raise ArtefactError(message)
        return write_files(run, order)


def write_files(run: reading.Bundle, order: Order) -> dict[str, int]:
    """Write the bundle of what is opened; see `write_bundle`."""
    if order.out.absolute().name and not order.out.is_symlink() and order.out.suffix.lower() != ".zip":
        _clean(order.out.absolute())
    _require_free(order.out)
    files = _files(run, order)
    if order.out.suffix.lower() == ".zip":
        write_bytes(order.out, zipped(files))
    else:
        _write_folder(order.out, files)
    return {name: len(data) for name, data in sorted(files.items())}


def _files(run: reading.Bundle, order: Order) -> dict[str, bytes]:
    sentinel = _sentinel(run, order)
    files = {reading.MODEL_FILE: run.model.read_bytes(), SENTINEL_FILE: sentinel_bytes(sentinel)}
    for name in (reading.REPORT_FILE, reading.RECIPE_FILE):
        if path := plain_file(run.root, name):
            files[name] = path.read_bytes()
    if order.labels is not None:
        labels = reading.labels_of(order.labels, run.image.classes)
        files[reading.LABELS_FILE] = ("\n".join(labels) + "\n").encode()
    session = OrtSession(run.model)
    files.update(sample_files(session, sentinel, run.target))
    origins = origins_of(run, sentinel, given=order.real, synthetic_only=order.synthetic_only)
    manifest: dict[str, Any] = {
        "schema": reading.SCHEMA,
        "kind": reading.KIND,
        "name": run.name,
        "target": run.target,
        "dfqkit": __version__,
        "image": run.image.to_dict(),
        **entry_of(run.task),
        "teacher": dict(run.teacher),
        "synthesis": dict(run.synthesis),
        "quant": dict(run.quant),
        "command": run.command,
        "images": origins.to_dict([int(place) for place in sample_places(session, sentinel)]),
    }
    files[_CARD] = model_card(manifest, run.report, sentinel).encode()
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in sorted(files.items())
    }
    files[reading.MANIFEST] = (json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    return files


def _sentinel(run: reading.Bundle, order: Order) -> Sentinel:
    """Return the set that was given, the run's own, or one made of the run's grading images."""
    found = run.sentinel if order.sentinel is None else read_sentinel(order.sentinel)
    if found is None:
        grading, teacher = (plain_file(run.root, name) for name in (reading.GRADING_FILE, reading.TEACHER_FILE))
        if grading is None or teacher is None:
            message = (
                f"'{order.run}' has no {SENTINEL_FILE}, and no {reading.GRADING_FILE} to choose one from. Choose one "
                f"from other images with `dfqkit sentinel --model {run.model} --teacher ... --images SET --out F`, and "
                "give it with --sentinel F."
            )
            raise ArtefactError(message)
        used = [path for name in _USED if (path := plain_file(run.root, name)) is not None]
        candidates = candidates_of([StoredBank.open(grading)], [StoredBank.open(path) for path in used])
        source = TeacherFile(path=teacher, name=run.teacher["name"], sha256=run.teacher["sha256"])
        return choose(run.model, source, candidates)
    if found.spec != run.image or found.task != run.task:
        message = f"The sentinel set is of {found.spec}, the model takes {run.image}. Give one made for this model."
        raise ArtefactError(message)
    return found


def _require_free(out: Path) -> None:
    """Refuse to replace anything but an older bundle that nobody has added to."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() or out.is_file())):
        raise refusal(out, "is a link, or neither a file nor a folder. Choose another place with --out.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    hint = "Choose another place with --out, or delete it."
    if out.is_dir() == (out.suffix.lower() == ".zip"):
        raise refusal(out, f"is there already, and is not what would replace it. {hint}")
    try:
        with reading.open_bundle(out) as bundle:
            changed = [*bundle.damaged(), *bundle.unlisted()]  # a run's folder always has files that are not listed
    except ArtefactError as error:
        raise refusal(out, f"is there already, and is no bundle ({error}) {hint}") from error
    if changed:
        named = ", ".join(sorted(changed)[:5])
        raise refusal(out, f"is there already and is not a bundle as it was written: {named}. {hint}")


def _write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder beside and put it in its place; whatever a kill leaves, `open_bundle` finds a whole one."""
    out = out.absolute()
    temporary, old = out.with_name(f".{out.name}.part"), reading.before_replacing(out)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        for name, data in files.items():
            write_bytes(temporary / name, data)
        if not out.exists():
            temporary.replace(out)
        elif not exchange(temporary, out):
            out.replace(old)
            temporary.replace(out)
        sync_folder(out.parent)
    except OSError as error:
        message = f"Cannot write '{out}': {error.strerror or error}. Free space, or choose another place with --out."
        raise ArtefactError(message) from error
    finally:
        _clean(out)


def _clean(out: Path) -> None:
    """Put back a bundle whose replacing was interrupted, and remove what else that left."""
    temporary, old = out.with_name(f".{out.name}.part"), reading.before_replacing(out)
    if old.exists() and not out.exists():
        old.replace(out)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
