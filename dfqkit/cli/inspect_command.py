"""`dfqkit inspect`: what a teacher offers before any compute is spent, or what an ONNX file is and lacks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dfqkit.cli.options import (
    Commands,
    add_command,
    add_image,
    add_untrusted,
    image_given,
    note,
    show,
)

if TYPE_CHECKING:
    from dfqkit.teacher.load import Teacher

_DESCRIPTION = (
    "Of a model (a recipe's teacher, or a factory with the shape of its images and its number of classes): BatchNorm "
    "statistics, a linear head, what its outputs are taken for, operators, whether torch.export captures it and where "
    "it breaks, and which "
    "synthesizers apply. Of an ONNX file, whoever made it: how it is quantized, what a target would refuse or run "
    "slowly, and, with --runtime, which layers a runtime really computes in integers."
)
_EPILOG = """\
exit codes of an ONNX file: 0 where the target takes it or it is a float file that is only looked at, 1 where the
checker has errors, 2 where the file cannot be used at all, 3 where a runtime of --runtime is absent
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "inspect", _inspect, "say what a model offers, or what an ONNX file is", _DESCRIPTION, _EPILOG
    )
    parser.set_defaults(foreign=_is_file)
    parser.add_argument(
        "subject", nargs="?", metavar="RECIPE|FILE", help="a recipe, whose teacher is inspected, or a file FILE.onnx"
    )
    add_untrusted(parser)
    model = parser.add_argument_group("a model")
    text = "torchvision:NAME, timm:NAME, onnx:FILE, FILE.py:factory or package.module:factory, instead of RECIPE"
    model.add_argument("--factory", help=text)
    model.add_argument("--weights", metavar="FILE", help=".safetensors, .pt or .pth (default: random weights)")
    add_image(model, "0 and 1")
    file = parser.add_argument_group("an ONNX file")
    file.add_argument(
        "--target", metavar="NAME", help="what to check it for (default: what it was made for, else onnxruntime)"
    )
    file.add_argument("--fix", metavar="OUT", help="write it there with every repair that changes no value")
    text = "load it there and say what each layer runs as; may be given several times"
    file.add_argument("--runtime", metavar="NAME", action="append", default=[], help=text)


def _inspect(args: argparse.Namespace) -> int:
    _check(args)
    if _is_file(args):
        from dfqkit.cli.file_inspection import inspect_file

        return inspect_file(args.subject, args.target, args.fix, args.runtime, as_json=args.json)
    from dfqkit.cli.running import read_recipe
    from dfqkit.run.context import teacher_of
    from dfqkit.students.preflight import examine
    from dfqkit.teacher.inspection import inspect_teacher

    teacher = _from_factory(args) if args.factory else teacher_of(read_recipe(args, args.subject))
    facts = inspect_teacher(teacher, examine)
    show(args, facts.to_dict(), facts.render_text())
    return 0


def _is_file(args: argparse.Namespace) -> bool:
    return bool(args.subject) and args.subject.lower().endswith(".onnx")


def _check(args: argparse.Namespace) -> None:
    if bool(args.subject) == bool(args.factory):
        args.parser.error("give either a RECIPE or --factory with --shape and --classes, or a FILE.onnx")
    about = {**image_given(args), "weights": args.weights, "weights_key": args.weights_key, "task": args.task}
    extra = [f"--{name.replace('_', '-')}" for name, value in about.items() if value is not None]
    if args.untrusted and (args.factory or _is_file(args)):
        args.parser.error("--untrusted goes with a RECIPE")
    if args.subject and extra:
        what = "the file" if _is_file(args) else "the recipe"
        args.parser.error(f"{what} says this itself: leave out {', '.join(extra)}")
    of_files = {"--target": args.target, "--fix": args.fix, "--runtime": args.runtime}
    given = [name for name, value in of_files.items() if value]
    if given and not _is_file(args):
        args.parser.error(f"{', '.join(given)} goes with an ONNX file, whose name ends in .onnx")


def _from_factory(args: argparse.Namespace) -> Teacher:
    from dfqkit.config.files import find_file
    from dfqkit.config.image_of_model import image_values, require_values
    from dfqkit.teacher.load import load_teacher
    from dfqkit.teacher.sources import located
    from dfqkit_export.errors import RecipeError
    from dfqkit_export.images.spec import ImageSpec
    from dfqkit_export.tasks import task_of

    given = image_given(args)
    try:
        image = ImageSpec.from_dict(require_values(args.factory, given, usual=True))
    except RecipeError as error:
        args.parser.error(str(error))
    task = task_of(args.task) if args.task else None
    factory = located(args.factory, lambda name: find_file(name, Path.cwd()))
    teacher = load_teacher(factory, image, args.weights, weights_key=args.weights_key, task=task)
    known = [key for key in image_values(args.factory, {}) if given.get(key, "") is None]
    if known:
        note(f"{', '.join(known)} are what the library says of {args.factory}: {image.to_dict()}")
    return teacher
