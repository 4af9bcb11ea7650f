"""Commands whose files anybody may have made, in a process of their own: what it says is passed on.

What belongs here: the parent's end of that; the child's is `cli.answer`. Which commands are given such files they say
themselves (`options.add_command`).
"""

from __future__ import annotations

from collections.abc import Sequence

from dfqkit.cli.options import note, result


def relayed(argv: Sequence[str]) -> int:
    """Do a command in a child process, repeat what it says, and return its exit code."""
    from dfqkit_export.backends.isolation import call_isolated, foreign_limits

    found = call_isolated(
        "dfqkit.cli:answer",
        {"argv": list(argv)},
        runtime="What reads or runs the file",
        doing=f"`dfqkit {argv[0]}` was at work",
        limits=foreign_limits(),
        fresh=False,
    )
    if found["stdout"]:
        result(found["stdout"])
    if found["stderr"]:
        note(found["stderr"].rstrip("\n"))
    code: int = found["code"]
    return code
