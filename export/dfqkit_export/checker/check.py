"""Runs the rules of a target over a model: those for all, and its backend's.

What belongs here: which rules judge a file, and nothing that knows what a rule is about.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from dfqkit_export.backends import all_backends, backend_of, get_target
from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.rule import Rule
from dfqkit_export.checker import rules_common
from dfqkit_export.checker.framework import CheckResult, Problem
from dfqkit_export.onnxfile.model import load_onnx


def all_rules() -> tuple[Rule, ...]:
    """Return the rules for all targets and those of every backend, each once, by their ids."""
    return _ordered((*rules_common.RULES, *(rule for one in all_backends().values() for rule in one.rules())))


def rules_for(target: str) -> tuple[Rule, ...]:
    """Return the rules that judge files for a target, given by its name."""
    return _ordered((*rules_common.RULES, *backend_of(get_target(target)).rules()))


def check_file(path: str | Path, target: str) -> CheckResult:
    """Judge an ONNX file, whoever made it.

    Args:
        path: The file.
        target: Name of a target (`dfqkit list targets`).

    Raises:
        ArtefactError: The file is not a complete ONNX model.
        TargetError: There is no such target.
    """
    rules_for(target)  # An unknown target is said before a large file is read.
    return check_model(load_onnx(path), target)


def check_model(model: onnx.ModelProto, target: str) -> CheckResult:
    """Judge an ONNX model in memory; nodes inside control-flow subgraphs are not looked at."""
    graph = QdqGraph(model, get_target(target))
    problems = [
        Problem(
            rule=rule.id,
            severity=rule.severity,
            node=finding.node,
            message=finding.message,
            repair=finding.repair or rule.repair,
            fixable=rule.fixable and finding.fixable,
        )
        for rule in rules_for(target)
        for finding in rule.find(graph)
    ]
    problems.sort(key=lambda problem: problem.severity != "error")
    return CheckResult(target=target, problems=tuple(problems))


def _ordered(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """By the letters of their ids and then by number; what several backends share, once."""

    def place(id: str) -> tuple[str, int]:
        letters = id.rstrip("0123456789")
        return letters, int(id[len(letters) :] or 0)

    found = {rule.id: rule for rule in rules}
    return tuple(found[id] for id in sorted(found, key=place))
