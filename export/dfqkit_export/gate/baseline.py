"""The baseline: what was measured when somebody said that it is good, kept in the repository and reviewed as a diff.

What belongs here: `Baseline`, its cases, where they were recorded, and the form of `dfqkit-baseline.json`: sorted keys,
one metric or layer a line. What is compared with it is `verdicts`'.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dfqkit_export.backends import DEFAULT
from dfqkit_export.bundle.entries import parse_json, read_text
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes
from dfqkit_export.gate.signature import LayerSignature, Signature, unpack_sketches
from dfqkit_export.gate.significance import ImageValues, default_tolerance
from dfqkit_export.gate.structure import Structure
from dfqkit_export.measure.kinds import find_kind

SCHEMA = 1
#: What of the packages is recorded, and what of that is told where it differs, as it may move numbers.
_RECORDED = ("dfqkit", "numpy", "onnx", DEFAULT.package)
_TOLD = (DEFAULT.package, "dfqkit")
_LARGEST, _LARGEST_NUMBER = 64 << 20, 1e30
_LINE = 400
_AGAIN = "Put the committed file back, or delete it and record it again with --update."
_CONFLICT = re.compile(r"^(<{7}|>{7})( |$)", re.MULTILINE)


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
        verdict: The verdict on it when it was recorded; "" where that is older than verdicts.
        reason: Why it was recorded although that is not ok; "" otherwise.
        facts: What the file is: "layers", "opset", "before", "image" (its preprocessing), "origin".
        images: `ImageValues.to_dict()`; empty for a report.
        sketches: Fingerprints of the layers' outputs, by layer.
        files: sha256 of "model", "sentinel" and "teacher"; empty for a report.
    """

    metrics: Mapping[str, Recorded]
    floors: Mapping[str, float] = field(default_factory=dict)
    expected_failure: Expected | None = None
    allowed: str = ""
    verdict: str = ""
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    sketches: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the case as the baseline's file holds it."""
        values = asdict(self)
        for recorded in values["metrics"].values():
            for key in ("value", "stderr", "tolerance"):
                recorded[key] = None if recorded[key] is None else float(f"{recorded[key]:.6g}")
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Case:
        """Rebuild what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: It is damaged.
        """
        _require_known(values, [item.name for item in fields(Case)], "a case")
        texts = {name: values.get(name, "") for name in ("allowed", "verdict", "reason")}
        for name, text in texts.items():
            if not isinstance(text, str):
                message = f"{name!r} must be a text; found {text!r:.40}"
                raise TypeError(message)
        plain = {name: _mapping(values, name) for name in ("facts", "images", "sketches", "files")}
        for name in ("files", "sketches"):
            if not all(isinstance(text, str) for text in plain[name].values()):
                message = f"{name!r} must hold texts by name"
                raise TypeError(message)
        return cls(
            metrics={name: _recorded(name, each) for name, each in _mapping(values, "metrics").items()},
            floors={name: _finite(floor) for name, floor in _mapping(values, "floors").items()},
            expected_failure=_expected(values.get("expected_failure")),
            allowed=texts["allowed"],
            verdict=texts["verdict"],
            reason=texts["reason"],
            **plain,
        )

    def readable(self) -> Case:
        """Return the case without what is only compared with, where that is damaged, as an update may take it."""
        try:
            self.signature()
            unpack_sketches(self.sketches)
            if self.images:
                ImageValues.from_dict(self.images)
        except ArtefactError:
            return replace(self, facts={}, images={}, sketches={})
        return self

    def signature(self) -> Signature | None:
        """Return what is kept of the layers; None where nothing is, as for a report."""
        layers = self.facts.get("layers")
        if not isinstance(layers, Mapping):
            return None
        order = self.facts.get("order")
        names = [n for n in order if isinstance(n, str) and n in layers] if isinstance(order, list) else list(layers)
        opset = self.facts.get("opset")
        return Signature(
            layers={str(name): LayerSignature.from_dict(str(name), layers[name]) for name in names},
            opset=opset if isinstance(opset, int) else 0,
            before=str(self.facts.get("before", "")),
            graph=Structure.from_dict(graph) if isinstance(graph := self.facts.get("graph"), Mapping) else None,
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
        message = f"Baseline '{path}' is not there. Record one with `dfqkit check BUNDLE --baseline {path} --update`."
        raise ArtefactError(message)
    try:
        text = read_text(path, _LARGEST)
        if _CONFLICT.search(text):
            message = (
                f"Baseline '{path}' has the marks of a merge that was not finished (<<<<<<<). Take one side's file, "
                "and record what the other side changed with --update."
            )
            raise ArtefactError(message)
        document = parse_json(text)
    except (ValueError, RecursionError) as error:
        message = f"Baseline '{path}' is not JSON: {error}. {_AGAIN}"
        raise ArtefactError(message) from None
    schema = document.get("schema") if isinstance(document, dict) else type(document).__name__
    if schema != SCHEMA:
        message = f"Baseline '{path}' has schema {schema!r}; this version reads {SCHEMA}. {_AGAIN}"
        raise ArtefactError(message)
    cases, where = {}, ""
    try:
        _require_known(document, ("schema", "cases", "environment"), "the baseline")
        environment = _mapping(document, "environment")
        for name, entry in document["cases"].items():
            where = f"case {name!r}: "
            cases[name] = Case.from_dict(entry)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        told = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        message = f"Baseline '{path}' is damaged: {where}{told}. {_AGAIN}"
        raise ArtefactError(message) from None
    return Baseline(cases=cases, environment=environment)


def write_baseline(path: str | Path, baseline: Baseline) -> None:
    """Write a baseline whole or not at all."""
    document = {
        "schema": SCHEMA,
        "cases": {name: case.to_dict() for name, case in baseline.cases.items()},
        "environment": dict(baseline.environment),
    }
    write_bytes(Path(path), (_laid_out(document, "") + "\n").encode(errors="backslashreplace"))


def in_ci() -> bool:
    """Return whether this is a CI job, which must not approve its own change: the variable CI is set, and not to no."""
    return os.environ.get("CI", "").strip().lower() not in ("", "0", "false", "no")


def recorded_environment(here: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a baseline keeps of `environment()`."""
    return {
        "packages": {name: here["packages"][name] for name in _RECORDED if name in here["packages"]},
        "cpu_flags": list(here["cpu"]["flags"]),
    }


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between a baseline's environment and `environment()` that may move numbers.

    That is the runtime's version and the CPU's features.
    """
    stated = before.get("packages")
    packages = stated if isinstance(stated, Mapping) else {}
    for name in _TOLD:
        old, new = packages.get(name), now["packages"].get(name)
        if old != new and old is not None:
            yield f"{name} was {old} when the baseline was recorded and is {new or 'not installed'}."
    flags = before.get("cpu_flags")
    if isinstance(flags, list) and flags != now["cpu"]["flags"]:
        before_flags, flags_now = {str(flag) for flag in flags}, set(now["cpu"]["flags"])
        gone, come = sorted(before_flags - flags_now), sorted(flags_now - before_flags)
        texts = [f"without {', '.join(gone)}"] * bool(gone) + [f"with {', '.join(come)}"] * bool(come)
        yield f"This processor is {' and '.join(texts)}, unlike the one of the baseline, so int8 kernels may differ."


def _expected(values: Any) -> Expected | None:
    if values is None:
        return None
    _require_known(values, ("metric", "reason"), "expected_failure")
    metric, reason = values.get("metric"), values.get("reason")
    if not all(isinstance(text, str) and text.strip() for text in (metric, reason)):
        message = (
            f"expected_failure of {metric!r:.40} has no metric or no reason; say which fails, and why it is accepted"
        )
        raise ValueError(message)
    return Expected(metric=metric, reason=reason)


def _recorded(name: str, values: Mapping[str, Any]) -> Recorded:
    _require_known(values, [item.name for item in fields(Recorded)], f"metric {name!r}")
    value, stderr, n, better = values["value"], values.get("stderr"), values.get("n", 0), values["higher_is_better"]
    tolerance = _finite(values["tolerance"])
    if not isinstance(better, bool) or not isinstance(n, int):
        message = f"metric {name!r} needs higher_is_better true or false and an integer n, found {dict(values)}"
        raise ValueError(message)
    if tolerance < 0:
        message = f"metric {name!r} has a tolerance of {tolerance:g}, which is no distance; it must be at least 0"
        raise ValueError(message)
    return Recorded(
        value=None if value is None else _finite(value),
        stderr=None if stderr is None else _finite(stderr),
        n=n,
        tolerance=tolerance,
        higher_is_better=better,
    )


def require_comparing(name: str, case: Case) -> None:
    """Refuse a case with which nothing, or the wrong thing, would be compared.

    Raises:
        ArtefactError: It has no metrics, one whose direction is flipped, or one whose tolerance nothing can exceed.
    """
    try:
        if not case.metrics:
            message = "it has no metrics, so nothing would be compared and every file would pass"
            raise ValueError(message)
        for metric, old in case.metrics.items():
            kind = find_kind(metric.partition(" of ")[0])
            if kind is not None and kind.higher_is_better not in (None, old.higher_is_better):
                message = (
                    f"metric {metric!r} has higher_is_better {str(old.higher_is_better).lower()}, but "
                    f"{'higher' if kind.higher_is_better else 'lower'} is better of it, so that a worse file would pass"
                )
                raise ValueError(message)
            for distance in (old.tolerance, old.stderr or 0.0):  # two errors are a tolerance, too
                require_tolerance(metric, distance, old.value, old.n)
    except ValueError as error:
        message = f"The baseline's case {name!r} cannot be used: {error}. {_AGAIN}"
        raise ArtefactError(message) from None


def require_tolerance(name: str, tolerance: float, value: float | None, n: int) -> None:
    """Refuse a tolerance with which nothing could fail.

    Raises:
        ValueError: It is negative, not finite, or beyond all that the metric can change by: 100 of what is counted in
            percent, and of others a thousand times the larger of the recorded value and the usual tolerance.
    """
    metric = name.partition(" of ")[0]
    kind = find_kind(metric)
    most = 1000 * (max(abs(value or 0.0), default_tolerance(metric, value, n)) or 1.0)
    if kind is not None and kind.unit == "%":
        most = 100.0
    if not 0 <= tolerance < most:
        message = (
            f"metric {name!r} has a tolerance of {tolerance:g}, with which nothing would be compared; allowed are 0 to "
            f"less than {most:.4g}, usual is {default_tolerance(metric, value, n):.4g}"
        )
        raise ValueError(message)


def _mapping(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = entry.get(name)
    if value is None and name != "metrics":
        return {}
    if not isinstance(value, Mapping):
        message = f"{name!r} must be an object, found {type(value).__name__}"
        raise TypeError(message)
    return dict(value)


def _require_known(values: Any, known: Iterable[str], what: str) -> None:
    """Refuse other fields: a floor under a misspelt name would hold nothing."""
    if not isinstance(values, Mapping):
        message = f"{what} must be an object, found {type(values).__name__}"
        raise TypeError(message)
    unknown = sorted(set(values) - set(known))
    if unknown:
        message = f"{what} has the field {unknown[0]!r:.40}; known are {', '.join(sorted(known))}"
        raise ValueError(message)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST_NUMBER:
        message = f"{value!s:.40} is not a number that a metric can have"
        raise ValueError(message)
    return float(value)


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
