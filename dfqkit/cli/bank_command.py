"""`dfqkit bank`: what is in a stored set of images, whether it is whole, and its images in other forms."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqkit.cli.options import (
    Commands,
    Parser,
    add_command,
    add_compute_options,
    add_overrides,
    note,
    positive,
    show,
    starting,
    wrote,
)
from dfqkit.cli.running import chosen_recipe
from dfqkit_export.errors import ArtefactError
from dfqkit_export.words import table

if TYPE_CHECKING:
    from dfqkit_export.images.stored import StoredBank

_SET = "folder of a set (`dfqkit synthesize RECIPE --n N --out DIR`), or one file from a run's images folder"


def add(commands: Commands) -> None:
    """Add the command and its verbs."""
    text = "look into a stored set of images, verify or export it"
    parser: Parser = commands.add_parser("bank", help=text, description=f"{text.capitalize()}.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _verb(verbs, "info", "say what is in a set", _info)
    _verb(verbs, "verify", "hash every file of a set and compare with its list", _verify)
    export = _verb(verbs, "export", "write a set's images in another form", _export)
    form = export.add_mutually_exclusive_group(required=True)
    form.add_argument("--npz", type=Path, metavar="FILE", help="images uint8 NHWC, answers and labels in one npz")
    form.add_argument("--png", type=Path, metavar="FOLDER", help="new folder with CLASS/INDEX.png")
    sheet = _verb(verbs, "sheet", "draw a set's images, one row a class, with the teacher's confidence", _sheet)
    sheet.add_argument("--out", type=Path, metavar="FILE", default=Path("sheet.png"), help="(default: sheet.png)")
    rank = add_command(verbs, "rank", _rank, "sort sets of images by how near a teacher's BatchNorm layers find them")
    rank.add_argument("recipe", metavar="RECIPE", help="a recipe, whose teacher, image and validate sections are used")
    text = "images in any form that validate.data takes; a folder of pictures, an .npz, a .zip"
    rank.add_argument("images", nargs="+", metavar="IMAGES", help=text)
    text = "so many of each, evenly spread; all sets have as many, or the smaller ones seem farther (default: 256)"
    rank.add_argument("--limit", type=positive, default=256, metavar="N", help=text)
    add_overrides(rank, "change one value of the recipe, such as teacher.weights=FILE; may be given several times")
    add_compute_options(rank)
    rank.set_defaults(seed=None)


def _verb(verbs: Commands, name: str, text: str, handler: Any) -> Parser:
    parser = add_command(verbs, name, handler, text)
    parser.add_argument("path", type=Path, metavar="DIR", help=_SET)
    return parser


def _info(args: argparse.Namespace) -> int:
    facts = described(_opened(args))
    rows = [(name.replace("_", " "), _shown(value)) for name, value in facts.items() if value is not None]
    show(args, facts, table(rows))
    return 0


def described(images: StoredBank) -> dict[str, Any]:
    """Return what one wants to know of a set before using it; None where it does not say."""
    from dfqkit_export.tasks.answering import grouped

    groups = grouped(images)
    counts, confidence = groups.counts, groups.confidence
    sorted_by: dict[str, Any] = {}
    if groups.one:
        each = {"least": int(counts.min()), "mean": float(counts.mean()), "most": int(counts.max())}
        empty = int((counts == 0).sum())
        sorted_by = {groups.many: groups.count, f"empty_{groups.many}": empty, f"images_a_{groups.one}": each}
    facts, teacher = images.facts, images.facts.get("teacher", {})
    return {
        "images": len(images),
        "unfinished": None if images.complete else f"{images.wanted} were asked for",
        "shape": list(images.spec.shape),
        **sorted_by,
        "teacher_confidence": round(float(confidence.mean()), 4) if len(images) and confidence is not None else None,
        "source": images.source,
        "real_data": facts.get("real_data", "unknown"),
        "teacher": teacher.get("name"),
        "teacher_sha256": images.teacher,
        "seed": facts.get("seed"),
        "cost_in_teacher_passes": facts.get("cost"),
        "command": facts.get("command"),
        "files": len(images.shards),
        "digest": images.digest,
        "warnings": facts.get("warnings") or None,
    }


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:g}" for name, number in value.items())
    if isinstance(value, list):
        return ("\n" if value and isinstance(value[0], str) else "x").join(map(str, value))
    return str(value)


def _verify(args: argparse.Namespace) -> int:
    images = _opened(args)
    images.verify()
    unfinished = "" if images.complete else f" (unfinished: {images.wanted} were asked for)"
    what = "as they were written" if images.facts else "readable; a lone file has no list to compare with"
    text = f"ok: {len(images)} images in {len(images.shards)} file(s), {what}{unfinished}"
    show(args, {"images": len(images), "files": len(images.shards), "complete": images.complete}, text)
    return 0


def _export(args: argparse.Namespace) -> int:
    from dfqkit.images.exports import write_class_folders, write_npz
    from dfqkit_export.tasks.answering import grouped

    images = _with_images(args)
    if args.npz is not None:
        write_npz(images, args.npz)
    else:
        write_class_folders(images, args.png)
        groups = grouped(images)
        missing = int((groups.counts == 0).sum())
        if missing:
            note(
                f"{missing} of {groups.count} {groups.many} have no images and no folder: a folder's name is its "
                f"{groups.one}, not its place among the folders."
            )
    out = str(args.npz or args.png)
    wrote(args, {"path": out, "images": len(images)}, f"Wrote {len(images)} images to {out}")
    return 0


def _sheet(args: argparse.Namespace) -> int:
    from dfqkit.images.sheet import contact_sheet
    from dfqkit_export.files import write_bytes

    write_bytes(args.out, contact_sheet(_with_images(args)))
    wrote(args, {"path": str(args.out)}, f"Wrote {args.out}")
    return 0


def _rank(args: argparse.Namespace) -> int:
    recipe = chosen_recipe(args)
    starting(args)
    import torch

    from dfqkit.run.context import resolve_device, teacher_of
    from dfqkit.teacher.proxies import batchnorm_distance
    from dfqkit_export.images.labelled import load_images

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    teacher, device, section = teacher_of(recipe), resolve_device(args.device or "auto"), recipe.validation
    teacher.model.to(device)
    found = []
    for source in args.images:
        images = load_images(source, teacher.image, resize=section.resize, crop=section.crop, limit=args.limit)
        batches = (torch.from_numpy(each).to(device) for each in images.batches(teacher.image, recipe.bank.batch))
        found.append({"images": source, "n": len(images), "distance": batchnorm_distance(teacher, batches)})
    found.sort(key=lambda row: row["distance"])
    rows = [(str(row["images"]), str(row["n"]), f"{row['distance']:.4f}") for row in found]
    rows.insert(0, ("images, the nearest first", "n", "distance, nats a channel"))
    show(args, {"teacher": teacher.name, "sets": found}, table(rows))
    return 0


def _opened(args: argparse.Namespace) -> StoredBank:
    from dfqkit_export.images.stored import StoredBank

    return StoredBank.open(args.path)


def _with_images(args: argparse.Namespace) -> StoredBank:
    """Open a set; of an unfinished one say what is missing and what completes it, and refuse it while it is empty."""
    images = _opened(args)
    if not images.complete:
        command = f"{images.facts.get('command', 'dfqkit synthesize ...')} --out {shlex.quote(str(args.path))}"
        message = (
            f"'{args.path}' is unfinished: {len(images)} of {images.wanted} images are there. What began it completes "
            f"it: `{command}`"
        )
        if not len(images):
            raise ArtefactError(message)
        note(f"warning: {message}")
    return images
