"""A check's outcome for people and for programs: text, Markdown, JSON, JUnit XML.

What belongs here: pure renderings; the exit code is `Outcome.exit_code`. Everything that came from a file is escaped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any
from xml.etree import ElementTree

from dfqkit_export.bundle.card import escaped
from dfqkit_export.gate.verdicts import CaseOutcome, Outcome, Row
from dfqkit_export.report.verdict import FAILED, NOT_JUDGED, OK
from dfqkit_export.words import clean, plain, table

SCHEMA = 1
#: What XML 1.0 cannot hold, not even escaped.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_HEAD = ("metric", "baseline", "now", "tolerance", "verdict")


def render_text(outcome: Outcome) -> str:
    """Return the outcome for a terminal: failed cases first, worst metric first in each."""
    lines: list[str] = []
    for case in outcome.cases:
        lines += [*_case_text(case), ""]
    return clean("\n".join([*lines, *_about_all(outcome, plain), _sentence(outcome)])).strip() + "\n"


def render_markdown(outcome: Outcome) -> str:
    """Return the outcome for a pull request or the summary of a CI step."""
    lines = [f"### dfqkit check: {escaped(_sentence(outcome))}", ""]
    for case in outcome.cases:
        lines += [f"**{escaped(case.name)}**: {escaped(case.verdict())}", ""]
        if case.error:
            lines += [f"> {escaped(case.error)}", ""]
        lines += [f"- {escaped(cause)}" for cause in case.causes]
        lines += ["", "| " + " | ".join(_HEAD) + " | why |", "|---|--:|--:|--:|---|---|"] if case.rows else []
        for row in case.rows:
            verdict = f"**{row.verdict}**" if row.fails(strict=outcome.strict) else row.verdict
            cells = [*map(escaped, (row.metric, *numbers_of(row))), verdict, escaped(row.reason)]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *(f"- {escaped(note)}" for note in case.notes), ""]
    lines += [f"- {line}" for line in _about_all(outcome, escaped)]
    return "\n".join(lines).rstrip() + "\n"


def render_json(outcome: Outcome) -> str:
    """Return the outcome as one JSON document with a `schema` number and the exit code."""
    document = {
        "schema": SCHEMA,
        "verdict": FAILED if outcome.exit_code else NOT_JUDGED if outcome.not_judged else OK,
        "exit_code": outcome.exit_code,
        "strict": outcome.strict,
        "cases": [
            {
                "name": case.name,
                "verdict": case.verdict(),
                "failed": case.failed(strict=outcome.strict),
                "error": case.error,
                "metrics": [_finite(row.to_dict()) for row in case.rows],
                "causes": list(case.causes),
                "notes": list(case.notes),
            }
            for case in outcome.cases
        ],
        "unused": list(outcome.unused),
        "environment": list(outcome.environment),
        "changes": list(outcome.changes),
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def render_junit(outcome: Outcome) -> bytes:
    """Return the outcome as XML of the "xunit2" family, as pytest writes it: a test for each metric of each case."""
    root = ElementTree.Element("testsuites", name="dfqkit check")
    suite = ElementTree.SubElement(root, "testsuite", name="dfqkit check")
    for case in outcome.cases:
        if case.error:
            _add(_test(suite, case.name, "error"), "error", case.error, case.error)
        for row in case.rows:
            _add_junit(suite, case, row, strict=outcome.strict)
    for name in outcome.unused if outcome.strict else ():
        message = "The case is in the baseline, but no file was given for it."
        _add(_test(suite, name, "unused"), "failure", message, message)
    counts = {"tests": len(suite)}
    counts |= {f"{kind}s": len(suite.findall(f"*/{kind}")) for kind in ("failure", "error")}
    counts |= {"skipped": len(suite.findall("*/skipped")), "time": 0}
    for element in (root, suite):
        for key, count in counts.items():
            element.set(key, str(count))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def numbers_of(row: Row) -> tuple[str, str, str]:
    """Return a row's baseline, today's value with its standard error, and the tolerance in force, as texts."""
    now = _number(row.now) + (f" ± {_number(row.stderr)}" if row.stderr else "")
    unit = f" {row.unit}" if row.unit and row.now is not None else ""
    shorter = {"stated": "stated", "": ""}.get(row.tolerance_from, "2 SE")
    tolerance = f"{_number(row.tolerance)} ({shorter})" if row.tolerance is not None else "-"
    return _number(row.baseline), now + unit, tolerance


def _about_all(outcome: Outcome, shown: Callable[[str], str]) -> list[str]:
    return [
        *(f"{shown(name)}: in the baseline, but no file was given for it" for name in outcome.unused),
        *(f"environment: {shown(text)}" for text in outcome.environment),
        *(f"recorded: {shown(line)}" for line in outcome.changes),
    ]


def _case_text(case: CaseOutcome) -> Iterator[str]:
    yield f"{plain(case.name)}: {case.verdict()}"
    if case.error:
        yield f"  error: {plain(case.error)}"
        return
    for cause in case.causes:
        yield f"  cause: {plain(cause)}"
    cells = [(row.metric, *numbers_of(row), row.verdict) for row in case.rows]
    head, *lines = table([_HEAD, *(tuple(map(plain, row)) for row in cells)], indent=2)
    told = [plain(row.reason) for row in case.rows]
    folded = len(lines) != len(told)  # where a screen is narrow
    yield f"  {head}"
    for line, reason in zip_longest(lines, [] if folded else told, fillvalue=""):
        yield f"  {line}"
        if reason:
            yield f"    {reason}"
    for row, reason in zip(case.rows, told if folded else (), strict=False):
        if reason:
            yield f"    {row.metric}: {reason}"
    for note in case.notes:
        yield f"  {plain(note)}"


def _sentence(outcome: Outcome) -> str:
    failed = sum(case.failed(strict=outcome.strict) for case in outcome.cases)
    n = len(outcome.cases)
    if failed:
        return f"FAILED: {failed} of {n} case{'s' * (n != 1)}"
    if outcome.failed:
        return f"FAILED: {len(outcome.unused)} unused case(s) of the baseline, under --strict"
    if outcome.not_judged:
        return f"not judged, and allowed: {outcome.not_judged} of {n} case{'s' * (n != 1)}"
    return f"ok: {n} case{'s' * (n != 1)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}


def _add_junit(suite: ElementTree.Element, case: CaseOutcome, row: Row, *, strict: bool) -> None:
    element = _test(suite, case.name, row.metric)
    properties = ElementTree.SubElement(element, "properties")
    for key, value in row.to_dict().items():
        if value not in (None, "") and key not in ("metric", "reason"):
            ElementTree.SubElement(properties, "property", name=key, value=_legal(str(value)))
    reason = row.reason or row.verdict
    if row.fails(strict=strict):
        text = "\n".join([reason, *(f"cause: {cause}" for cause in case.causes)])
        _add(element, "failure", f"{row.verdict}: {reason}", text)
    elif row.verdict in ("unmeasured", "expected", NOT_JUDGED):
        _add(element, "skipped", f"{row.verdict}: {reason}")


def _test(suite: ElementTree.Element, case: str, metric: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_legal(case), name=_legal(metric), time="0")


def _add(test: ElementTree.Element, tag: str, message: str, text: str | None = None) -> None:
    ElementTree.SubElement(test, tag, message=_legal(message)).text = text and _legal(text)


def _legal(text: str) -> str:
    return _ILLEGAL.sub("?", text)
