"""Contact sheets of a run's report: one for each stored set of images."""

from __future__ import annotations

from pathlib import Path

from dfqkit.images.sheet import SheetForm, contact_sheet
from dfqkit_export.images.stored import ImageSet

#: Smaller than those of `dfqkit bank sheet`: a page holds several, and they are part of its file.
_FORM = SheetForm(columns=12, rows=20, most=96)


def contact_sheets(folder: Path) -> dict[str, bytes]:
    """One PNG a stored set, by its caption: a row for each class, so that a missing one shows."""
    sheets = {}
    for file in sorted(folder.glob("*.safetensors")):
        images = ImageSet.open(file)
        labels, confidence = images.answers()
        caption = f"{images.source}: {len(images)} images, mean teacher confidence {float(confidence.mean()):.2f}"
        empty = images.spec.classes - len(set(labels.tolist()))
        if empty:
            caption += f", {empty} of {images.spec.classes} classes without any"
        sheets[caption] = contact_sheet(images, _FORM)
    return sheets
