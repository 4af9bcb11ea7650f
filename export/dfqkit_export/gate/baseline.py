"""The baseline: what was measured when somebody said that it is good, kept in the repository and reviewed as a diff.

What belongs here: `Baseline`, its cases, and the form of `dfqkit-baseline.json`: sorted keys, one metric or layer a
line. What is compared with it is `verdicts`'.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ArtefactError
from ..files import write_bytes
from .facts import LayerMark, ModelMarks

__all__ = ["Baseline", "Case", "Expected", "Recorded", "read_baseline", "write_baseline"]

SCHEMA = 1
_LARGEST = 64 << 20
_LINE = 400
_AGAIN = "Put the committed file back, or record it again with --update."


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One metric as it was recorded.

    Attributes:
        value: The number; None where it had no finite value.
        stderr: Its standard error; None where it has none.
        n: How many images it rests on.
        tolerance: How far today's value may be on the wrong side, in the metric's unit.
        higher_is_better: Direction.
    """

    value: float | None
    stderr: float | None
    n: int
    tolerance: float
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A failure that is known and accepted.

    Attributes:
        metric: The metric that fails.
        reason: Why that is accepted, never empty.
    """

    metric: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """What was recorded of one file.

    Attributes:
        metrics: By name.
        floors: The worst value allowed by metric, which no update changes.
        expected_failure: A failure that is accepted, or None.
        allowed: Why a file that is refused by default was recorded; "" otherwise.
        facts: What the file is: "layers", "opset", "before", "image" (its preprocessing), "origin".
        images: `PerImage.to_dict()`; empty for a report.
        sketches: Fingerprints of the layers' outputs, by layer.
        files: sha256 of "model", "sentinel" and "teacher"; empty for a report.
    """

    metrics: Mapping[str, Recorded]
    floors: Mapping[str, float] = field(default_factory=dict)
    expected_failure: Expected | None = None
    allowed: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    sketches: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the case as the baseline's file holds it."""
        return _case_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Case:
        """Rebuild what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: It is damaged.
        """
        return _case(values)

    def marks(self) -> ModelMarks | None:
        """Return what is kept of the layers; None where nothing is, as for a report.

        Raises:
            ArtefactError: It is damaged.
        """
        layers = self.facts.get("layers")
        if not isinstance(layers, Mapping):
            return None
        order = self.facts.get("order")
        names = [n for n in order if isinstance(n, str) and n in layers] if isinstance(order, list) else list(layers)
        opset = self.facts.get("opset")
        return ModelMarks(
            layers={str(name): LayerMark.from_dict(str(name), layers[name]) for name in names},
            opset=opset if isinstance(opset, int) else 0,
            before=str(self.facts.get("before", "")),
        )


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """All recorded cases.

    Attributes:
        cases: By name.
        environment: Where they were recorded: "packages" by name, "cpu_flags".
    """

    cases: Mapping[str, Case] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


def read_baseline(path: str | Path) -> Baseline:
    """Read a baseline.

    Raises:
        ArtefactError: It is missing, not JSON, of another schema, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"Baseline '{path}' is not there. Record one with `dfqkit check BUNDLE --baseline {path} --update`."
        raise ArtefactError(msg)
    if path.stat().st_size > _LARGEST:
        msg = f"Baseline '{path}' has {path.stat().st_size} bytes; a baseline has less than {_LARGEST}. {_AGAIN}"
        raise ArtefactError(msg)
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        msg = f"Baseline '{path}' cannot be read: {error}. {_AGAIN}"
        raise ArtefactError(msg) from None
    schema = document.get("schema") if isinstance(document, dict) else type(document).__name__
    if schema != SCHEMA:
        msg = f"Baseline '{path}' has schema {schema!r}; this version reads {SCHEMA}. {_AGAIN}"
        raise ArtefactError(msg)
    try:
        cases = {str(name): _case(entry) for name, entry in document["cases"].items()}
        environment = dict(document.get("environment", {}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        msg = f"Baseline '{path}' is damaged: {type(error).__name__}: {error}. {_AGAIN}"
        raise ArtefactError(msg) from None
    return Baseline(cases=cases, environment=environment)


def write_baseline(path: str | Path, baseline: Baseline) -> None:
    """Write a baseline whole or not at all.

    Raises:
        ArtefactError: The folder cannot be written.
    """
    document = {
        "schema": SCHEMA,
        "cases": {name: _case_dict(case) for name, case in baseline.cases.items()},
        "environment": dict(baseline.environment),
    }
    write_bytes(Path(path), (_laid_out(document, "") + "\n").encode())


def _case_dict(case: Case) -> dict[str, Any]:
    expected = case.expected_failure
    metrics = {
        name: {
            "value": _short(recorded.value),
            "stderr": _short(recorded.stderr),
            "n": recorded.n,
            "tolerance": _short(recorded.tolerance),
            "higher_is_better": recorded.higher_is_better,
        }
        for name, recorded in case.metrics.items()
    }
    return {
        "metrics": metrics,
        "floors": dict(case.floors),
        "expected_failure": None if expected is None else {"metric": expected.metric, "reason": expected.reason},
        "allowed": case.allowed,
        "facts": dict(case.facts),
        "images": dict(case.images),
        "sketches": dict(case.sketches),
        "files": dict(case.files),
    }


def _case(entry: Mapping[str, Any]) -> Case:
    expected = entry.get("expected_failure")
    if expected is not None and not str(expected.get("reason") or "").strip():
        msg = f"expected_failure of {expected.get('metric')!r} has no reason; say why it is accepted"
        raise ValueError(msg)
    return Case(
        metrics={str(name): _recorded(values) for name, values in entry["metrics"].items()},
        floors={str(name): _finite(value) for name, value in (entry.get("floors") or {}).items()},
        expected_failure=None
        if expected is None
        else Expected(metric=str(expected["metric"]), reason=str(expected["reason"])),
        allowed=str(entry.get("allowed") or ""),
        **{name: _mapping(entry, name) for name in ("facts", "images", "sketches", "files")},
    )


def _recorded(values: Mapping[str, Any]) -> Recorded:
    value, stderr, better = values["value"], values.get("stderr"), values["higher_is_better"]
    tolerance = _finite(values["tolerance"])
    if not isinstance(better, bool) or tolerance < 0:
        msg = f"a metric needs higher_is_better true or false and a tolerance of at least 0, found {dict(values)}"
        raise ValueError(msg)
    return Recorded(
        value=None if value is None else _finite(value),
        stderr=None if stderr is None else _finite(stderr),
        n=int(values.get("n", 0)),
        tolerance=tolerance,
        higher_is_better=better,
    )


def _mapping(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = entry.get(name) or {}
    if not isinstance(value, Mapping):
        msg = f"{name!r} must be an object, found {type(value).__name__}"
        raise TypeError(msg)
    return dict(value)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        msg = f"{value!r} is not a number"
        raise ValueError(msg)
    return float(value)


def _refuse(name: str) -> None:
    msg = f"it holds {name}, which is not JSON"
    raise ValueError(msg)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _laid_out(value: Any, indent: str) -> str:
    """JSON with sorted keys; an object of plain values takes one line where that is not too long."""
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not any(isinstance(item, dict) for item in value.values()):
        line = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
        if len(line) <= _LINE:
            return line
    inner = indent + " "
    items = (f"{inner}{json.dumps(key, ensure_ascii=False)}: {_laid_out(value[key], inner)}" for key in sorted(value))
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"
