"""Where each image of a bundle came from, and the refusal to ship pictures of real data.

What belongs here: `Origins`, what a run knows of real data, and comparing a bundle's images with it. How near a copy is
to its picture is `images.likeness`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.bundle.entries import read_json
from dfqkit_export.bundle.reading import MANIFEST, Bundle
from dfqkit_export.errors import ArtefactError, DfqkitError
from dfqkit_export.images.label_kinds import is_kind, resolved
from dfqkit_export.images.labelled import load_images
from dfqkit_export.images.likeness import copied
from dfqkit_export.sentinel import Sentinel
from dfqkit_export.words import some

SYNTHETIC, REAL, UNKNOWN = "synthetic", "real", "unknown"
#: Names of the section of a recipe whose data are validated with.
_VALIDATING = frozenset({"validate", "validation"})
_PREPARED = ("resize", "crop")
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class RealSet:
    """Images of real data: where they are, and how they become what the model takes."""

    path: str
    options: Mapping[str, int]

    @property
    def name(self) -> str:
        """What it is called, without folders."""
        return Path(self.path).name or self.path


@dataclass(frozen=True, kw_only=True)
class Origins:
    """Where images came from.

    Attributes:
        names: "synthetic:METHOD", "real:NAME" or "unknown:METHOD".
        of: Which of them, for each image of the sentinel set.
        compared: Names of the sets of real data that the images were compared with.
    """

    names: tuple[str, ...]
    of: NDArray[np.int64]
    compared: tuple[str, ...]

    def to_dict(self, samples: Sequence[int]) -> dict[str, Any]:
        """Return what the manifest says, with the places in the sentinel set of the images that are samples."""
        each = [int(place) for place in self.of]
        return {
            "origins": list(self.names),
            "sentinel": each,
            "samples": [each[place] for place in samples],
            "compared_with": list(self.compared),
        }


def origins_of(run: Bundle, sentinel: Sentinel, *, given: Sequence[str] = (), synthetic_only: bool = False) -> Origins:
    """Say where each image of a sentinel set came from.

    Args:
        run: The run that is bundled; its recipe and its report say what real data took part.
        sentinel: The set.
        given: Sets of real data beside those that the recipe names.
        synthetic_only: Whether to refuse anything that is not known to be synthetic.

    Raises:
        ArtefactError: A set that was given cannot be read; or `synthetic_only`, and an image is a picture of real data
            or nearly one, its origin is not known, or a set that the recipe names cannot be read.
    """
    report = run.report
    data_free, told = run.synthesis.get("data_free"), str(report.synthesis.get("real_data") or "") if report else ""
    # A start from images leaves nothing of them in images that grade, which start from noise.
    drawn = data_free is None or ("images" in told and "as a start" not in told)
    kinds = [(UNKNOWN if drawn else SYNTHETIC) for _ in sentinel.sources]
    labels = [f"{kind}:{source.partition(':')[0]}" for kind, source in zip(kinds, sentinel.sources, strict=True)]
    each = [labels[place] for place in sentinel.source]
    spec = replace(sentinel.spec, classes=2**31)  # labels do not count, so none is too high
    known = _known(run) if synthetic_only or drawn else []
    compared, unread = [], ["what the recipe names, which cannot be read"] if known is None else []
    asked = [RealSet(path=path, options={}) for path in given]
    for real in (*asked, *(known or ())):
        wanted = real in asked
        if not (synthetic_only or drawn or wanted):
            continue
        try:
            place = _found(run, real.path)
            if _is_bank(place):
                continue  # made images; what went into them their method says
            pixels = load_images(place, spec, **real.options).images
        except DfqkitError as error:
            if wanted:
                raise
            unread.append(f"{real.name} ({error})")
            continue
        compared.append(real.name)
        for index in np.flatnonzero(copied(sentinel.images, np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))):
            each[int(index)] = f"{REAL}:{real.name}"
    names = tuple(dict.fromkeys(each))
    found = Origins(names=names, of=np.array([names.index(one) for one in each]), compared=tuple(compared))
    if synthetic_only:
        _require_synthetic(found, unread)
    return found


def _require_synthetic(found: Origins, unread: Sequence[str]) -> None:
    problems = []
    for index, name in enumerate(found.names):
        count = int((found.of == index).sum())
        if name.startswith(f"{REAL}:"):
            problems.append(
                f"{count} of its {len(found.of)} images are pictures of {name.partition(':')[2]}, or nearly"
            )
        elif name.startswith(f"{UNKNOWN}:"):
            problems.append(f"{count} images are of {name.partition(':')[2]}, which may have drawn them from real data")
    problems += [f"they could not be compared with {text}" for text in unread[:_SHOWN]]
    if problems:
        message = (
            f"Not shipped as synthetic only: {some(problems, _SHOWN, '; ')}. Choose a sentinel set of images that a "
            "method made from the teacher alone (`dfqkit sentinel`) and give it with --sentinel, put missing data "
            "where the recipe names it, or leave out --synthetic-only."
        )
        raise ArtefactError(message)


def _known(run: Bundle) -> list[RealSet] | None:
    """Return the sets of images that a run's recipe names, whatever part they play; None where it cannot be read."""
    if not run.recipe:
        return []
    import yaml

    try:
        found = list(_named(yaml.safe_load(run.recipe)))
    except (yaml.YAMLError, RecursionError):
        return None
    return list({(one.path, *sorted(one.options.items())): one for one in found}.values())


def _named(section: Any, name: str = "") -> Iterator[RealSet]:
    """Yield the images that a section of a recipe names: those to validate with, to draw from, to start from."""
    if isinstance(section, list):
        for item in section:
            yield from _named(item, name)
    if not isinstance(section, dict):
        return
    options = {key: section[key] for key in _PREPARED if isinstance(section.get(key), int)}
    here = {"data": name in _VALIDATING, "path": "method" in section, "start_from": True}
    for key, value in section.items():
        if here.get(key) and value and isinstance(value, str):
            yield RealSet(path=value, options=options)
        yield from _named(value, str(key))


def _is_bank(path: str) -> bool:
    """Whether a path is of a stored set of made images, which says itself what it is made of."""
    return path.endswith((".safetensors", ".json")) or (Path(path) / MANIFEST).is_file()


def _found(run: Bundle, path: str) -> str:
    """Return where a file of a recipe lies: as it is named, beside the recipe, in DFQKIT_ASSETS."""
    if is_kind(path):
        return resolved(path, lambda name: Path(_found(run, name)))
    manifest = run.root / MANIFEST
    facts = read_json(manifest).get("facts", {}) if manifest.is_file() else {}
    folders = [facts.get("recipe_dir"), os.environ.get("DFQKIT_ASSETS")]
    places = [Path(folder) / path for folder in folders if folder]
    return next((str(place) for place in places if place.exists()), path)
