"""`dfqkit completion`: a script that completes commands, options and their values in bash, zsh or fish.

It holds all words itself, as of the dfqkit that wrote it: pressing TAB starts no Python.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator

from dfqkit.cli.options import Commands, Parser, add_command, document, result

_DESCRIPTION = (
    "Print a script that completes commands, options, and the names of recipes, targets and methods. Write it again "
    "after an upgrade, or when a plugin is installed."
)
_BASH = """\
_dfqkit() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" place="" i words
  for ((i = 1; i < COMP_CWORD; i++)); do
    words="$place${{place:+/}}${{COMP_WORDS[i]}}"
    case " {commands} " in *" $words "*) place="$words" ;; esac
  done
  case "$place $before" in
{values}
    *) case "$place" in
{options}
      esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
}}
complete -o filenames -F _dfqkit dfqkit
"""


def add(commands: Commands) -> None:
    """Add the command."""
    text = "print a script that completes commands in a shell"
    parser = add_command(commands, "completion", _completion, text, _DESCRIPTION)
    parser.set_defaults(all=commands)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="of which shell")


def _completion(args: argparse.Namespace) -> int:
    names: dict[str, Parser] = args.all.choices
    found = {"": {"": [*names, "--help", "--version"]}}
    found |= {place: words for name, parser in names.items() for place, words in _places(parser, name)}
    script = _fish(found) if args.shell == "fish" else _bash(found, zsh=args.shell == "zsh")
    result(document({"script": script}) if args.json else script, verbatim=True)
    return 0


def _places(parser: argparse.ArgumentParser, place: str) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yield every command's place, such as ``recipe/show``, with what may follow it and each of its options."""
    words: dict[str, list[str]] = {"": []}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words[""] += action.choices
            for name, inner in action.choices.items():
                yield from _places(inner, f"{place}/{name}")
        elif action.option_strings:
            words[""] += action.option_strings
            for option in action.option_strings:
                words[option] = _values(action)
        else:
            words[""] += _values(action)
    yield place, words


def _values(action: argparse.Action) -> list[str]:
    """Return what an argument may be, where that is known; "" is nothing, and files are completed anyway."""
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    return _names(action.dest)


@functools.cache  # many commands take the same, and each look goes through all that is installed
def _names(kind: str) -> list[str]:
    if kind in ("recipe", "recipes"):
        from dfqkit.config.files import list_recipes

        return list(list_recipes())
    if kind == "target":
        from dfqkit_export.backends import all_targets

        return list(all_targets())
    if kind == "method":
        from dfqkit.config.methods import synthesizer_names

        return list(synthesizer_names())
    return []


def _bash(found: dict[str, dict[str, list[str]]], *, zsh: bool) -> str:
    values = [
        f'    "{place} {option}") words="{" ".join(words)}" ;;'
        for place, options in found.items()
        for option, words in options.items()
        if option and words
    ]
    options = [f'      "{place}") words="{" ".join(options[""])}" ;;' for place, options in found.items()]
    script = _BASH.format(commands=" ".join(filter(None, found)), values="\n".join(values), options="\n".join(options))
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if zsh else script


def _fish(found: dict[str, dict[str, list[str]]]) -> str:
    top = [name for name in found if name and "/" not in name]
    verbs = sorted({name.partition("/")[0] for name in found if "/" in name})
    lines = [f"complete -c dfqkit -n __fish_use_subcommand -a '{' '.join([*dict.fromkeys([*top, *verbs])])}'"]
    for place, options in found.items():
        seen = " and ".join(f"__fish_seen_subcommand_from {part}" for part in place.split("/") if part)
        condition = f" -n '{seen.replace(' and ', '; and ')}'" if seen else " -n __fish_use_subcommand"
        plain = [word for word in options[""] if not word.startswith("-")]
        if plain and place:
            lines.append(f"complete -c dfqkit{condition} -a '{' '.join(plain)}'")
        for option, words in options.items():
            if option:
                flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                lines.append(f"complete -c dfqkit{condition} {flag}" + (f" -xa '{' '.join(words)}'" if words else ""))
    return "\n".join(lines)
