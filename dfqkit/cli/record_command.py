"""`dfqkit record`: what a teacher makes of its training images, kept for the day when they are gone."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from dfqkit.cli.options import (
    Commands,
    add_command,
    add_compute_options,
    add_overrides,
    note,
    positive,
    show,
    starting,
)
from dfqkit.cli.running import chosen_recipe
from dfqkit_export.images import TORCHVISION

_DESCRIPTION = (
    "Make activation records: per class, mean and covariance of every layer's output on labelled training images. Run "
    "it where the images still are; the file holds no image, and is all that `synthesis.method: metadata` needs "
    "instead of them. It belongs to these weights alone."
)


def add(commands: Commands) -> None:
    """Add the command."""
    text = "record activations where the data still is"
    parser = add_command(commands, "record", _record, text, _DESCRIPTION)
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe, whose teacher and image sections are used")
    parser.add_argument(
        "--data",
        required=True,
        metavar="IMAGES",
        help="labelled training images: .npz, .zip with labels.csv, or class folders; a relative path may lie under "
        "DFQKIT_ASSETS. Not the images that a result is measured on. Resized and cropped as the recipe's validate "
        "section says",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, such as records.safetensors")
    parser.add_argument("--per-class", type=positive, metavar="N", help="read only the first N images of every class")
    text = "layers with more units keep variances, no covariance (default: 1024)"
    parser.add_argument("--diagonal-above", type=positive, default=1024, metavar="N", help=text)
    add_overrides(parser, "change one value of the recipe, such as teacher.weights=FILE; may be given several times")
    add_compute_options(parser)
    parser.set_defaults(seed=None)


def _record(args: argparse.Namespace) -> int:
    recipe = chosen_recipe(args)
    out = Path(args.out)
    if out.suffix != ".safetensors":
        args.parser.error(f"--out takes a .safetensors file, found '{args.out}'")
    if args.data.startswith(TORCHVISION):
        args.parser.error("--data takes training images, and torchvision:NAME:ROOT is a test split: give an .npz")

    starting(args)
    import torch

    from dfqkit.progress import Progress
    from dfqkit.records.recording import RecordOptions, record
    from dfqkit.run.context import resolve_device, teacher_of
    from dfqkit.run.disclosure import measured_on
    from dfqkit_export.images.labelled import load_images

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    teacher = teacher_of(recipe)
    source = _found(args.data)
    if measured_on(recipe, source.resolve()):
        note(f"warning: '{source}' is what the recipe measures on; with records of it, that measures nothing.")
    section = recipe.validation
    images = load_images(source, teacher.image, resize=section.resize, crop=section.crop)
    teacher.model.to(resolve_device(args.device or "auto"))
    options = RecordOptions(diagonal_above=args.diagonal_above)
    total = min(len(images), (args.per_class or len(images)) * teacher.image.classes)
    with Progress(quiet=args.quiet).stage("record", total=total) as bar:
        records = record(teacher, images, options, per_class=args.per_class, advance=bar.advance)
    size = records.save(out)
    least, most = int(records.counts.min()), int(records.counts.max())
    show(
        args,
        {"path": str(out), "layers": len(records.layers), "pairs": len(records.pairs), "bytes": size},
        f"{out}: {len(records.layers)} layers and {len(records.pairs)} pairs of '{teacher.name}', {least} to {most} "
        f"images of each of {len(records.counts)} classes, {size / 1000:.0f} kB",
    )
    return 0


def _found(name: str) -> Path:
    """Return the path itself, or under ``DFQKIT_ASSETS``; reading it says what is wrong where neither exists."""
    path, assets = Path(name), os.environ.get("DFQKIT_ASSETS")
    if path.exists() or path.is_absolute() or not assets:
        return path
    within = Path(assets) / name
    return within if within.exists() else path
