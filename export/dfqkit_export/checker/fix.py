"""Repairs a file and proves that its numbers stayed, by running it as it was and as it is.

What belongs here: the order of repairs, the proof, and the refusal to write where it fails.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from dfqkit_export.backends import get_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.backends.session import batched
from dfqkit_export.checker.check import check_model, rules_for
from dfqkit_export.checker.editing import Editor
from dfqkit_export.checker.framework import FixResult, Repaired
from dfqkit_export.checker.repairs import EXACT, ROUNDED, Repair
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes
from dfqkit_export.images.inputs import own_batch, random_inputs
from dfqkit_export.onnxfile.model import load_onnx

_IMAGES = 4
# Each repair may make way for another; no chain of them is as long.
_ROUNDS = 20
# Float rounding that one repaired layer may add, in units of the last place of the largest output.
ULPS = 16
_REPORT = "This should not happen: please report it with the model, and repair the file at its exporter."


def fix_file(path: str | Path, target: str, out: str | Path) -> FixResult:
    """Write a file with every repair that changes no number, after running both files to prove it.

    Both run in ONNX Runtime without optimizations, on normally distributed random inputs. Repairs that only round
    otherwise are kept where the outputs agree to a few units in the last place.

    Args:
        path: The file to repair; it is left alone.
        target: Name of a target.
        out: The file to write; replaced whole or not at all.

    Raises:
        ArtefactError: The file is not a complete ONNX model, ONNX Runtime cannot run it, or the repaired file's outputs
            differ by more than rounding: nothing is written then.
        RuntimeUnavailableError: onnxruntime is not installed.
        TargetError: There is no such target.
    """
    exact = EXACT | {rule.id: rule.mend for rule in rules_for(target) if rule.mend is not None}
    model = load_onnx(path)
    fixed, applied = _repair(model, target, exact)
    difference, reasons = 0.0, []
    parts: list[NDArray[np.float32]] = []
    expected: list[NDArray[np.float64]] = []
    if applied:
        parts = _random_parts(model)
        expected = _run(Path(path), parts)
        difference = _difference(expected, _run_repaired(fixed, parts, applied))
        sane = all(problem.rule != "E3" for problem in check_model(model, target).problems)
        _require_equal(difference, expected, applied, sane=sane)
    for rule, (repair, reason) in ROUNDED.items():
        candidate, more = _repair(fixed, target, {rule: repair, **exact})
        if not more:
            continue
        parts = parts or _random_parts(model)
        expected = expected or _run(Path(path), parts)
        found = _difference(expected, _run_repaired(candidate, parts, more))
        if found <= _tolerance(expected):
            fixed, applied, difference = candidate, [*applied, *more], found
            reasons.append(reason)
    write_bytes(Path(out), fixed.SerializeToString(deterministic=True))
    return FixResult(
        target=target,
        path=Path(out),
        applied=tuple(applied),
        remaining=tuple(replace(problem, fixable=False) for problem in check_model(fixed, target).problems),
        images=sum(map(len, parts)),
        largest_difference=difference,
        reason="; ".join(reasons) if difference else "",
    )


def _repair(
    model: onnx.ModelProto, target: str, repairs: Mapping[str, Repair]
) -> tuple[onnx.ModelProto, list[Repaired]]:
    editor = Editor(model, get_target(target))
    tried: set[tuple[str, str]] = set()
    applied: list[Repaired] = []
    for _ in range(_ROUNDS):
        problems = [
            problem
            for problem in check_model(editor.model, target).problems
            if problem.fixable and problem.rule in repairs and (problem.rule, problem.node) not in tried
        ]
        if not problems:
            break
        rule = min(problems, key=lambda problem: list(repairs).index(problem.rule)).rule
        for problem in (problem for problem in problems if problem.rule == rule):
            tried.add((problem.rule, problem.node))
            gone = problem.node and not editor.has(problem.node)
            change = "" if gone else repairs[problem.rule](editor, problem.node)
            if change:
                applied.append(Repaired(rule=problem.rule, node=problem.node, change=change))
                editor.finish()
    return (editor.model if applied else model), applied


def _random_parts(model: onnx.ModelProto) -> list[NDArray[np.float32]]:
    batch = own_batch(model) or _IMAGES
    return list(batched(random_inputs(model, max(batch, _IMAGES // batch * batch)).images, batch))


def _run(path: Path, parts: list[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    session = OrtSession(path, threads=1, optimized=False)
    found = [session.outputs(part) for part in parts]
    return [np.concatenate([one[i].reshape(-1) for one in found]).astype(np.float64) for i in range(len(found[0]))]


def _run_repaired(
    model: onnx.ModelProto, parts: list[NDArray[np.float32]], applied: list[Repaired]
) -> list[NDArray[np.float64]]:
    with tempfile.TemporaryDirectory(prefix="dfqkit-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            return _run(path, parts)
        except ArtefactError as error:
            message = (
                f"The repaired file (repairs: {_rules(applied)}) does not run; nothing was written. {_REPORT} {error}"
            )
            raise ArtefactError(message) from None


def _difference(expected: list[NDArray[np.float64]], found: list[NDArray[np.float64]]) -> float:
    if [value.shape for value in expected] != [value.shape for value in found]:
        return float("inf")
    with np.errstate(invalid="ignore"):  # inf - inf
        differences = [
            np.abs(a - b)[~(np.isnan(a) & np.isnan(b)) & (a != b)] for a, b in zip(expected, found, strict=True)
        ]
    largest = max((float(np.max(value, initial=0.0)) for value in differences), default=0.0)
    return float("inf") if np.isnan(largest) else largest


def _tolerance(expected: list[NDArray[np.float64]]) -> float:
    largest = max((float(np.abs(value).max(initial=0.0)) for value in expected), default=0.0)
    return ULPS * float(np.finfo(np.float32).eps) * largest


def _require_equal(
    difference: float, expected: list[NDArray[np.float64]], applied: list[Repaired], *, sane: bool
) -> None:
    if difference <= _tolerance(expected):
        return
    if not sane:
        message = (
            "No repair can be proved while scales are no positive finite numbers (rule E3): what such codes mean "
            "differs from kernel to kernel. Nothing was written. Correct the scales first, at the exporter."
        )
        raise ArtefactError(message)
    message = (
        f"The repaired file's outputs differ by up to {difference:g} from the original's (repairs: {_rules(applied)}); "
        f"nothing was written. {_REPORT}"
    )
    raise ArtefactError(message)


def _rules(applied: list[Repaired]) -> str:
    return ", ".join(sorted({repaired.rule for repaired in applied}))
