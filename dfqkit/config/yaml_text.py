"""The one reader of YAML: plain values of a bounded size, or an error that says where and what to do.

What belongs here: what text may be at all. What a recipe may hold is its schema. A recipe may come from somebody else,
so that nothing in it may run code, fill the memory or end in another error than ours.
"""

from __future__ import annotations

from typing import Any, NoReturn

import yaml

from dfqkit_export.errors import RecipeError

#: How deep values may be nested.
DEEPEST = 50
#: How many values there may be, those that aliases repeat counted each time.
_MOST = 100_000
#: Bits of an integer.
_WIDEST = 64

_PREFIX = "tag:yaml.org,2002:"
_PLAIN = frozenset(f"{_PREFIX}{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map"))


def read_yaml(text: str, what: str) -> Any:
    """Read one document of text, numbers, true and false, null, lists and mappings; no key may stand twice.

    ``what`` names it in errors, at the beginning of a sentence.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measured(node, loader, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        message = f"{what} is not valid YAML: {error}"
        raise RecipeError(message) from error
    except RecursionError:
        message = f"{what} is nested too deep: at most {DEEPEST} lists and mappings in one another can be read."
        raise RecipeError(message) from None
    finally:
        if loader is not None:
            loader.dispose()


def _measured(node: yaml.Node, loader: yaml.SafeLoader, seen: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Check a value and all in it, and return how many values that is and how deep they are nested.

    ``seen`` holds what was found out about other values; None for those that this one is part of.
    """
    if id(node) in seen:
        found = seen[id(node)]
        if found is None:
            _refuse(node, "a value holds itself; write it out")
        return found
    seen[id(node)] = None
    if node.tag not in _PLAIN:
        _refuse(node, f"{_kind(node)} is not read here; write text in quotes, a number, a list or a mapping")
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, loader)
    elif isinstance(node, yaml.MappingNode):
        _check_keys(node)
        parts = [part for key, value in node.value for part in (key, value) if part.tag != f"{_PREFIX}merge"]
    else:
        parts = node.value
    inner = [_measured(part, loader, seen) for part in parts]
    count, depth = 1 + sum(many for many, _ in inner), 1 + max((deep for _, deep in inner), default=0)
    if count > _MOST or depth > DEEPEST:
        _refuse(node, f"too much: at most {_MOST} values and {DEEPEST} of them in one another can be read")
    seen[id(node)] = (count, depth)
    return count, depth


def _check_scalar(node: yaml.ScalarNode, loader: yaml.SafeLoader) -> None:
    """Refuse numbers that are none or too large to be meant, and text that no file can hold."""
    try:
        value = loader.construct_object(node)
        if isinstance(value, str):
            value.encode()
        usable = not isinstance(value, int) or value.bit_length() <= _WIDEST
    except (ArithmeticError, LookupError, ValueError):
        usable = False
    if not usable:
        text = node.value[:20].encode("ascii", "backslashreplace").decode()
        _refuse(node, f"'{text}{'...' * (len(node.value) > 20)}' cannot be used as {_kind(node)}; write another value")


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse keys that are no words, and a key that stands twice: one of the two would be lost."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            _refuse(key, "a key must be a word, not a list or a mapping")
        if key.value in lines:
            _refuse(key, f"the key '{key.value[:80]}' stands in line {lines[key.value]} already; keep one of the two")
        lines[key.value] = key.start_mark.line + 1


def _kind(node: yaml.Node) -> str:
    """Return a value's type in a word; a plain date is one, too, and would be written otherwise than it was read."""
    kind = str(node.tag).removeprefix(_PREFIX)
    return {"str": "text", "int": "an integer", "float": "a number", "timestamp": "a date"}.get(kind, f"'{kind}'")


def _refuse(node: yaml.Node, problem: str) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
