"""The report: everything that was measured about one exported file, as JSON.

What belongs here: `Report` and its strict JSON form. Text, Markdown and HTML are
renderings of it and live in `text` and `page`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from dfqkit_export.errors import ArtefactError
from dfqkit_export.measure.breakdown import Breakdown
from dfqkit_export.measure.kinds import Metric
from dfqkit_export.report.floors import Finding, Floor
from dfqkit_export.report.verdict import FAILED, NOT_JUDGED, OK, VERDICTS, Verdict

if TYPE_CHECKING:
    from dfqkit_export.backends.precision import LayerPrecision

SCHEMA = 2
#: What was written before metrics had intervals and a verdict its reasons is read, too.
_READ = (1, SCHEMA)


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """How well one layer survived, and how it ran.

    Attributes:
        name: Name of the layer.
        op: Its operator.
        sqnr_student_db: SQNR of the student's output against the teacher's, in dB; None where it has no finite value.
        sqnr_runtime_db: SQNR of the runtime's output against the student's, in dB; None where not measured, or without
            a finite value (for identical outputs too).
        precision: "int8" or "float" as the runtime ran it; "" where not known.
        executed_as: The operator that the runtime ran; "" where not known.
        detail: Why it ran in float; "" otherwise.
        ms: Milliseconds of a call that it takes in ONNX Runtime, by the runtime's own clock; None where that was not
            asked, and of layers that run as one of all but the first. Older reports have none.
    """

    name: str
    op: str
    sqnr_student_db: float | None = None
    sqnr_runtime_db: float | None = None
    precision: str = ""
    executed_as: str = ""
    detail: str = ""
    ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that was measured about one exported file.

    Attributes:
        title: What the report is about, usually the recipe's name.
        verdict: "ok" where it was judged and nothing was found, "failed", or "not judged" (see `verdict`).
        metrics: All metrics of all subjects.
        findings: Why the verdict is "failed".
        layers: One row a layer, in the model's order.
        breakdowns: What metrics are made of, part by part. Older reports have none.
        precision: What the runtime really executed: `Realised.to_dict()`. Empty where not asked.
        latency: `Latency.to_dict()`. Empty where not measured.
        provenance: What made the file: keys such as recipe, teacher, teacher_sha256, seed, command, device, threads and
            environment; any JSON value.
        synthesis: `losses`, a list of {"round": int, "terms": {name: value}}, each with "member" where there are
            several, and `cost`, a mapping; `data_free`, whether no real image took part, or None where
            that is not known, `real_data`, which did, and `made_from`, what images were made from where that is not the
            teacher, both in words; any further JSON value.
        selection: How the kept state was chosen without real data; any JSON value.
        estimate: What the drop on real images is estimated to be without labels, `Estimate.to_dict()`. Empty where not
            asked; reports written before there were estimates have none.
        floors: The worst values that were promised, those that hold too. Reports written before they were kept have
            none.
        recipe: The resolved recipe as text (YAML).
        warnings: What a reader must know before any number, each a sentence or two; shown first. Reports written before
            there were warnings have none.
        reasons: What the verdict rests on, a sentence each; of "not judged", why it is none. Older reports have none.
    """

    title: str
    verdict: Verdict = OK
    metrics: Sequence[Metric] = ()
    findings: Sequence[Finding] = ()
    layers: Sequence[LayerRow] = ()
    breakdowns: Sequence[Breakdown] = ()
    precision: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    synthesis: Mapping[str, Any] = field(default_factory=dict)
    selection: Mapping[str, Any] = field(default_factory=dict)
    estimate: Mapping[str, Any] = field(default_factory=dict)
    floors: Sequence[Floor] = ()
    recipe: str = ""
    warnings: Sequence[str] = ()
    reasons: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Make rows tuples, and refuse a verdict that the findings contradict."""
        for name in ("warnings", "reasons"):
            texts = getattr(self, name)
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                message = f"Report {self.title!r} has the {name} {texts!r}; give a list of texts."
                raise ArtefactError(message)
        for name in ("metrics", "findings", "floors", "layers", "breakdowns", "warnings", "reasons"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.verdict not in VERDICTS or (self.verdict == FAILED) != bool(self.findings):
            message = (
                f"Report {self.title!r} has the verdict {self.verdict!r} with {len(self.findings)} finding(s); allowed "
                f"are {FAILED!r} with at least one, {OK!r} and {NOT_JUDGED!r} without."
            )
            raise ArtefactError(message)
        if self.verdict == NOT_JUDGED and not self.reasons:
            message = f"Report {self.title!r} has the verdict {self.verdict!r} without a reason. Say why."
            raise ArtefactError(message)

    def metric(self, name: str, subject: str) -> Metric | None:
        """Return the first metric of that name and subject, or None."""
        return next((m for m in self.metrics if m.name == name and m.subject == subject), None)

    def to_json(self) -> str:
        """Return the report as JSON text with a `schema` number, two blanks of indentation and a final newline.

        Raises:
            ArtefactError: Something in it is not finite or has no JSON form; the message names where.
        """
        document = {"schema": SCHEMA, **asdict(self)}
        _check_json(document, "report")
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Rebuild the report that `to_json` wrote.

        Args:
            text: The JSON document.

        Raises:
            ArtefactError: It is not JSON, of an unknown schema, holds NaN, or has missing or unknown fields.
        """
        try:
            document = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            message = f"Report is not valid JSON ({error}). Is report.json complete?"
            raise ArtefactError(message) from None
        if not isinstance(document, dict) or document.get("schema") not in _READ:
            found = document.get("schema") if isinstance(document, dict) else type(document).__name__
            message = (
                f"Report has schema {found!r}; this version reads {', '.join(map(str, _READ))}. Make it again with "
                "this version of dfqkit."
            )
            raise ArtefactError(message)
        _check_json(document, "report")
        del document["schema"]
        document = _completed(document)
        rows = {"metrics": Metric, "findings": Finding, "floors": Floor, "layers": LayerRow, "breakdowns": Breakdown}
        parsed = {
            key: tuple(_build(rows[key], item, key) for item in _rows(value, key)) if key in rows else value
            for key, value in document.items()
        }
        report: Report = _build(cls, parsed, "report")
        return report


def layer_rows(
    layers: Iterable[LayerPrecision],
    *,
    student_db: Mapping[str, float | None] | None = None,
    runtime_db: Mapping[str, float | None] | None = None,
) -> tuple[LayerRow, ...]:
    """Join realised precision with per-layer SQNR in dB, by layer name."""
    return tuple(
        LayerRow(
            name=layer.name,
            op=layer.op,
            sqnr_student_db=(student_db or {}).get(layer.name),
            sqnr_runtime_db=(runtime_db or {}).get(layer.name),
            precision=layer.precision,
            executed_as=layer.executed_as,
            detail=layer.detail,
        )
        for layer in layers
    )


def _completed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with what older reports have not."""
    known: dict[str, Any] = {"warnings": [], "estimate": {}, "floors": [], "reasons": [], "breakdowns": [], **document}
    lacking: dict[str, dict[str, Any]] = {
        "metrics": dict.fromkeys(("low", "high")), "breakdowns": {"plot": []}, "layers": {"ms": None},
    }  # fmt: skip
    for name, added in lacking.items():
        if isinstance(known.get(name), list):
            known[name] = [added | row if isinstance(row, dict) else row for row in known[name]]
    return known


def _check_json(value: Any, path: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                message = f"{path} has the key {key!r}; JSON keys are text. Convert it first."
                raise ArtefactError(message)
            _check_json(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{path}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        message = f"{path} is {value}, which JSON cannot hold. Use None for a quantity without a finite value."
        raise ArtefactError(message)
    elif value is not None and not isinstance(value, str | int | float):
        message = (
            f"{path} is of type {type(value).__name__}, which has no JSON form. Convert it to a plain number or text."
        )
        raise ArtefactError(message)


def _refuse_constant(name: str) -> None:
    message = f"it holds {name}, which is not JSON"
    raise ValueError(message)


def _rows(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        message = f"Report field {key!r} must be a list, found {type(value).__name__}. Make the report again."
        raise ArtefactError(message)
    return value


def _build(cls: type[Any], values: Any, where: str) -> Any:
    known = [item.name for item in fields(cls)]
    if not isinstance(values, dict) or set(values) != set(known):
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        message = f"Report part {where!r} must have exactly the fields {known}, found {found}. Make the report again."
        raise ArtefactError(message)
    hints = get_type_hints(cls)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            message = f"Report field {where}.{name} is {value!r}, which is not of the type {hints[name]}."
            raise ArtefactError(message)
    return cls(**values)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is not None:
        return isinstance(value, origin)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)
