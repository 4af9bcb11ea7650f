"""`dfqkit inspect`: what a teacher offers, and which methods apply, before any compute is spent."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from .options import Parser, positive, result

if TYPE_CHECKING:
    from ..teacher import Teacher
    from .options import Commands

_DESCRIPTION = (
    "Load a model, verify it, and say what it offers: BatchNorm statistics, a linear head, operators, whether "
    "torch.export captures it and where it breaks, and which synthesizers apply. Takes a recipe, or a factory with the "
    "shape of its images and its number of classes."
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser: Parser = commands.add_parser(
        "inspect", help="say what a model offers before computing", description=_DESCRIPTION
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a recipe, whose teacher is inspected")
    parser.add_argument("--factory", help="torchvision:NAME, timm:NAME or package.module:factory, instead of RECIPE")
    parser.add_argument("--shape", type=_integers, metavar="C,H,W", help="channels, height and width of an image")
    parser.add_argument("--classes", type=positive, metavar="N", help="number of classes")
    parser.add_argument("--weights", metavar="FILE", help=".safetensors, .pt or .pth (default: random weights)")
    parser.add_argument("--mean", type=_numbers, metavar="M,...", help="mean per channel, on [0, 1] (default: 0)")
    parser.add_argument("--std", type=_numbers, metavar="S,...", help="deviation per channel, on [0, 1] (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.set_defaults(handler=_inspect, parser=parser)


def _inspect(args: argparse.Namespace) -> int:
    _check(args)
    teacher = _from_factory(args) if args.factory else _from_recipe(args)

    from ..inspection import inspect_teacher

    facts = inspect_teacher(teacher)
    result(json.dumps({"schema": 1, **facts.to_dict()}, indent=2) if args.json else facts.render_text())
    return 0


def _check(args: argparse.Namespace) -> None:
    if bool(args.recipe) == bool(args.factory):
        args.parser.error("give either a RECIPE or --factory with --shape and --classes")
    about = {"--shape": args.shape, "--classes": args.classes}
    missing = [name for name, value in about.items() if value is None]
    if args.factory and missing:
        args.parser.error(f"--factory needs {' and '.join(missing)}, such as --shape 3,224,224 --classes 1000")
    about |= {"--weights": args.weights, "--mean": args.mean, "--std": args.std}
    extra = [name for name, value in about.items() if value is not None]
    if args.recipe and extra:
        args.parser.error(f"the recipe says this itself: leave out {', '.join(extra)}")


def _from_recipe(args: argparse.Namespace) -> Teacher:
    from ..recipe import load_recipe
    from ..run.stages import teacher_of

    return teacher_of(load_recipe(args.recipe))


def _from_factory(args: argparse.Namespace) -> Teacher:
    from dfqkit_export.images import ImageSpec

    from ..teacher import load_teacher

    channels = args.shape[0]
    image = ImageSpec(
        shape=args.shape, mean=args.mean or (0.0,) * channels, std=args.std or (1.0,) * channels, classes=args.classes
    )
    return load_teacher(args.factory, image, args.weights)


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        msg = f"takes integers with commas between them, such as 3,224,224; found '{text}'"
        raise argparse.ArgumentTypeError(msg) from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        msg = f"takes numbers with commas between them, such as 0.485,0.456,0.406; found '{text}'"
        raise argparse.ArgumentTypeError(msg) from None
