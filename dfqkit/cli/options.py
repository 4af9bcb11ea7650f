"""What the subcommands share: the parser's manners, options that several take, and the two ways to say something."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from dfqkit.cli.examples import EXAMPLES
from dfqkit.progress import PULSE, Progress, first_process
from dfqkit_export.images.pixels import ORDERS, RANGES
from dfqkit_export.words import clean, did_you_mean, page, screen, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dfqkit_export.images.entries import Entry

#: What a command adds itself to, and what does it.
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
Handler: TypeAlias = "Callable[[argparse.Namespace], int]"
#: Says of its arguments whether they name files of unknown origin, for which a command gets a process of its own.
Foreign: TypeAlias = "Callable[[argparse.Namespace], bool]"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps lines as they are and leaves the options a column that they fit in."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)
        self._action_max_length = 14  # argparse does not count the indentation of subcommands


class Parser(argparse.ArgumentParser):
    """A parser that keeps the epilog's lines and takes no abbreviated options; its subparsers are like it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Formatter, **settings})
        words = "\n".join(f"  dfqkit {line}" for line in EXAMPLES[self.prog.partition(" ")[2]])
        self.epilog = "\n\n".join(filter(None, [f"examples:\n{words}", self.epilog]))
        if self.description:
            self.description = textwrap.fill(self.description, width=100)

    def format_help(self) -> str:
        """Return the help, its lines no longer than those of the screen."""
        return _on_screen(super().format_help())

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the arguments; an option that no command has is refused with the nearest that its own has."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser: Parser = getattr(found, "parser", self)
            option = unknown[0].partition("=")[0]
            parser.error(
                f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(option, parser._option_string_actions)}"
            )
        return found

    def error(self, message: str) -> NoReturn:
        """End with 2 and say how to get help, without repeating the whole usage; what was mistyped is told."""
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if wrong:
            message += did_you_mean(wrong[1], re.findall(r"[\w.-]+", wrong[2]))
        self.exit(2, clean(f"error: {message}\nSee `{self.prog} --help`.\n"))


def add_command(
    commands: Commands, name: str, handler: Handler, text: str, description: str = "", epilog: str = ""
) -> Parser:
    """Add a command, and let its arguments know what does it, where, and what says how it is used wrongly.

    A command that is given files of unknown origin sets the default `foreign`: it gets a process of its own then.
    """
    description = description or f"{text.capitalize()}."
    parser: Parser = commands.add_parser(name, help=text, description=description, epilog=epilog)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.set_defaults(handler=handler, parser=parser, foreign=lambda _: False)
    parser.add_argument("--log-file", metavar="FILE", help="write what is said to the end of this file, too")
    text = "say more: what is otherwise left out, and what libraries tell"
    parser.add_argument("-v", "--verbose", action="store_true", help=text)
    return parser


def add_overrides(parser: Parser, text: str) -> None:
    """Add `--set`, explained by ``text``."""
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help=text)


def add_steering(parser: Parser) -> None:
    """Add what bounds the ladder and the result: keys of the recipe by themselves."""
    for option, key, unit, text in (
        ("--max-time", "ladder.max_time", "MINUTES", "after which no further scheme is tried: the nearest is the file"),
        ("--max-drop", "ladder.max_drop", "POINTS", "that may be lost: once that holds no further scheme is tried"),
        ("--max-size", "ladder.max_size", "MB", "that the file may have (10^6 bytes; 8 bits a weight or more)"),
    ):
        parser.add_argument(option, metavar=unit, help=text, **_sets(key))
    text = "that it must be as fast as in float, measured here: fails where the whole interval of 95 %% is below"
    parser.add_argument("--min-speedup", metavar="TIMES", help=text, **_sets("validate.min_speedup"))


def _sets(key: str) -> dict[str, Any]:
    return {"dest": "overrides", "action": "append", "default": [], "type": f"{key}={{}}".format}


def add_recipe_options(parser: Parser) -> None:
    """Add what changes a recipe."""
    add_overrides(parser, "change one value of the recipe, such as distill.steps=200; may be given several times")
    parser.add_argument("--seed", type=natural, metavar="N", help="seed of the run (default: the recipe's)")
    add_untrusted(parser)


def add_untrusted(parser: Parser) -> None:
    """Add what a stranger's recipe is given with (`config.untrusted`)."""
    text = "the recipe is a stranger's: refuse factories that may run any code, and files of elsewhere"
    parser.add_argument("--untrusted", action="store_true", help=text)


def spelled(args: argparse.Namespace, *names: str) -> list[str]:
    """Return arguments as options that are typed; those without a value are left out."""
    words: list[str] = []
    for name in names:
        given = getattr(args, name)
        if name == "overrides":
            words += [word for override in given for word in ("--set", override)]
        elif given not in (None, []):
            words += [f"--{name.replace('_', '-')}", *map(str, given if isinstance(given, list) else [given])]
    return words


def add_compute_options(parser: Parser) -> None:
    """Add what says where and how a stage computes."""
    text = "where to compute (default: auto; a run that continues stays where it began)"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help=text)
    text = "threads that torch uses (default: torch's own choice; a run that continues keeps its number)"
    parser.add_argument("--threads", type=positive, metavar="N", help=text)
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def add_yes(parser: Parser) -> None:
    """Add what answers the question that a long run asks at a terminal."""
    text = "begin a run of more than half an hour without asking, which is done at a terminal alone"
    parser.add_argument("-y", "--yes", action="store_true", help=text)


def add_cluster_options(parser: Parser, part: str) -> None:
    """Add where parts are done, of which each is a ``part``."""
    text = (
        f"make every {part} as a task of Ray (extra 'ray'): on this machine (local), on the cluster that it is part of "
        "(auto), or on that at an address; threads are then 1 a part unless --threads says more"
    )
    parser.add_argument("--cluster", metavar="local|auto|ADDRESS", help=text)
    text = "parts at a time, at the most (default: as many as there are cores for)"
    parser.add_argument("--workers", type=positive, metavar="N", help=text)


def starting(args: argparse.Namespace) -> None:
    """Say that a command begins, before torch is imported, which takes seconds; and from now on that it goes on."""
    if not Progress(quiet=args.quiet).quiet:
        PULSE.start(f"{args.parser.prog}: loading torch and the network")


def document(facts: Mapping[str, Any]) -> str:
    """Return the JSON document that `--json` prints."""
    return json.dumps({"schema": 1, **facts}, indent=2, default=sorted)  # of sets


def add_task(parser: argparse._ActionsContainer) -> None:
    """Add `--task`."""
    text = "what the outputs mean, such as segmentation or '{name: detection, nms: 0.6}' (default: what they tell)"
    parser.add_argument("--task", type=_task, metavar="NAME", help=text)


def add_image(model: argparse._ActionsContainer, otherwise: str) -> None:
    """Add what says what a network takes and gives, and which set of its weights is meant.

    Mean and std are ``otherwise`` where neither they nor the network's library says them.
    """
    integers = _several(int, "integers with commas between them, such as 3,224,224")
    numbers = _several(float, "numbers with commas between them, such as 0.485,0.456,0.406")
    model.add_argument("--shape", type=integers, metavar="C,H,W", help="channels, height and width of an image")
    text = f"mean per channel (default: that of timm's or torchvision's network, else {otherwise} with --std)"
    model.add_argument("--mean", type=numbers, metavar="M,...", help=text)
    model.add_argument("--std", type=numbers, metavar="S,...", help="deviation per channel (default: as of --mean)")
    model.add_argument("--classes", type=positive, metavar="N", help="number of classes")
    text = "largest pixel that mean and std are about (default: 1)"
    model.add_argument("--pixel-range", type=int, choices=RANGES, help=text)
    model.add_argument("--channels", choices=ORDERS, help="order of the colours that it takes (default: RGB)")
    text = "of a network of several inputs, what each takes, such as '{left: 3, right: 3}'"
    model.add_argument("--inputs", type=_inputs, metavar="{NAME: N,...}", help=text)
    add_task(model)
    model.add_argument("--weights-key", metavar="KEY", help="which set of weights, where the file holds several")


def add_mean_and_std(group: argparse._ActionsContainer, text: str) -> None:
    """Add `--mean`, explained by ``text``, and `--std`."""
    numbers = _several(float, "numbers with commas between them, such as 0.485,0.456,0.406")
    group.add_argument("--mean", type=numbers, metavar="M,...", help=text)
    group.add_argument("--std", type=numbers, metavar="S,...", help="deviation per channel")


def image_given(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_image`'s options say of the images, by the names of `ImageSpec`; None is not said."""
    given = ("shape", "mean", "std", "classes", "pixel_range", "channels", "inputs")
    return {name: getattr(args, name) for name in given}


def names(text: str) -> tuple[str, ...]:
    """Read names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _several(kind: type[int | float], what: str) -> Callable[[str], tuple[int | float, ...]]:
    def read(text: str) -> tuple[int | float, ...]:
        try:
            return tuple(map(kind, text.split(",")))
        except ValueError:
            message = f"takes {what}; found '{text}'"
            raise argparse.ArgumentTypeError(message) from None

    return read


def _task(text: str) -> dict[str, Any]:
    """Read a task's name, or its section of a recipe on one line."""
    import yaml

    from dfqkit.config.task import task_section
    from dfqkit_export.errors import RecipeError

    try:
        found = yaml.safe_load(text)
        section = {"name": found} if isinstance(found, str) else found
        return task_section(str(section["name"])).model_validate(section).model_dump()
    except (yaml.YAMLError, TypeError, KeyError, ValueError, RecipeError) as error:
        message = f"takes the name of a task or its section of a recipe, found '{text}': {error}"
        raise argparse.ArgumentTypeError(message) from None


def _inputs(text: str) -> tuple[Entry, ...]:
    """Read what the inputs of a network are, as recipes have it."""
    import yaml

    from dfqkit_export.errors import ArtefactError
    from dfqkit_export.images.entries import entries_of

    try:
        return entries_of(yaml.safe_load(text))
    except (yaml.YAMLError, TypeError, ArtefactError) as error:
        message = f"takes what a recipe has as image.inputs, such as '{{left: 3, right: 3}}', found '{text}': {error}"
        raise argparse.ArgumentTypeError(message) from None


def natural(text: str, least: int = 0) -> int:
    """Read an integer of at least 0, or ``least``."""
    if not text.isdecimal() or int(text) < least:
        message = f"takes an integer of at least {least}, found '{text}'"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def positive(text: str) -> int:
    """Read an integer of at least 1."""
    return natural(text, 1)


def result(text: str | Iterable[str], *, verbatim: bool = False) -> None:
    """Write a result, a text or its lines, to stdout, which carries nothing else; names in it may be a foreign file's.

    Lines are broken where a screen has fewer columns, but those of a document in JSON, or in YAML (``verbatim``). A
    reader that has seen enough (`| head`) does not change how the command ends.
    """
    if not first_process():
        return
    told = clean(text if isinstance(text, str) else page(text)).rstrip("\n")
    try:
        print(told if verbatim or told.startswith(("{", "[")) else _on_screen(told), flush=True)
    except BrokenPipeError:
        discard_stdout()


def show(args: argparse.Namespace, facts: Mapping[str, Any], text: str | Iterable[str]) -> None:
    """Write a result as text, or, where `--json` is given, the facts that it tells."""
    result(document(facts) if args.json else text)


def wrote(args: argparse.Namespace, facts: Mapping[str, Any], text: str) -> None:
    """Say what was written, to people, and to programs where `--json` is given."""
    note(text)
    if args.json:
        result(document(facts))


def discard_stdout() -> None:
    """Send to nowhere what is still to be written, so that the interpreter's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(text: str) -> None:
    """Write a line for people to stderr; names in it may be a foreign file's. Of several processes, one talks.

    All of them say what they died of.
    """
    if not first_process() and not text.startswith(("error:", "Traceback")):
        return
    print(_on_screen(clean(text)), file=sys.stderr, flush=True)


def _on_screen(text: str) -> str:
    room = screen()
    if not room:
        return text
    return "\n".join(part for line in text.split("\n") for part in wrapped(line, room, indent="  "))
