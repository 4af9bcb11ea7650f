"""Runs the table of rules over a model.

What belongs here: the table, and nothing that knows what a rule is about.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from dfqkit_export.backends.onnxruntime import rules as onnxruntime
from dfqkit_export.backends.openvino import rules as openvino
from dfqkit_export.backends.qdq import QdqGraph
from dfqkit_export.backends.rule import Rule
from dfqkit_export.backends.targets import get_target
from dfqkit_export.backends.tensorrt import rules_errors as tensorrt_errors
from dfqkit_export.backends.tensorrt import rules_placement as placement
from dfqkit_export.backends.tensorrt import rules_warnings as tensorrt_warnings
from dfqkit_export.checker import rules_common as common
from dfqkit_export.checker.framework import CheckResult, Problem
from dfqkit_export.onnxfile.model import load_onnx

__all__ = ["RULES", "check_file", "check_model", "rules_for"]

RULES: tuple[Rule, ...] = tuple(
    sorted(
        (
            *common.RULES,
            *tensorrt_errors.RULES,
            *tensorrt_warnings.RULES,
            *placement.RULES,
            *onnxruntime.RULES,
            *openvino.RULES,
        ),
        key=lambda rule: (rule.id[0], int(rule.id[1:])),
    )
)


def rules_for(target: str) -> tuple[Rule, ...]:
    """Return the rules that judge files for a target.

    Args:
        target: Name of a target.

    Raises:
        TargetError: There is no such target.
    """
    family = get_target(target).family
    return tuple(rule for rule in RULES if family in rule.families)


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
    """Judge an ONNX model in memory; nodes inside control-flow subgraphs are not looked at.

    Args:
        model: The model; it is not changed.
        target: Name of a target.

    Raises:
        TargetError: There is no such target.
    """
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
