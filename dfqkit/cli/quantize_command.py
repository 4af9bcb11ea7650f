"""`dfqkit quantize`: from a checkpoint, or a file with a whole network, to an int8 file and its report."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqkit.cli.options import (
    Commands,
    Parser,
    add_cluster_options,
    add_command,
    add_compute_options,
    add_image,
    add_overrides,
    add_steering,
    add_yes,
    image_given,
    natural,
    note,
    starting,
)
from dfqkit.cli.running import begin, carry_out, only_planned, show_reports
from dfqkit.config.files import CHECKPOINTS, WHOLE
from dfqkit.run.stages import STAGES
from dfqkit_export.backends import DEFAULT_TARGET
from dfqkit_export.words import did_you_mean

if TYPE_CHECKING:
    from dfqkit.config.recipe import Recipe
    from dfqkit.teacher.load import Teacher

_DESCRIPTION = (
    "Quantize a trained network of your own without its data and measure the file in the runtime: dfqkit.quantize as a "
    "command. What timm and torchvision say of their networks' images needs not be said. The run's folder keeps the "
    "recipe that was run (recipe.yaml), from which `dfqkit run` goes on. Prints the report; the exit code is 1 where "
    "the verdict is `failed`."
)
#: The bits that a file has where nobody says others.
BITS = "w8a8"
#: What may be given as a model.
MODELS = (
    f"a checkpoint ({', '.join(CHECKPOINTS[:3])}) with --factory; or what holds a whole network: FILE.onnx, FILE.pt2, "
    "torchscript:FILE.pt; or a factory itself, with --no-weights"
)


def add(commands: Commands) -> None:
    """Add the command."""
    text = "make an int8 file of a checkpoint or an ONNX file"
    parser = add_command(commands, "quantize", _quantize, text, _DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help=MODELS)
    add_recipe_arguments(parser)
    text = "new or empty folder for everything the run makes (default: runs/MODEL/BITS-TARGET/TIME-HASH)"
    parser.add_argument("--out", metavar="DIR", help=text)
    add_compute_options(parser)
    add_cluster_options(parser, "target, candidate of a ladder and share of the images that grade")
    add_yes(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and the recipe; write nothing")


def add_recipe_arguments(parser: Parser) -> None:
    """Add the options of which, beside `model`, `recipe_of` makes a recipe."""
    text = "what makes the checkpoint's network: FILE.py:function, package.module:function (installed, or of the "
    text += "working directory), timm:NAME or torchvision:NAME"
    parser.add_argument("--factory", help=text)
    text = "take the network as the factory makes it, with weights that it loads itself, or else random ones"
    parser.add_argument("--no-weights", action="store_true", help=text)
    add_image(parser.add_argument_group("what it takes and gives"), "asked for")
    parser.add_argument("--bits", default=BITS, help=f"of weights and activations, such as w4a8 (default: {BITS})")
    text = f"where the file is to run, of `dfqkit list targets` (default: {DEFAULT_TARGET.name})"
    text += "; several with commas between them: one synthesis, a file and a report each"
    parser.add_argument("--target", default=DEFAULT_TARGET.name, metavar="NAME,...", help=text)
    text = "where images come from, of `dfqkit list synthesizers` (default: the first that the network has enough for)"
    parser.add_argument("--method", metavar="NAME", help=text)
    text = "pictures like those that it is for, without labels, which calibrate it; drawn ones where they are too few"
    parser.add_argument("--images", metavar="DIR", help=text)
    text = "labelled images, which only measure: .npz, class folders, .zip, coco:FILE:FOLDER and others"
    parser.add_argument("--data", metavar="DATA", help=text)
    parser.add_argument("--seed", type=natural, metavar="N", help="seed of the run (default: 0)")
    add_overrides(parser, "set a value of the recipe, such as bank.calibration=256; may be given several times")
    add_steering(parser)


def _quantize(args: argparse.Namespace) -> int:
    started = time.monotonic()
    recipe, loaded = recipe_of(args)
    if args.dry_run:
        return only_planned(args, recipe, loaded)
    work = begin(args, recipe, validates=True, teacher=loaded, command=["dfqkit", *args.words])
    path = work.folder.path
    carry_out(work, STAGES, args, resume=shlex.join(["dfqkit", "run", "--resume", str(path)]))
    code = show_reports(work, started, args)
    note(f"Next: dfqkit bundle {shlex.quote(str(path))} --out model.zip")
    return code


def recipe_of(args: argparse.Namespace) -> tuple[Recipe, Teacher]:
    """Return the recipe that the arguments ask for, and its teacher, which is loaded."""
    factory, weights = factory_and_weights(args)
    starting(args)
    from dfqkit.api import prepare

    teacher: dict[str, Any] = {} if weights is None and not args.no_weights else {"weights": weights}
    if args.weights_key is not None:
        teacher["weights_key"] = args.weights_key
    options: dict[str, Any] = {"name": f"{Path(args.model).stem}/{args.bits}-{args.target}", "teacher": teacher}
    options["why"] = "made by dfqkit quantize"
    if args.seed is not None:
        options["seed"] = args.seed
    if args.data is not None:
        options["validate"] = {"data": _found(args.data)}
    return prepare(
        factory,
        image=image_given(args),
        bits=args.bits,
        target=args.target.split(","),
        task=args.task,
        method=args.method,
        images=None if args.images is None else _found(args.images),
        options=options,
        overrides=args.overrides,
    )


def factory_and_weights(args: argparse.Namespace) -> tuple[str, str | None]:
    """Return the factory string that is meant, and the file of its weights where there is one."""
    model, suffix = args.model, Path(args.model).suffix.lower()
    is_file = suffix in (*CHECKPOINTS, *WHOLE) and model.partition(":")[0] not in ("torchscript", *WHOLE.values())
    if is_file and not Path(model).is_file():
        args.parser.error(f"there is no file '{model}' in {Path.cwd()}")
    if is_file and suffix in CHECKPOINTS:
        if args.factory is None:
            args.parser.error(
                f"'{model}' is a checkpoint, which holds weights alone: say what makes the network, such as --factory "
                f"my_model.py:build, timm:NAME or torchvision:NAME. TorchScript is given as torchscript:{model}"
            )
        if args.no_weights:
            args.parser.error(f"--no-weights contradicts '{model}'")
        return args.factory, model
    if args.factory is not None:
        near = f".{did_you_mean(model, (path.name for path in Path().iterdir()))}"
        args.parser.error(f"--factory goes with a checkpoint ({', '.join(CHECKPOINTS)}), found '{model}'{near}")
    if is_file:
        return f"{WHOLE[suffix]}:{model}", None
    if ":" not in model:
        args.parser.error(f"MODEL is {MODELS}; found '{model}'. A recipe is run with `dfqkit run {model}`")
    return model, None


def _found(data: str) -> str:
    """Return what names images with its files in full, so that the recipe holds anywhere."""
    kind, *places = data.split(":")
    if not places:
        return str(Path(data).resolve())
    kept = 1 if kind == "torchvision" else 0  # the name of its data set
    return ":".join([kind, *places[:kept], *(str(Path(place).resolve()) for place in places[kept:])])
