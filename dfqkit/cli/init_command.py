"""`dfqkit init`: the recipe of a network of one's own, by questions at a terminal or by options.

What belongs here: what is asked, and with which guess. The options, and the recipe that they make, are `quantize`'s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfqkit.cli.options import Commands, add_command, image_given, note, wrote
from dfqkit.cli.quantize_command import BITS, MODELS, add_recipe_arguments, factory_and_weights, recipe_of
from dfqkit.config.files import CHECKPOINTS, WHOLE
from dfqkit_export.backends import DEFAULT_TARGET, get_target
from dfqkit_export.errors import ArtefactError, DfqkitError

_DESCRIPTION = (
    "Write the recipe that `dfqkit quantize` would run. At a terminal, what no option says is asked, with the nearest "
    "guess in brackets, which an empty answer takes. Elsewhere nothing is asked, and what is missing is refused."
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "init", _init, "write the recipe of a network of your own", _DESCRIPTION)
    parser.add_argument("model", nargs="?", metavar="MODEL", help=MODELS)
    add_recipe_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("recipe.yaml"), metavar="FILE", help="(default: recipe.yaml)")
    parser.set_defaults(bits=None, target=None, weights=None, quiet=False)


def _init(args: argparse.Namespace) -> int:
    from dfqkit_export.files import write_bytes

    if args.out.exists():
        message = f"'{args.out}' is there already, and nothing is overwritten: name another file with --out."
        raise ArtefactError(message)
    if sys.stdin.isatty() and sys.stderr.isatty():
        _ask(args)
    if args.model is None:
        args.parser.error(f"give MODEL: {MODELS}")
    args.bits, args.target = args.bits or BITS, args.target or DEFAULT_TARGET.name
    recipe, _ = recipe_of(args)
    write_bytes(args.out, recipe.to_yaml().encode())
    wrote(args, {"path": str(args.out)}, f"Wrote {args.out}. Next: dfqkit run {args.out}")
    return 0


def _ask(args: argparse.Namespace) -> None:
    """Ask for what is missing, in an order in which each answer tells guesses for the next."""
    for name, question, guess in _questions(args):
        while getattr(args, name) is None:
            note(f"{question} [{guess}] " if guess else f"{question} ")
            line = sys.stdin.readline()
            if not line:
                message = "The questions were not answered: nothing was written."
                raise ArtefactError(message)
            text = line.strip() or guess
            if not text:
                break
            try:
                setattr(args, name, _read(args, name, text))
            except (argparse.ArgumentTypeError, ValueError, DfqkitError) as error:
                note(f"{error}")


def _questions(args: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Yield what may be asked: the option, the question, and the guess; "" where there is none."""
    from dfqkit.config.image_of_model import image_values, nearest

    yield "model", "Which file holds the network: a checkpoint, or FILE.onnx, FILE.pt2?", ""
    if args.model is None:
        return
    if Path(args.model).suffix.lower() in CHECKPOINTS:
        yield "factory", "What makes its network: FILE.py:function, timm:NAME or torchvision:NAME?", ""
    elif (
        ":" in args.model
        and args.model.partition(":")[0] not in ("torchscript", *WHOLE.values())
        and not args.no_weights
    ):
        yield "weights", "Which file holds its weights? (empty: it is taken as made, at random or with its own)", ""
        args.no_weights = args.weights is None
        args.model, args.factory = (args.model, None) if args.no_weights else (args.weights, args.model)
    factory, weights = factory_and_weights(args)
    known = image_values(factory, {}, weights)
    for name, question in (
        ("shape", "Channels, height and width of an image?"),
        ("mean", "Mean per channel that images are normalised by?"),
        ("std", "Their standard deviation per channel?"),
    ):
        given = {key: value for key, value in image_given(args).items() if value is not None}
        guess = ",".join(map(str, nearest(known | given)[name]))
        yield name, f"{question} ({f'says {factory}' if name in known else 'a guess'})", guess
    yield "classes", "How many classes? (empty: it is no classifier)", str(known.get("classes") or "")
    yield "target", "Where is the file to run, of `dfqkit list targets`?", DEFAULT_TARGET.name
    yield "bits", "How many bits for weights and activations, such as w4a8?", BITS
    yield "data", "Labelled images that measure it: folder, .npz, .zip? (empty: none)", ""


def _read(args: argparse.Namespace, name: str, text: str) -> Any:
    """Return an answer as the option of that name would read it, which says what it takes where it cannot."""
    from dfqkit.config.quant import checked_bits  # pydantic, which checking files does without

    if name == "bits":
        checked_bits(text)
    if name == "target":
        for target in text.split(","):
            get_target(target)
    convert: Any = next((action.type for action in args.parser._actions if action.dest == name), None)
    value = text if convert is None else convert(text)
    needed = {"shape": 3, "mean": (args.shape or (0,))[0], "std": (args.shape or (0,))[0]}.get(name)
    if needed is not None and len(value) != needed:
        message = f"takes {needed} number(s) with commas between them, mean and std one a channel; found '{text}'"
        raise argparse.ArgumentTypeError(message)
    return value
