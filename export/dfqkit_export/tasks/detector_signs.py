"""What a detector's outputs as a whole tell of a fault: columns exchanged, sizes scaled, a level silent, a grid shared.

What belongs here: comparisons of all numbers with the teacher's, position by position, where boxes alone say only that
they are others. Each finding is a sentence for whoever reviews a change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.tasks.base import Outputs
from dfqkit_export.tasks.boxes import Floats
from dfqkit_export.tasks.decoding import means, positions
from dfqkit_export.tasks.parameters import DetectionParameters

#: Images that are compared, at most.
_IMAGES = 48
#: Share of the liveliest position's deviation from which on a silent one tells anything.
_LIVELY = 0.1
#: Correlation from which on a column is another's, and how much better it must be than with its own.
_ALIKE, _BETTER = 0.7, 0.3
#: Change of sizes that is none of rounding; deviation beside the teacher's below which a position is silent, and the
#: share of a stretch of positions, and the positions, that must be so.
_SCALED, _SILENT, _MOST, _FEWEST = 0.03, 0.02, 0.8, 3
#: Values that scores of a grid of their own take at least.
_VALUES = 20
_CORNERS, _SIDES = ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom")
_CENTRE = ("x", "y", "width", "height")


def signs(task: DetectionParameters, reference: Outputs, outputs: Outputs) -> Iterator[str]:
    """Yield what a comparison of all numbers shows, the surest first; nothing of boxes that are in no order."""
    if task.form == "rows":
        return
    for level, name in enumerate(task.boxes):
        (wanted, truth), (given, found) = (
            (np.asarray(part[:_IMAGES], np.float64) for part in positions(task, side, level))
            for side in (reference, outputs)
        )
        scores = task.scores[level] if task.scores else name
        if coarse := _one_grid(truth, found, scores):
            yield coarse  # it moves boxes and scores in its own way
            return
        yield from _silent(truth, found, scores)
        if pairs := _exchanged(truth, found):
            kinds = " and ".join(f"{a} for {b}" for a, b in pairs)
            yield f"classes swapped: {scores!r} gives {kinds} and the other way round, counted with the background"
        yield from _boxes(task, wanted, given, name)


def _boxes(task: DetectionParameters, wanted: Floats, given: Floats, name: str) -> Iterator[str]:
    forms: list[tuple[Sequence[str], Floats, Floats]] = []
    if task.form == "corners":
        forms = [(_CENTRE, _centred(wanted), _centred(given)), (_CORNERS, wanted, given)]
    elif wanted.shape[2] == len(_SIDES):
        forms = [(_SIDES if task.form == "distances" else _CENTRE, wanted, given)]
    elif task.form == "distributions":
        forms = [(_SIDES, means(wanted), means(given))]
    for names, first, second in forms:
        if pairs := _exchanged(first, second):
            swapped = " and ".join(f"{names[a]} for {names[b]}" for a, b in pairs)
            yield f"box coordinates swapped: {name!r} gives {swapped} and the other way round"
            return
    if task.form != "anchors" and forms:  # beside anchors sizes are logarithms
        yield from _scaled(forms[0][1], forms[0][2], name)


def _centred(corners: Floats) -> Floats:
    low, high = corners[..., :2], corners[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], -1)


def _exchanged(wanted: Floats, given: Floats) -> list[tuple[int, int]]:
    """Return pairs of columns of (N, P, numbers) of which each is the teacher's other."""
    first, second = ((each - each.mean(0)).reshape(-1, each.shape[2]) for each in (wanted, given))
    sizes = np.outer(*(np.sqrt(np.square(each).sum(0)) for each in (second, first)))
    alike = (second.T @ first) / np.maximum(sizes, 1e-12)
    best = alike.argmax(1)
    return [
        (k, int(other))
        for k, other in enumerate(best)
        if k < other
        and best[other] == k
        and min(alike[k, other], alike[other, k]) > _ALIKE
        and alike[k, other] > alike[k, k] + _BETTER
    ]


def _scaled(wanted: Floats, given: Floats, name: str) -> Iterator[str]:
    """Say where widths and heights are the teacher's times a factor."""
    with np.errstate(all="ignore"):
        ratios = np.median(np.log(given[..., 2:] / wanted[..., 2:]), 0)
    moved = np.abs(np.nan_to_num(ratios)) > _SCALED
    there = moved.any(1)
    if there.sum() < max(_FEWEST, len(there) / 50):
        return
    low, middle, high = np.quantile(ratios[moved], [0.25, 0.5, 0.75])
    if high - low < abs(middle) / 2:
        wide, tall = np.exp(np.median(np.nan_to_num(ratios[there]), 0))
        yield (
            f"boxes scaled: at {there.sum()} of {len(there)} positions of {name!r} they are {wide:.3g} times as wide "
            f"and {tall:.3g} times as high as the teacher's: an anchor, a stride or a variance is another"
        )


def _silent(wanted: Floats, given: Floats, name: str) -> Iterator[str]:
    """Say which stretch of positions gives the same scores for every image, where the teacher's differ."""
    before, now = (each.std(0).max(1) for each in (wanted, given))
    lively = before > _LIVELY * before.max(initial=0.0)
    silent = lively & (now <= _SILENT * before)
    places = np.flatnonzero(silent)
    if not len(places):
        return
    first, last = int(places[0]), int(places[-1])
    if len(places) >= _FEWEST and len(places) >= _MOST * lively[first : last + 1].sum():
        yield (
            f"a level of the pyramid is silent: positions {first} to {last} of {len(silent)} in {name!r} give the same "
            "numbers for every image, as where its features or heads are zero"
        )


def _one_grid(wanted: Floats, given: Floats, name: str) -> str:
    values: NDArray[np.float64] = np.unique(given)
    if not 1 < len(values) < _VALUES < len(np.unique(wanted)) / 2:
        return ""
    return (
        f"scores on one grid with something larger: {name!r} takes {len(values)} values, "
        f"{float(np.diff(values).min()):.3g} apart, as where boxes and scores share a scale"
    )
