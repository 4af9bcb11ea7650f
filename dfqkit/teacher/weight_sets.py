"""Several sets of weights in one checkpoint: which there are, and which one is meant.

What belongs here: finding them and refusing to guess. Averaged weights beside trained ones, a student beside its
teacher: both would load, and only whoever wrote the file knows which one was measured.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dfqkit_export.errors import TeacherError
from dfqkit_export.words import some

#: What training scripts call the weights; the first that a file has is opened.
WRAPPERS = ("model_state_dict", "state_dict", "model")
CHOOSE = "teacher.weights_key (--weights-key of `dfqkit quantize` and `dfqkit inspect`)"

_DEEPEST = 4
_SHOWN = 8
_SAME_NETWORK = 0.5  # share of names that two sets of the same network have in common at the least
_AVERAGES = "shadow_params"  # what torch_ema and diffusers call averaged parameters, a list in the model's order
_BUFFER = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")  # they average no buffers
_NOT_A_NAME = re.compile(r"[\W_]|origmod")


def weight_set(content: object, path: Path, key: str | None) -> object:
    """Return what holds the tensors of a checkpoint: what ``key`` names, or the only set that can be meant.

    Raises:
        TeacherError: There are several, or none of that name; they are listed.
    """
    if key is not None:
        return _named(content, path, key)
    place, chosen = _usual(content)
    if not _is_set(chosen):
        return chosen
    assert isinstance(chosen, Mapping)
    rivals = {name: found for name, found in _sets(content) if name != place and _rivals(name, found, place, chosen)}
    for name, found in _lists(content):
        ordered = _in_order(found, chosen)
        if name.rpartition(".")[2] == _AVERAGES if ordered is None else _rivals(name, ordered, place, chosen):
            rivals[name] = {str(index): value for index, value in enumerate(found)}
    if rivals:
        listed = _listed({place: chosen, **rivals})
        message = (
            f"Weights file '{path}' holds {1 + len(rivals)} sets of weights that could be meant: {listed}. Choose one "
            f"with {CHOOSE}, e.g. weights_key: {place or next(iter(rivals))}; or save the one that is meant alone."
        )
        raise TeacherError(message)
    return chosen


def listed_sets(content: object) -> str:
    """Return every set in a checkpoint with its numbers of tensors; empty where there is none below its top."""
    return _listed({name: found for name, found in _sets(content) if name})


def _in_order(values: Sequence[Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return a state whose parameters have the values of a list in their order, buffers as they are, where it fits.

    Names tell which are parameters: all but BatchNorm's statistics. None where numbers or shapes differ.
    """
    parameters = [name for name in state if not _BUFFER.search(name)]
    if [value.shape for value in values] != [state[name].shape for name in parameters]:
        return None
    return {**state, **dict(zip(parameters, values, strict=True))}


def _usual(content: object) -> tuple[str, object]:
    """Return what lies in the wrappers that training scripts use, and where."""
    place, chosen = "", content
    for _ in WRAPPERS:
        wrapper = next((name for name in WRAPPERS if _is_mapping(chosen, name)), None)
        if wrapper is None:
            break
        place, chosen = f"{place}.{wrapper}".lstrip("."), chosen[wrapper]  # type: ignore[index]
    return place, chosen


def _named(content: object, path: Path, key: str) -> object:
    found = dict(_sets(content))
    if key in found:
        return found[key]
    lists = dict(_lists(content))
    if key in lists:
        return _ordered(content, path, key, lists[key])
    for tensors in found.values():
        under = {name.removeprefix(f"{key}."): value for name, value in tensors.items() if name.startswith(f"{key}.")}
        if under:
            return under
    message = f"Weights file '{path}' holds no set of weights called '{key}'. It has: {_listed(found) or 'none'}."
    raise TeacherError(message)


def _ordered(content: object, path: Path, key: str, values: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the set that a list of tensors is, its names those of the usual one, or say why it is none."""
    place, usual = _usual(content)
    state = usual if _is_set(usual) else {}
    assert isinstance(state, Mapping)
    ordered = _in_order(values, state)
    if ordered is None:
        count = sum(not _BUFFER.search(name) for name in state)
        beside = f"the {count} parameters of {place or 'the file itself'}" if count else "no state dict beside it"
        message = (
            f"'{key}' in weights file '{path}' is a list of {len(values)} tensors without names, and they are not "
            f"{beside}, in order and shapes: which weights they are cannot be told. Copy them into the model where its "
            "code is at hand, e.g. ema.copy_to(model.parameters()), and save model.state_dict()."
        )
        raise TeacherError(message)
    return ordered


def _lists(content: object, place: str = "", depth: int = 0) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """Yield every list of tensors, by where it stands."""
    if isinstance(content, list | tuple) and content and all(isinstance(value, Tensor) for value in content):
        yield place, content
    if isinstance(content, Mapping) and depth <= _DEEPEST:
        for name, value in content.items():
            if isinstance(name, str):
                yield from _lists(value, f"{place}.{name}".lstrip("."), depth + 1)


def _sets(content: object, place: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield every mapping of names to tensors, by where it stands."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    if _is_set(content):
        yield place, content
        return
    for name, value in content.items():
        if isinstance(name, str):
            yield from _sets(value, f"{place}.{name}".lstrip("."), depth + 1)


def _is_set(content: object) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _is_mapping(content: object, name: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(name), Mapping)


def _rivals(name: str, other: Mapping[str, Tensor], place: str, chosen: Mapping[str, Tensor]) -> bool:
    """Return whether another set could as well be meant: one under a wrapper's name too, or of the same network."""
    above, _, last = name.rpartition(".")
    rivals = last in WRAPPERS and above == place.rpartition(".")[0]
    for ours, theirs in itertools.product(_plain(chosen), _plain(other)):
        common = [key for key in theirs if key in ours and theirs[key].shape == ours[key].shape]
        same = (theirs[key].dtype == ours[key].dtype and torch.equal(theirs[key], ours[key]) for key in common)
        if len(common) == len(ours) == len(theirs) and all(same):
            return False
        rivals = rivals or len(common) >= _SAME_NETWORK * min(len(ours), len(theirs))
    return rivals


def _plain(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield tensors by their names without punctuation, and by what is left without a prefix that all have."""
    yield {_NOT_A_NAME.sub("", name): value for name, value in tensors.items()}
    first = {name.partition(".")[0] for name in tensors if "." in name}
    if len(first) == 1:
        prefix = f"{first.pop()}."
        yield {_NOT_A_NAME.sub("", name.removeprefix(prefix)): value for name, value in tensors.items()}


def _listed(sets: Mapping[str, Mapping[str, Tensor]]) -> str:
    texts = [
        f"{name or 'the file itself'} ({len(found)} tensors, {sum(one.numel() for one in found.values()):,} numbers)"
        for name, found in sets.items()
    ]
    return some(texts, _SHOWN)
